"""A picture of a recipe: lenses of each class, with what the substructure does to them.

Each class has two rows: the images, with critical curves and the positions of the substructure,
and below them the residuals against the same lens without substructure.
"""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dlens_tf.errors import UserError
from dlens_tf.io.files import atomic_write
from dlens_tf.simulation import lenstronomy_engine
from dlens_tf.simulation.noise import moments
from dlens_tf.simulation.recipes import CLASSES, Recipe
from dlens_tf.simulation.simulator import Lens, simulate
from dlens_tf.simulation.substructure import PointMasses

CLASS_NAMES = {"no_sub": "no substructure", "axion": "axion vortex", "cdm": "CDM subhalos"}
_GRID = 400
_RESIDUAL_SIGMAS = 6.0


def residual(recipe: Recipe, lens: Lens) -> np.ndarray:
    """Image minus the expected image of the same lens without substructure.

    Returns:
      [H, W], in standard deviations of the noise; as a fraction of the image's peak where the
      recipe has no noise.
    """
    smooth = lenstronomy_engine.render(recipe, lens.parameters, PointMasses.none())
    mean, variance = moments(smooth, recipe, lens.metadata["exposure_time"])
    image = lens.image[..., 0].astype(np.float64)
    return (image - mean) / (np.sqrt(variance) if recipe.has_noise else image.max())


def substructure_snr(recipe: Recipe, lens: Lens) -> float:
    """Signal-to-noise with which the substructure changes the image, the rest being known."""
    exposure_time = lens.metadata["exposure_time"]
    smooth = lenstronomy_engine.render(recipe, lens.parameters, PointMasses.none())
    mean, variance = moments(smooth, recipe, exposure_time)
    with_substructure, _ = moments(lens.model, recipe, exposure_time)
    return float(np.sqrt(np.sum((with_substructure - mean) ** 2 / variance)))


def _caption(recipe: Recipe, lens: Lens) -> str:
    values = lens.parameters
    lines = []
    if lens.dm_class == "axion":
        angle = np.degrees(values["phi_vortex"])
        lines.append(
            rf"$\log_{{10}} m = {values['log10_m_axion']:.2f}$, $\phi = {angle:.0f}\degree$"
        )
    elif lens.dm_class == "cdm":
        lines.append(f"{len(lens.points)} subhalos")
    lines.append(
        rf"$\theta_\mathrm{{E}} = {values['theta_E']:.2f}''$, "
        rf"$\beta = ({values['source_x']:+.2f}'', {values['source_y']:+.2f}'')$"
    )
    return "\n".join(lines)


def _draw_image(axes, recipe: Recipe, lens: Lens, extent: tuple[float, ...]) -> None:
    image = lens.image[..., 0]
    floor = lens.metadata["background_rms"] or 0.01 * image.max()
    axes.imshow(
        np.arcsinh(image / (2.0 * floor)), origin="lower", extent=extent, cmap="magma",
        vmin=0.0, interpolation="nearest",
    )  # fmt: skip
    axis = np.linspace(extent[0], extent[1], _GRID)
    determinant = lenstronomy_engine.inverse_magnification(
        recipe, lens.parameters, lens.points, *np.meshgrid(axis, axis)
    )
    axes.contour(axis, axis, determinant, levels=[0.0], colors="#67e8f9", linewidths=0.7)
    if len(lens.points):
        # Area as the mass, within what can be seen.
        mass = (lens.points.theta_E / lens.points.theta_E.max()) ** 2
        size = 0.8 if lens.dm_class == "axion" else 2.0 + 40.0 * mass
        style = {"facecolor": "none", "edgecolor": "white", "linewidths": 0.6}
        if lens.dm_class == "axion":
            style = {"facecolor": "white", "linewidths": 0.0}
        axes.scatter(lens.points.x, lens.points.y, s=size, **style)


def _scale_bar(axes, extent: tuple[float, ...]) -> None:
    left = extent[0] + 0.06 * (extent[1] - extent[0])
    bottom = extent[2] + 0.07 * (extent[3] - extent[2])
    axes.plot([left, left + 1.0], [bottom, bottom], color="white", linewidth=1.5)
    axes.text(left + 0.5, bottom, '1"', color="white", ha="center", va="bottom", fontsize=7)


def draw_gallery(recipe: Recipe, num: int, seed: int = 0) -> Figure:
    """Draws the first `num` lenses of each class.

    Args:
      recipe: what to draw.
      num: lenses per class.
      seed: of the simulation.

    Returns:
      A matplotlib figure, not attached to any window.
    """
    half = 0.5 * recipe.num_pix * recipe.instrument.pixel_scale
    extent = (-half, half, -half, half)
    lenses = {c: [simulate(recipe, c, seed, i) for i in range(num)] for c in CLASSES}
    residuals = {c: [residual(recipe, lens) for lens in lenses[c]] for c in CLASSES}
    if recipe.has_noise:
        limit, unit = _RESIDUAL_SIGMAS, "residual / noise"
    else:
        limit = 100 * np.percentile([np.abs(r).max() for c in CLASSES for r in residuals[c]], 75)
        unit = "residual [% of peak]"

    figure = Figure(figsize=(2.1 * max(num, 2) + 1.3, 2.1 * 6 + 1.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{recipe.name}, seed {seed}\n{recipe.description}", fontsize=9, wrap=True)
    grid = figure.subplots(2 * len(CLASSES), num, squeeze=False)
    for row, dm_class in enumerate(CLASSES):
        for column, (lens, difference) in enumerate(
            zip(lenses[dm_class], residuals[dm_class], strict=True)
        ):
            above, below = grid[2 * row, column], grid[2 * row + 1, column]
            _draw_image(above, recipe, lens, extent)
            _scale_bar(above, extent)
            above.set_title(_caption(recipe, lens), fontsize=7)
            shown = below.imshow(
                difference * (1.0 if recipe.has_noise else 100.0), origin="lower", extent=extent,
                cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest",
            )  # fmt: skip
            if recipe.has_noise and dm_class != "no_sub":
                snr = substructure_snr(recipe, lens)
                below.set_xlabel(f"substructure S/N {snr:.1f}", fontsize=7)
            for axes in (above, below):
                axes.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
        grid[2 * row, 0].set_ylabel(CLASS_NAMES[dm_class], fontsize=9)
        grid[2 * row + 1, 0].set_ylabel("residual", fontsize=8)
    bar = figure.colorbar(shown, ax=grid, shrink=0.4, aspect=40, pad=0.01)
    bar.set_label(unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def save_gallery(recipe: Recipe, output: str | Path, num: int, seed: int = 0) -> None:
    """Draws a gallery and writes it to `output`, whose ending sets the format.

    Raises:
      UserError: if the folder of `output` can't be made, or the file can't be written.
    """
    output = Path(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't make the folder {output.parent}: {error.strerror}") from error
    figure = draw_gallery(recipe, num, seed)
    with atomic_write(output) as partial:
        figure.savefig(partial, format=output.suffix.removeprefix("."))
