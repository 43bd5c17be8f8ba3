"""Batches of noise-free images in TensorFlow: the fast engine.

The lens is traced by `kernels`, one image after the other in one XLA-compiled graph, so that
memory stays that of a few images whatever the batch; on a GPU all images of a batch at once.
Scenes come in as arrays of fixed shapes (`FastEngine.pack`), so that a recipe is compiled once
per batch size. The result agrees with lenstronomy to 1e-4 of the peak; what can't be made to
agree is refused.

Noise, too, can be drawn in the graph (`FastEngine.observe`), from stateless seeds.
"""

import functools
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from dlens_tf.errors import UserError
from dlens_tf.simulation import galaxies as galaxy_catalogue
from dlens_tf.simulation import halo_poles
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.lenstronomy_engine import band_magnitude
from dlens_tf.simulation.noise import DEEPLENSE_BACKGROUND_RMS
from dlens_tf.simulation.populations import MAX_HALOS, Population
from dlens_tf.simulation.psf import gaussian_matrix, kernel_on_grid
from dlens_tf.simulation.recipes import Recipe
from dlens_tf.simulation.scene import Scene
from dlens_tf.simulation.substructure import Halos, Line, PointMasses, PointSubhalos, Vortex

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf

from dlens_tf.simulation import kernels
from dlens_tf.simulation.kernels import ENTRIES_PER_STEP, ISOTHERMAL

MAX_ELLIPTICITY = 0.8
"""Of the main lens: beyond it the power law's series is slow to converge."""

BRIGHT_ALPHA = 1e-3
"""Deflection at the scale radius, arcsec, above which a halo is summed on every subpixel."""
NODES_PER_PIXEL = 2
"""Along an axis: where the other halos are summed; between them their sum is interpolated."""

_SERSIC = ("xx", "xy", "yy", "b_n", "inverse_n", "floor")
_SERSIC_SMOOTHING = 1e-4  # lenstronomy's, arcsec
_SMALLEST_BUCKET = 64
_SERIES_ACCURACY = 1e-6


def _bucket(count: int) -> int:
    """Room for so many entries: a power of two, so that few shapes are ever compiled."""
    return max(_SMALLEST_BUCKET, 1 << max(count - 1, 0).bit_length())


def _sersic_b_n(n_sersic: float) -> float:
    """lenstronomy's approximation of b_n."""
    return max(1.9992 * n_sersic - 0.3271, 1e-5)


def _sersic_flux(R_sersic: float, n_sersic: float) -> float:
    """Total flux of a Sersic profile of brightness 1 at its half-light radius."""
    b_n = _sersic_b_n(n_sersic)
    gamma = math.gamma(2.0 * n_sersic)
    return 2.0 * np.pi * n_sersic * R_sersic**2 * math.exp(b_n) * b_n ** (-2.0 * n_sersic) * gamma


def _sersic_numbers(values: Mapping[str, float], prefix: str, own_shape: str) -> list[float]:
    """The shape of `kernels.sersic`, as `_SERSIC`; the ellipticity is `<own_shape>e1`, e2."""
    e1, e2 = values[f"{own_shape}e1"], values[f"{own_shape}e2"]
    n_sersic = values[f"{prefix}_n_sersic"]
    R_sersic = values[f"{prefix}_R_sersic"]
    norm = math.sqrt(max(abs(1.0 - e1**2 - e2**2), 1e-6)) * R_sersic
    matrix = [(1.0 - e1) / norm, -e2 / norm, (1.0 + e1) / norm]
    return [*matrix, _sersic_b_n(n_sersic), 1.0 / n_sersic, (_SERSIC_SMOOTHING / R_sersic) ** 2]


