"""A picture of a recipe: lenses of each class, with what the substructure does to them.

Each lens has a row of four panels: the image with critical curves and substructure; the
unlensed source with the caustics; the convergence of the substructure; and the residual
against the same lens without substructure.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from scipy.spatial import KDTree

from dlens_tf.errors import UserError, choose
from dlens_tf.io.files import atomic_write
from dlens_tf.parameters import Parameter
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.lenstronomy_engine import LenstronomyEngine, convergence_profiles
from dlens_tf.simulation.noise import moments
from dlens_tf.simulation.recipes import Recipe
from dlens_tf.simulation.scene import Scene
from dlens_tf.simulation.simulator import Lens, Simulator
from dlens_tf.simulation.substructure import Halos, Line

CLASS_NAMES = {
    "no_sub": "no substructure",
    "axion": "axion vortex",
    "cdm": "cold dark matter",
    "wdm": "warm dark matter",
    "sidm": "self-interacting",
    "uldm": "ultralight (axions)",
}

_GRID = 400
_HALO_GRID = 200  # halos cost more than point masses
_KAPPA_GRID = 240
_SOURCE_GRID = 200
_SOURCE_HALF = 1.0  # arcsec
_KAPPA_RANGE = (1e-3, 1.0)
_HALO_KAPPA_RANGE = (1e-4, 0.1)
_KAPPA_FLOOR = 1e-6
_UNRESOLVED = 3.0  # steps of the grid
_FEW = 48  # points of a curve that is worth a grid of its own, which has as many a side
_ROUNDS = 4
_STRONG = 0.1  # convergence from which on a halo could have a critical curve of its own
_NEAR_CRITICAL = 0.3  # of the smooth lens's determinant
_RESIDUAL_SIGMAS = 6.0
_MARKED_HALOS = 25
_CURVE_HALOS = 300

# Sizes in inches, from the left and from the top.
_PANEL, _GAP = 2.25, 0.08
_TEXT, _TOP, _BOTTOM, _EDGE = 1.85, 0.95, 0.65, 0.12
_TITLES = ("image, critical curves", "source, caustics", "substructure", "residual")

_UNITS = {"arcsec": '"', "kpc^-2": " kpc$^{-2}$", "cm^2/g": " cm$^2$/g"}

_CURVES = ("#67e8f9", "#fde047")  # over one band, over colours
_TEXT_COLOR = "#1f2937"


def residual(simulator: Simulator, lens: Lens) -> np.ndarray:
    """Image minus the expected image of the same lens without substructure.

    Returns:
      [H, W], the sum over bands in standard deviations of its noise; as a fraction of the
      image's peak where the recipe has no noise.
    """
    mean, variance = _smooth_moments(simulator, lens)
    difference = lens.image.astype(np.float64) - mean
    if not simulator.recipe.has_noise:
        return difference.sum(axis=-1) / lens.image.sum(axis=-1).max()
    return (difference / np.sqrt(variance)).sum(axis=-1) / np.sqrt(difference.shape[-1])


def substructure_snr(simulator: Simulator, lens: Lens) -> float:
    """Signal-to-noise with which the substructure changes the image, the rest being known."""
    mean, variance = _smooth_moments(simulator, lens)
    exposure_time = lens.metadata["exposure_time"]
    with_substructure, _ = moments(lens.model, simulator.recipe, exposure_time)
    return float(np.sqrt(np.sum((with_substructure - mean) ** 2 / variance)))


def _smooth_moments(simulator: Simulator, lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance, each [H, W, C], of the image of the lens without substructure."""
    [smooth] = simulator.engine.render([lens.scene.without_substructure()])
    return moments(smooth, simulator.recipe, lens.metadata["exposure_time"])


def substructure_convergence(scene: Scene, axis: np.ndarray) -> np.ndarray:
    """Convergence of halos and point masses, without the sheet that balances their mean.

    Point masses are smoothed by a Gaussian of 1.2 steps of the axis; halos have the convergence
    that they have half a step from their centre within it.

    Args:
      scene: the lens.
      axis: evenly spaced positions along both axes, arcsec, [A].

    Returns:
      [A, A], y first.
    """
    step = axis[1] - axis[0]
    kappa = np.zeros((len(axis), len(axis)))
    sigma = 1.2 * step
    for x, y, theta_E in zip(scene.points.x, scene.points.y, scene.points.theta_E, strict=True):
        rows, columns = (_near(axis, center, 5.0 * sigma) for center in (y, x))
        bells = (
            np.exp(-0.5 * ((axis[near] - center) / sigma) ** 2)
            for near, center in ((rows, y), (columns, x))
        )
        # A point mass has ∫ κ = π θ_E².
        kappa[rows, columns] += 0.5 * (theta_E / sigma) ** 2 * np.outer(*bells)
    radii = np.geomspace(0.5 * step, 2.0 * np.ptp(axis), 300)
    profiles = convergence_profiles(scene.halos, radii)
    for x, y, profile in zip(scene.halos.x, scene.halos.y, profiles, strict=True):
        reach = radii[profile > _KAPPA_FLOOR].max(initial=radii[0])
        rows, columns = (_near(axis, center, reach) for center in (y, x))
        distance = np.hypot(axis[columns] - x, axis[rows, np.newaxis] - y)
        kappa[rows, columns] += np.interp(distance, radii, profile)
    return kappa