def _padded(
    name: str, entries: np.ndarray, owner: np.ndarray, lenses: int
) -> dict[str, np.ndarray]:
    """Entries [E, …] as one array for each lens, and in how many steps they are summed."""
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=lenses)
    first = np.cumsum(counts) - counts
    padded = np.zeros((lenses, _bucket(int(counts.max())), halo_poles.ENTRY_SIZE), np.float32)
    padded[owner[order], np.arange(len(owner)) - first[owner[order]]] = entries[order]
    # Rows of zeros would divide 0 by 0 at a distance of 0: their denominators are 1 instead.
    padded[..., -1] = np.where(padded[..., 2] == 0.0, 1.0, padded[..., -1])
    return {name: padded, f"{name}_steps": (-(-counts // ENTRIES_PER_STEP)).astype(np.int32)}


class _Grid:
    """Where the deflection of some masses is computed, and how it gets to the subpixels.

    Args:
      axis: positions of the subpixels along an axis, arcsec.
      spacing: largest distance of the grid's nodes, arcsec; None for the subpixels themselves.
    """

    def __init__(self, axis: np.ndarray, spacing: float | None):
        from scipy.interpolate import make_interp_spline

        self._matrix = None
        step = axis[1] - axis[0]
        if spacing is not None and spacing > 1.5 * step:
            # Two more nodes on each side keep a spline's ends out of the image.
            number = math.ceil((axis[-1] - axis[0]) / spacing) + 1
            spacing = (axis[-1] - axis[0]) / (number - 1)
            nodes = axis[0] + spacing * np.arange(-2, number + 2)
            spline = make_interp_spline(nodes, np.eye(len(nodes)), k=5)
            self._matrix = spline(axis).astype(np.float32)
            axis = nodes
        self._x, self._y = (a.ravel().astype(np.float32) for a in np.meshgrid(axis, axis))
        self._side = len(axis)

    def positions(self) -> tuple[tf.Tensor, tf.Tensor]:
        """x and y of the nodes, arcsec, each [P]."""
        return tf.constant(self._x), tf.constant(self._y)

    def on_subpixels(self, deflection: kernels.Deflection) -> kernels.Deflection:
        """The deflection [P] of the subpixels from that of the nodes."""
        if self._matrix is None:
            return deflection
        matrix = tf.constant(self._matrix)

        def interpolated(component: tf.Tensor) -> tf.Tensor:
            nodes = tf.reshape(component, (self._side, self._side))
            fine = tf.matmul(matrix, tf.matmul(nodes, matrix, transpose_b=True))
            return tf.reshape(fine, [-1])

        return kernels.Deflection(*map(interpolated, deflection))


class FastEngine:
    """Renders a recipe in TensorFlow.

    Args:
      recipe: what to render.
      galaxies: of the recipe's sources; None for the bundled ones.
      at_once: whether all images of a batch are traced at once, which suits a GPU, or one after
        the other, which stays in a processor's cache; None chooses by what is there.

    Raises:
      UserError: if the recipe holds something that this engine can't render.
    """

    def __init__(
        self,
        recipe: Recipe,
        galaxies: GalaxyCatalogue | None = None,
        at_once: bool | None = None,
    ):
        self.recipe = recipe
        self._at_once = at_once
        if at_once is None:
            self._at_once = bool(tf.config.list_physical_devices("GPU"))
        self._galaxies = galaxies
        if recipe.has_galaxies and galaxies is None:
            self._galaxies = GalaxyCatalogue.open(None)
        self._isothermal = "gamma_epl" not in recipe.priors
        self._lens_light = "lens_magnitude" in recipe.priors
        laws = recipe.substructure.values()
        vortices = [law for law in laws if isinstance(law, Vortex)]
        self._beads = vortices[0].num_beads if vortices else 0
        if any(law.num_beads != self._beads for law in vortices):
            raise UserError(
                f"recipe {recipe.name} has vortices of different numbers of beads; "
                "use --engine=lenstronomy"
            )
        self._terms = self._series_terms()
        side = recipe.num_pix * recipe.supersampling
        axis = (np.arange(side) - 0.5 * (side - 1)) * (
            recipe.instrument.pixel_scale / recipe.supersampling
        )
        self._side = side
        self._subpixels = _Grid(axis, None)
        self._grids = {}
        has_halos = any(isinstance(law, Population) for law in laws)
        if has_halos or any(isinstance(law, PointSubhalos) for law in laws):
            self._grids["exact"] = self._subpixels
        if has_halos:
            self._grids["smooth"] = _Grid(axis, recipe.instrument.pixel_scale / NODES_PER_PIXEL)
        self._scale = recipe.deflection_scale
        self._optics: list[np.ndarray] = [self._band_optics(band) for band in recipe.bands]
        self._render = tf.function(self._render_graph, jit_compile=True)
        self._observe = tf.function(
            self._observe_graph, jit_compile=recipe.noise != "deeplense_counts"
        )

    def _series_terms(self) -> int:
        """Terms of the power law's series that the prior's largest ellipticity needs."""
        sizes = [max(map(abs, self.recipe.priors[name].support)) for name in ("e1", "e2")]
        largest = math.hypot(*sizes)
        if largest > MAX_ELLIPTICITY:
            raise UserError(
                f"recipe {self.recipe.name} has ellipticities up to {largest:.2f}, the fast engine "
                f"renders up to {MAX_ELLIPTICITY}; use --engine=lenstronomy"
            )
        if largest == 0.0:
            return 1
        return 1 + math.ceil(math.log(_SERIES_ACCURACY) / math.log(largest))

    def _band_optics(self, instrument) -> np.ndarray:
        """The PSF of a band: a matrix for each axis, or the transform of a kernel."""
        from scipy import fft

        recipe = self.recipe
        if instrument.psf_kernel is None:
            matrix = gaussian_matrix(instrument, recipe.num_pix, recipe.supersampling)
            return matrix.astype(np.float32)
        kernel = kernel_on_grid(instrument, recipe.supersampling, recipe.num_pix)
        # Room for a convolution that does not wrap around, of a size that transforms quickly;
        # the kernel's middle at the origin.
        side = fft.next_fast_len(self._side + len(kernel) - 1, real=True)
        padded = np.pad(kernel, (0, side - len(kernel)))
        middle = -(len(kernel) // 2)
        return np.fft.rfft2(np.roll(padded, (middle, middle), (0, 1))).astype(np.complex64)

    # Scenes as arrays.

    @functools.cached_property
    def _columns(self) -> dict[str, int]:
        """Position of each number of a lens in the packed rows."""
        names = ["theta_E", "slope", "axis_ratio", "cos", "sin", "center_x", "center_y"]
        names += ["gamma1", "gamma2", "kappa", "source_x", "source_y"]
        bands = range(len(self.recipe.bands))
        if self.recipe.has_galaxies:
            names += ["source_cos", "source_sin"]
        else:
            names += [f"source_{n}" for n in _SERSIC]
        names += [f"source_amplitude_{band}" for band in bands]
        if self._lens_light:
            names += [f"lens_{n}" for n in _SERSIC]
            names += [f"lens_amplitude_{band}" for band in bands]
        if self._beads:
            names += [f"line_{n}" for n in ("x", "y", "cos", "sin", "half_length", "square")]
        return {name: i for i, name in enumerate(names)}

    def _amplitudes(self, values: Mapping[str, float], who: str, flux: float) -> list[float]:
        """Factors that give each band's flux per pixel to a profile of total `flux`."""
        area = self.recipe.instrument.pixel_scale**2
        if who == "source" and self.recipe.source_amplitude is not None:
            return [self.recipe.source_amplitude * area]
        return [
            10.0 ** (-0.4 * (band_magnitude(values, who, i) - band.magnitude_zero_point))
            * (area / flux)
            for i, band in enumerate(self.recipe.bands)
        ]

    def _source_numbers(self, scene: Scene) -> list[float]:
        values = scene.parameters
        if self.recipe.has_galaxies:
            galaxy = self._galaxies.image(scene.galaxy)
            scale, angle = galaxy.scale * values["source_scale"], values["source_phi"]
            turn = [math.cos(angle) / scale, math.sin(angle) / scale]
            return turn + self._amplitudes(values, "source", scale**2)
        flux = _sersic_flux(values["source_R_sersic"], values["source_n_sersic"])
        shape = _sersic_numbers(values, "source", "source_")
        return shape + self._amplitudes(values, "source", flux)

    def _numbers(self, scene: Scene) -> list[float]:
        """The scalars of a lens, in the order of `_columns`."""
        values = scene.parameters
        e1, e2 = values["e1"], values["e2"]
        size, angle = math.hypot(e1, e2), 0.5 * math.atan2(e2, e1)
        slope = values["gamma_epl"] - 1.0 if not self._isothermal else 1.0
        numbers = [
            *(values["theta_E"], slope, (1.0 - size) / (1.0 + size)),
            *(math.cos(angle), math.sin(angle), values["center_x"], values["center_y"]),
            *(values["gamma1"], values["gamma2"], scene.halos.kappa_sheet),
            *(values["source_x"], values["source_y"]),
            *self._source_numbers(scene),
        ]
        if self._lens_light:
            flux = _sersic_flux(values["lens_R_sersic"], values["lens_n_sersic"])
            numbers += _sersic_numbers(values, "lens", "")
            numbers += self._amplitudes(values, "lens", flux)
        if self._beads:
            if isinstance(scene.points, Line):
                points = scene.points
                numbers += [*points.middle, math.cos(points.angle), math.sin(points.angle)]
                numbers += [points.half_length, points.bead_theta_E**2]
            else:
                numbers += [0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
        return numbers

    def pack(self, scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
        """Scenes as arrays, the input of `render_packed`.

        Args:
          scenes: drawn lenses of the engine's recipe.

        Returns:
          `numbers` float32 [N, …]; where the recipe has halos or point masses, `exact` and
          `smooth` float32 [N, E, ENTRY_SIZE] with E a power of two, and with `_steps` after the
          name int32 [N]; with galaxies as sources, `pixels` float32 [N, n, n].

        Raises:
          UserError: if a lens has more than `MAX_HALOS` halos, or one that can't be represented.
        """
        packed = {"numbers": np.array([self._numbers(scene) for scene in scenes], np.float32)}
        if self._grids:
            packed |= self._pack_entries(scenes)
        if self.recipe.has_galaxies:
            rows = [scene.galaxy for scene in scenes]
            packed["pixels"] = self._galaxies.stack(rows, galaxy_catalogue.MAX_SIDE).pixels
        return packed

    def _pack_entries(self, scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
        for scene in scenes:
            number = max(len(scene.halos), len(scene.points))
            if number > MAX_HALOS:
                raise UserError(
                    f"a lens of recipe {self.recipe.name} has {number:,} halos, more than the fast "
                    f"engine's {MAX_HALOS:,}; raise the lower mass limit or use "
                    "--engine=lenstronomy"
                )
        masses = [PointMasses.none() if isinstance(s.points, Line) else s.points for s in scenes]
        point_owner = np.repeat(np.arange(len(scenes)), [len(m) for m in masses])
        points = halo_poles.point_entries(PointMasses.joined(masses))
        halos = Halos.joined([scene.halos for scene in scenes])
        halo_owner = np.repeat(np.arange(len(scenes)), [len(s.halos) for s in scenes])
        entries, halo = halo_poles.halo_entries(halos)
        bright = halos.alpha_Rs[halo] >= BRIGHT_ALPHA
        owner = halo_owner[halo]
        packed = _padded(
            "exact",
            np.concatenate([points, entries[bright]]),
            np.concatenate([point_owner, owner[bright]]),
            len(scenes),
        )
        if "smooth" in self._grids:
            packed |= _padded("smooth", entries[~bright], owner[~bright], len(scenes))
        return packed

    # The graph.

    def _trace(self, numbers, packed: Mapping[str, tf.Tensor]) -> kernels.Deflection:
        """Source-plane positions of the subpixels of one lens."""
        x, y = self._subpixels.positions()
        total = kernels.elliptical_power_law(
            x,
            y,
            slope=ISOTHERMAL if self._isothermal else numbers["slope"],
            terms=self._terms,
            **{n: numbers[n] for n in ("theta_E", "axis_ratio", "cos", "sin")},
            **{n: numbers[n] for n in ("center_x", "center_y")},
        )
        total += kernels.shear(x, y, gamma1=numbers["gamma1"], gamma2=numbers["gamma2"])
        if self._beads:
            total += kernels.line(
                x,
                y,
                middle_x=numbers["line_x"],
                middle_y=numbers["line_y"],
                half_length=numbers["line_half_length"],
                theta_E_squared=numbers["line_square"],
                number=self._beads,
                **{n: numbers[f"line_{n}"] for n in ("cos", "sin")},
            )
        for name, grid in self._grids.items():
            masses = kernels.entries_sum(*grid.positions(), packed[name], packed[f"{name}_steps"])
            total += grid.on_subpixels(masses)
        if "smooth" in self._grids:
            total += kernels.convergence_sheet(
                x, y, **{n: numbers[n] for n in ("kappa", "center_x", "center_y")}
            )
        return kernels.Deflection(x - self._scale * total.x, y - self._scale * total.y)

    def _one(self, packed: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The image [H, W, C] of one lens."""
        row = packed["numbers"]
        numbers = {name: row[column] for name, column in self._columns.items()}
        beta = self._trace(numbers, packed)
        position = {"center_x": numbers["source_x"], "center_y": numbers["source_y"]}
        if self.recipe.has_galaxies:
            turn = {n: numbers[f"source_{n}"] for n in ("cos", "sin")}
            source = kernels.picture(beta.x, beta.y, packed["pixels"], **position, **turn)
        else:
            own = {n: numbers[f"source_{n}"] for n in _SERSIC}
            source = kernels.sersic(beta.x, beta.y, **position, **own)
        light = None
        if self._lens_light:
            own = {n: numbers[f"lens_{n}"] for n in _SERSIC}
            own |= {n: numbers[n] for n in ("center_x", "center_y")}
            light = kernels.sersic(*self._subpixels.positions(), **own)
        bands = []
        for band, optics in enumerate(self._optics):
            samples = source * numbers[f"source_amplitude_{band}"]
            if light is not None:
                samples += light * numbers[f"lens_amplitude_{band}"]
            bands.append(self._through(optics, tf.reshape(samples, (self._side, self._side))))
        return tf.stack(bands, axis=-1)

    def _through(self, optics: np.ndarray, samples: tf.Tensor) -> tf.Tensor:
        """Convolves subpixels [side, side] with a PSF and averages them to pixels."""
        if not np.iscomplexobj(optics):
            matrix = tf.constant(optics)
            return tf.matmul(matrix, tf.matmul(samples, matrix, transpose_b=True))
        padded = optics.shape[0]
        transform = tf.signal.rfft2d(samples, [padded, padded]) * tf.constant(optics)
        image = tf.signal.irfft2d(transform, [padded, padded])
        image = image[: self._side, : self._side]
        pixels, subpixels = self.recipe.num_pix, self.recipe.supersampling
        return tf.reduce_mean(tf.reshape(image, (pixels, subpixels, pixels, subpixels)), (1, 3))

    def _render_graph(self, packed: Mapping[str, tf.Tensor]) -> tf.Tensor:
        packed = dict(packed)
        if not self._at_once:
            return tf.map_fn(self._one, packed, fn_output_signature=tf.float32)
        # As many steps for every image, so that their loops are one.
        keys = [f"{name}_steps" for name in self._grids]
        most = {key: tf.reduce_max(packed.pop(key)) for key in keys}
        return tf.vectorized_map(
            lambda one: self._one({**one, **most}), packed, fallback_to_while_loop=False
        )

    def render_packed(self, packed: Mapping[str, np.ndarray]) -> tf.Tensor:
        """Noise-free images, float32 [N, H, W, C], e-/s per pixel, of packed scenes."""
        return self._render({name: tf.convert_to_tensor(a) for name, a in packed.items()})

    def render(self, scenes: Sequence[Scene]) -> np.ndarray:
        """Noise-free images, float32 [N, H, W, C], e-/s per pixel (Model I: its own unit)."""
        return self.render_packed(self.pack(scenes)).numpy()

    # Noise.

    def _observe_graph(self, models: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        recipe = self.recipe
        if recipe.noise == "none_doubled":
            return 2.0 * models
        law = self._instrument_noise if recipe.noise == "instrument" else self._count_noise
        return tf.map_fn(law, (models, seeds), fn_output_signature=tf.float32)

    def _instrument_noise(self, model_and_seed) -> tf.Tensor:
        """Sky, read and shot noise are normal and independent: one draw of their sum."""
        model, seed = model_and_seed
        times = [band.total_exposure_time for band in self.recipe.bands]
        background = [band.background_rms**2 for band in self.recipe.bands]
        variance = tf.constant(background, tf.float32)
        variance += tf.maximum(model, 0.0) / tf.constant(times, tf.float32)
        # Threefry compiles to a third of the time of XLA's default on a processor.
        normal = tf.random.stateless_normal(model.shape, seed, alg="threefry")
        return model + tf.sqrt(variance) * normal

    def _count_noise(self, model_and_seed) -> tf.Tensor:
        """Model I: see `noise`."""
        model, seed = model_and_seed
        low, high = self.recipe.exposure_log10
        exposure, normal, counts = tf.unstack(tf.random.split(seed, 3))
        log10 = tf.random.stateless_uniform((), exposure, low, high)
        time = tf.exp(math.log(10.0) * log10)
        # Shot noise and background are normal and independent: one draw of their sum.
        sigma = tf.sqrt(model / time + DEEPLENSE_BACKGROUND_RMS**2)
        rate = time * (model + sigma * tf.random.stateless_normal(model.shape, normal))
        return tf.random.stateless_poisson(
            model.shape, counts, tf.maximum(rate, 0.0), dtype=tf.float32
        )

    def observe(self, models: tf.Tensor, seeds: np.ndarray) -> tf.Tensor:
        """Adds the recipe's noise.

        Args:
          models: noise-free images, float32 [N, H, W, C].
          seeds: int32 [N, 2], one for each image; the same seed gives the same noise.

        Returns:
          Images as observed, float32 [N, H, W, C].
        """
        return self._observe(tf.convert_to_tensor(models), tf.convert_to_tensor(seeds))