def _near(axis: np.ndarray, center: float, reach: float) -> slice:
    """Where an ascending axis is within `reach` of `center`."""
    return slice(*np.searchsorted(axis, (center - reach, center + reach)))


class Curves(NamedTuple):
    """Critical curves and the caustics that they are mapped to, each a list of [n, 2], arcsec."""

    critical: list[np.ndarray]
    caustics: list[np.ndarray]


def critical_curves(engine: LenstronomyEngine, scene: Scene, half: float) -> Curves:
    """Critical curves within ±half arcsec, and caustics.

    Curves that keep so close to point masses that the grid does not resolve them are left out.
    With halos, the determinant of the lens mapping is computed only where it could change sign:
    near the smooth lens's critical curves and within dense halos. Of very many halos only the
    300 largest count: the others move no curve by the width of its line.

    Args:
      engine: of the scene's recipe.
      scene: the lens.
      half: half-width of the square that is searched, arcsec.
    """
    if len(scene.halos) > _CURVE_HALOS:
        scene = dataclasses.replace(scene, halos=_largest(scene.halos, _CURVE_HALOS))
    axis = np.linspace(-half, half, _HALO_GRID if len(scene.halos) else _GRID)
    x, y = np.meshgrid(axis, axis)
    if len(scene.halos):
        determinant = engine.inverse_magnification(scene.without_substructure(), x, y)
        by_step = np.hypot(*np.gradient(determinant))
        near = np.abs(determinant) < _NEAR_CRITICAL + 2.0 * by_step
        near |= substructure_convergence(scene, axis) > _STRONG
        determinant[near] = engine.inverse_magnification(scene, x[near], y[near])
    else:
        determinant = engine.inverse_magnification(scene, x, y)
    critical, step = _zeros(axis, axis, determinant), axis[1] - axis[0]
    if len(scene.points):
        tree = KDTree(np.stack([scene.points.x, scene.points.y], axis=-1))
        critical = [
            line for line in critical if np.median(tree.query(line)[0]) > _UNRESOLVED * step
        ]
    critical = [
        line if len(line) >= _FEW else _refined(engine, scene, line, step) for line in critical
    ]
    caustics = [np.stack(engine.ray_shooting(scene, *line.T), axis=-1) for line in critical]
    return Curves(critical, caustics)


def _largest(halos: Halos, number: int) -> Halos:
    """The most massive halos, largest first, with the sheet of all."""
    order = np.argsort(halos.mass)[::-1][:number]
    columns = {f.name: getattr(halos, f.name) for f in dataclasses.fields(halos)}
    sheet = columns.pop("kappa_sheet")
    return Halos(**{name: column[order] for name, column in columns.items()}, kappa_sheet=sheet)


def _zeros(x: np.ndarray, y: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """Lines, each [n, 2], where `values` on the grid of the axes `x` and `y` are 0."""
    import contourpy

    return contourpy.contour_generator(x, y, values).lines(0.0)


def _refined(engine: LenstronomyEngine, scene: Scene, line: np.ndarray, step: float) -> np.ndarray:
    """A small critical curve, found again on finer grids; as it was where that fails."""
    for _ in range(_ROUNDS):
        axes = [
            np.linspace(low - step, high + step, _FEW)
            for low, high in zip(line.min(axis=0), line.max(axis=0), strict=True)
        ]
        found = _zeros(*axes, engine.inverse_magnification(scene, *np.meshgrid(*axes)))
        if not found:
            break
        distances = [np.linalg.norm(one.mean(axis=0) - line.mean(axis=0)) for one in found]
        line, step = found[np.argmin(distances)], np.max([axis[1] - axis[0] for axis in axes])
        if len(line) >= _FEW:
            break
    return line


def colour_composite(image: np.ndarray, recipe: Recipe, floor: np.ndarray) -> np.ndarray:
    """A picture in colour of an image in three bands, ordered from blue to red.

    White is the colour midway between the recipe's mean source and mean lens.

    Args:
      image: [H, W, 3].
      recipe: for the bands' zero points and the priors of the colours.
      floor: [3], flux in each band that is barely to be seen.

    Returns:
      uint8 [H, W, 3], red first.

    Reference: Lupton et al. 2004, astro-ph/0312483.
    """
    from astropy.visualization import make_lupton_rgb

    white = [0.0]
    for band in (2, 3):
        names = (f"{who}_color_{band}" for who in ("source", "lens"))
        white.append(np.mean([recipe.priors[name].mean for name in names if name in recipe.priors]))
    zero_points = [band.magnitude_zero_point for band in recipe.bands]
    weight = 10.0 ** (-0.4 * np.add(zero_points, white))
    blue, green, red = np.moveaxis(image * weight, -1, 0)
    stretch = 20.0 * float(np.mean(floor * weight))
    with np.errstate(invalid="ignore"):  # astropy divides by a flux of 0, then leaves it out
        return make_lupton_rgb(red, green, blue, minimum=0.0, stretch=stretch, Q=8.0)


def _draw_light(axes: Axes, image: np.ndarray, recipe: Recipe, floor: np.ndarray, half: float):
    """Shows [H, W, C] as a picture: in colour if it has three bands, else the sum of them."""
    extent = (-half, half, -half, half)
    if image.shape[-1] == 3:
        picture = colour_composite(image, recipe, floor)
        axes.imshow(picture, origin="lower", extent=extent, interpolation="nearest")
        return
    brightness = np.arcsinh(image.sum(axis=-1) / (2.0 * np.sum(floor)))
    axes.imshow(
        brightness, origin="lower", extent=extent, cmap="magma", vmin=0.0, interpolation="nearest"
    )


def _floor(lens: Lens, recipe: Recipe) -> np.ndarray:
    """Flux of a pixel in each band that is barely to be seen, [C]."""
    if recipe.noise == "instrument":
        return np.array([band.background_rms for band in recipe.bands])
    faintest = lens.metadata["background_rms"] or 0.01 * lens.image.max()
    return np.full(len(recipe.bands), faintest)


def _draw_curves(axes: Axes, recipe: Recipe, lines: list[np.ndarray]) -> None:
    """Critical curves or caustics over a picture."""
    for line in lines:
        axes.plot(*line.T, color=_CURVES[len(recipe.bands) == 3], linewidth=0.8)


def _draw_image(axes: Axes, recipe: Recipe, lens: Lens, curves: Curves, half: float) -> None:
    _draw_light(axes, lens.image, recipe, _floor(lens, recipe), half)
    _draw_curves(axes, recipe, curves.critical)
    points, halos = lens.scene.points, lens.scene.halos
    if isinstance(points, Line):
        axes.scatter(points.x, points.y, s=0.8, facecolor="white", linewidths=0.0)
        return
    # Area as the mass; of many halos only the largest.
    x, y = np.append(points.x, halos.x), np.append(points.y, halos.y)
    mass = np.append(points.theta_E**2, halos.mass)
    largest = np.argsort(mass)[::-1][: len(points) or _MARKED_HALOS]
    size = 2.0 + 40.0 * mass[largest] / mass.max(initial=0.0)
    axes.scatter(
        x[largest], y[largest], s=size, facecolor="none", edgecolor="white", linewidths=0.6
    )


def _draw_source(
    axes: Axes, engine: LenstronomyEngine, recipe: Recipe, lens: Lens, curves: Curves
) -> None:
    axis = np.linspace(-_SOURCE_HALF, _SOURCE_HALF, _SOURCE_GRID)
    light = engine.source_brightness(lens.scene, *np.meshgrid(axis, axis))
    _draw_light(axes, light, recipe, 0.01 * light.max(axis=(0, 1)), _SOURCE_HALF)
    _draw_curves(axes, recipe, curves.caustics)
    values = lens.parameters
    if not recipe.has_galaxies:
        modulus = np.hypot(values["source_e1"], values["source_e2"])
        q = (1.0 - modulus) / (1.0 + modulus)
        angle = 0.5 * np.degrees(np.arctan2(values["source_e2"], values["source_e1"]))
        size = 2.0 * values["source_R_sersic"]
        outline = Ellipse(
            (values["source_x"], values["source_y"]),
            size / np.sqrt(q),
            size * np.sqrt(q),
            angle=angle,
            fill=False,
            edgecolor="white",
            linewidth=0.7,
            linestyle=(0, (4, 3)),
        )
        axes.add_patch(outline)


def _draw_convergence(
    axes: Axes, scene: Scene, curves: Curves, half: float, shown: ScalarMappable
) -> None:
    axis = np.linspace(-half, half, _KAPPA_GRID)
    kappa = substructure_convergence(scene, axis)
    step = axis[1] - axis[0]
    edge = half + 0.5 * step
    axes.imshow(
        np.maximum(kappa, shown.norm.vmin), origin="lower", extent=(-edge, edge, -edge, edge),
        cmap=shown.cmap, norm=shown.norm, interpolation="nearest",
    )  # fmt: skip
    if not len(scene.points) + len(scene.halos):
        axes.text(0.0, 0.0, "none", color="white", fontsize=11, ha="center", va="center")
    for line in curves.critical:
        axes.plot(*line.T, color=_CURVES[0], linewidth=0.5, alpha=0.6)


def _scale_bar(axes: Axes, half: float, length: float) -> None:
    left, bottom = -0.88 * half, -0.86 * half
    axes.plot([left, left + length], [bottom, bottom], color="white", linewidth=2.0)
    axes.text(
        left, bottom + 0.04 * half, f'{length:g}"', color="white", ha="left", va="bottom",
        fontsize=9,
    )  # fmt: skip


def _shown(parameter: Parameter) -> bool:
    """Whether a lens's caption names a parameter: dark matter and the main lens's profile."""
    return (
        parameter.is_free
        and not parameter.spin
        and not parameter.name.startswith(("source_", "lens_"))
    )


def _caption(simulator: Simulator, lens: Lens) -> Iterator[str]:
    """Lines that describe a lens."""
    for parameter in filter(_shown, simulator.recipe.class_parameters(lens.dm_class)):
        value = lens.parameters[parameter.name]
        if parameter.unit == "rad":
            yield f"${parameter.symbol} = {np.degrees(value):.0f}$°"
        elif parameter.unit.startswith("log10"):
            yield f"${parameter.symbol} = {value:.2f}$"
        else:
            yield f"${parameter.symbol} = {value:.3g}${_UNITS.get(parameter.unit, '')}"
    scene = lens.scene
    if len(scene.halos):
        log_mass = np.log10(scene.halos.mass.sum())
        yield rf"{len(scene.halos)} halos, $10^{{{log_mass:.1f}}}\,\mathrm{{M}}_\odot$"
    elif len(scene.points) and not isinstance(scene.points, Line):
        yield f"{len(scene.points)} point masses"
    if simulator.recipe.has_noise and len(scene.points) + len(scene.halos):
        yield f"substructure S/N {substructure_snr(simulator, lens):.3g}"


class _Sheet:
    """The figure and where its panels are."""

    def __init__(self, rows: int):
        self.width = _TEXT + len(_TITLES) * (_PANEL + _GAP) + _EDGE
        self.height = _TOP + rows * (_PANEL + _GAP) + _BOTTOM
        self.figure = Figure(figsize=(self.width, self.height), dpi=110, facecolor="white")
        FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a place in inches from the left and the top."""
        place = (left, self.height - top - height, width, height)
        size = (self.width, self.height, self.width, self.height)
        return self.figure.add_axes([p / s for p, s in zip(place, size, strict=True)])

    def text(self, left: float, top: float, text: str, **style) -> None:
        """Text at a place in inches from the left and the top."""
        style = {"va": "top", "color": _TEXT_COLOR, **style}
        self.figure.text(left / self.width, 1.0 - top / self.height, text, **style)

    @staticmethod
    def left_of(column: int) -> float:
        return _TEXT + column * (_PANEL + _GAP)

    @staticmethod
    def top_of(row: int) -> float:
        return _TOP + row * (_PANEL + _GAP)

    def panel(self, row: int, column: int, half: float) -> Axes:
        """An empty square panel of ±half arcsec."""
        axes = self.axes(self.left_of(column), self.top_of(row), _PANEL, _PANEL)
        axes.set(xlim=(-half, half), ylim=(-half, half), xticks=[], yticks=[], facecolor="black")
        axes.set_autoscale_on(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def colour_bar(self, column: int, shown: ScalarMappable, label: str) -> None:
        """A bar below a column."""
        top = self.height - _BOTTOM + 0.04
        axes = self.axes(self.left_of(column) + 0.2, top, _PANEL - 0.4, 0.12)
        bar = self.figure.colorbar(shown, cax=axes, orientation="horizontal")
        if isinstance(shown.norm, LogNorm):
            bar.ax.minorticks_off()
        else:
            bar.ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        bar.set_label(label, fontsize=9, color=_TEXT_COLOR, labelpad=2)
        bar.ax.tick_params(labelsize=8, pad=2)
        bar.outline.set_visible(False)


def draw_gallery(
    recipe: Recipe,
    num: int,
    seed: int = 0,
    engine: str = "lenstronomy",
    galaxies: GalaxyCatalogue | None = None,
    classes: Sequence[str] | None = None,
) -> Figure:
    """Draws the first `num` lenses of each class.

    Args:
      recipe: what to draw.
      num: lenses per class.
      seed: of the simulation.
      engine: that renders the images; curves and convergence are lenstronomy's.
      galaxies: of the recipe's sources; None for the bundled ones.
      classes: which classes, in this order; None for all.

    Returns:
      A matplotlib figure, not attached to any window.

    Raises:
      UserError: if the recipe has no such class, or the engine can't render it.
    """
    classes = [choose("class", c, recipe.classes) for c in classes or recipe.classes]
    simulator = Simulator(recipe, engine, galaxies)
    optics = LenstronomyEngine(recipe, galaxies)
    lenses = [lens for c in classes for lens in simulator.simulate_many(c, seed, range(num))]
    residuals = [residual(simulator, lens) for lens in lenses]
    half = 0.5 * recipe.num_pix * recipe.instrument.pixel_scale
    if recipe.has_noise:
        limit, unit = _RESIDUAL_SIGMAS, "image − smooth lens [σ]"
    else:
        residuals = [100.0 * values for values in residuals]
        limit = np.percentile([np.abs(values).max() for values in residuals], 75) or 1.0
        unit = "image − smooth lens [% of peak]"
    any_halos = any(len(lens.scene.halos) for lens in lenses)
    kappa_range = _HALO_KAPPA_RANGE if any_halos else _KAPPA_RANGE
    kappa = ScalarMappable(LogNorm(*kappa_range), "inferno")
    difference = ScalarMappable(Normalize(-limit, limit), "RdBu_r")

    sheet = _Sheet(len(lenses))
    sheet.text(_EDGE, 0.16, recipe.name, fontsize=15, fontweight="bold")
    sheet.text(_EDGE, 0.46, recipe.description, fontsize=10)
    sheet.text(sheet.width - _EDGE, 0.2, f"seed {seed}", fontsize=10, ha="right")
    for column, title in enumerate(_TITLES):
        middle = sheet.left_of(column) + 0.5 * _PANEL
        sheet.text(middle, _TOP - 0.06, title, fontsize=11, ha="center", va="bottom")
    for row, (lens, values) in enumerate(zip(lenses, residuals, strict=True)):
        curves = critical_curves(optics, lens.scene, half)
        sheet.text(_EDGE, sheet.top_of(row) + 0.06, CLASS_NAMES[lens.dm_class], fontsize=11,
                   fontweight="bold")  # fmt: skip
        sheet.text(_EDGE, sheet.top_of(row) + 0.32, "\n".join(_caption(simulator, lens)),
                   fontsize=9, linespacing=1.5)  # fmt: skip
        image, source, convergence, below = (
            sheet.panel(row, column, _SOURCE_HALF if column == 1 else half)
            for column in range(len(_TITLES))
        )
        _draw_image(image, recipe, lens, curves, half)
        _scale_bar(image, half, 1.0)
        _draw_source(source, optics, recipe, lens, curves)
        _scale_bar(source, _SOURCE_HALF, 0.5)
        _draw_convergence(convergence, lens.scene, curves, half, kappa)
        if np.abs(values).max() < 1e-4 * limit:
            below.text(0.0, 0.0, "none", color=_TEXT_COLOR, fontsize=11, ha="center", va="center")
        below.imshow(
            values, origin="lower", extent=(-half, half, -half, half), cmap=difference.cmap,
            norm=difference.norm, interpolation="nearest",
        )  # fmt: skip
    sheet.colour_bar(2, kappa, "convergence")
    sheet.colour_bar(3, difference, unit)
    return sheet.figure


def save_gallery(recipe: Recipe, output: str | Path, num: int, seed: int = 0, **options) -> None:
    """Draws a gallery and writes it to `output`, whose ending sets the format.

    Args:
      recipe: what to draw.
      output: the picture.
      num: lenses per class.
      seed: of the simulation.
      **options: of `draw_gallery`.

    Raises:
      UserError: if the folder of `output` can't be made, the file can't be written, or as
        `draw_gallery` does.
    """
    output = Path(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't make the folder {output.parent}: {error.strerror}") from error
    figure = draw_gallery(recipe, num, seed, **options)
    with atomic_write(output) as partial:
        figure.savefig(partial, format=output.suffix.removeprefix("."))
