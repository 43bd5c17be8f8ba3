"""A front end that fits the smooth lens to each image, inside the graph, and tests for a vortex.

`LensFit` fits whatever the recipe leaves free of macro-model, source and exposure by damped
Gauss–Newton steps, and hands on

* pictures: the image, the fitted smooth lens, and the whitened residual, in which
  substructure stands out. The lens has all the mass of a vortex as a point in its centre: what
  tells vortices apart is how they differ from that;
* evidence: what the residual says, to first order in the vortex's deflection and with the
  smooth lens marginalised, about each vortex of a grid of lengths and angles;
* facts: the fitted parameters and how well they fit.

To first order a difference α in deflection changes the image by -(α · ∇S), S being the source as
seen through the lens. With T_a that change for vortex a instead of the point, and J the
derivatives by the free parameters, both whitened, the residual r has the log-likelihood ratio
s_a - n_a / 2 with s_a = T_a·r and n_a = T_a·T_a, each after projecting the span of J (with the
prior as a ridge) out of T_a. The differences are compressed to their leading singular vectors.

Reference: Vegetti & Koopmans 2009, arXiv:0805.0201 (linear corrections to a smooth lens).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from dlens_tf.errors import UserError
from dlens_tf.models import fitting, lensing
from dlens_tf.simulation.noise import DEEPLENSE_BACKGROUND_RMS
from dlens_tf.simulation.psf import gaussian_matrix
from dlens_tf.simulation.recipes import Recipe
from dlens_tf.simulation.substructure import Vortex

_LENS = ("theta_E", "e1", "e2", "gamma1", "gamma2", "center_x", "center_y")
_SHAPE = ("source_R_sersic", "source_n_sersic", "source_e1", "source_e2")
_POSITION = ("source_x", "source_y")
_MAGNITUDE, _EXPOSURE = "source_magnitude", "log10_exposure_time"
_FITTED = (*_LENS, *_POSITION, *_SHAPE, _MAGNITUDE, _EXPOSURE)
_MASSES = ("galaxy", "vortex", "shear")
"""What deflects, in the smooth model."""
_MOVED = {
    "theta_E": ("galaxy",),
    "e1": ("galaxy",),
    "e2": ("galaxy",),
    "center_x": ("galaxy", "vortex"),
    "center_y": ("galaxy", "vortex"),
}
"""Which of these a parameter changes; the others need no second look."""
_DIFFERENCE = {"theta_E": 1e-2, "source_n_sersic": 1e-2, "source_e1": 1e-2, "source_e2": 1e-2}
_DEFAULT_DIFFERENCE = 2e-3
OUTPUTS = ("evidence", "facts", "pictures")
"""Names of what `LensFit` gives, in the order in which Keras lists them."""
FIT_VERSION = 2
"""Of the mathematics of `LensFit` and `TemplateStart`: changes whenever their outputs do."""
NOISE_FREE_PRECISION = 100.0
"""How much smaller than the instrument's is the noise that noise-free images are weighted with."""


class _Fit(NamedTuple):
    """Parameters of a batch, and what they make of its images."""

    values: keras.KerasTensor  # [N, K]
    signal: keras.KerasTensor  # smooth image [N, crop, crop]
    residual: keras.KerasTensor  # whitened, [N, crop, crop]
    weight: keras.KerasTensor  # of the signal in the whitened image, [N, crop, crop]
    cost: keras.KerasTensor  # that the fit lowers, [N]


def _pick(condition, changed: _Fit, unchanged: _Fit) -> _Fit:
    """One fit or the other, by image."""
    return _Fit(
        *(
            ops.where(ops.reshape(condition, (-1, *(1,) * (len(a.shape) - 1))), a, b)
            for a, b in zip(changed, unchanged, strict=True)
        )
    )


def check_recipe(recipe: Recipe) -> None:
    """Raises a `UserError` if this front end does not fit the recipe."""
    fits = (
        len(recipe.bands) == 1
        and recipe.instrument.psf_kernel is None
        and not recipe.has_galaxies
        and "lens_magnitude" not in recipe.priors
        and "gamma_epl" not in recipe.priors
        and any(isinstance(law, Vortex) for law in recipe.substructure.values())
    )
    if not fits:
        raise UserError(
            f"front end 'lens_fit' needs a recipe with vortices, one band, an isothermal lens, a "
            f"Sersic source and a Gaussian PSF, which '{recipe.name}' is not; use --front_end=flux"
        )


def fitted_parameters(recipe: Recipe) -> dict[str, tuple[float, float, float, float]]:
    """What is fitted: by name, prior mean, deviation, and the range that the fit may use."""
    fitted = {}
    for name in _FITTED[:-1]:
        if name in recipe.priors and recipe.shared_parameters[name].is_free:
            prior = recipe.shared_parameters[name].prior
            low, high = prior.support
            slack = 0.1 * (high - low)
            lowest = 0.8 * low if low > 0.0 else low - slack
            fitted[name] = (prior.mean, prior.std, lowest, high + slack)
    if recipe.noise == "deeplense_counts":
        low, high = recipe.exposure_log10
        fitted[_EXPOSURE] = (0.5 * (low + high), (high - low) / 12**0.5, low - 0.5, high + 0.5)
    return fitted


def _vortex(recipe: Recipe) -> Vortex:
    return next(law for law in recipe.substructure.values() if isinstance(law, Vortex))


def vortex_deflections(
    recipe: Recipe, masses: Sequence[float], angles: Sequence[float], crop: int, binning: int
) -> np.ndarray:
    """Deflections by vortices at the origin, complex128 [masses × angles, S, S], arcsec.

    Means over pixels binned by `binning`; x is the real, y the imaginary part.
    """
    law = _vortex(recipe)
    samples = 2
    side = crop * samples
    step = recipe.instrument.pixel_scale / samples
    axis = (np.arange(side) - 0.5 * (side - 1)) * step
    z = axis[None, :] + 1j * axis[:, None]
    strength = law.bead_theta_E(recipe.plane) ** 2
    fields = []
    for mass in masses:
        half = law.half_length(mass)
        beads = np.linspace(-half, half, law.num_beads)[law.num_beads // 2 :]
        for angle in angles:
            turned = z * np.exp(-1j * angle)
            # Softened by half a subpixel: what a pixel sees of a bead inside it.
            pull = sum(_pull(turned - t, step) + _pull(turned + t, step) for t in beads)
            field = strength * pull * np.exp(1j * angle)
            pixel = samples * binning
            side = crop // binning
            fields.append(field.reshape(side, pixel, side, pixel).mean((1, 3)))
    return np.array(fields)


def _pull(distance: np.ndarray, step: float) -> np.ndarray:
    """Deflection by a mass of Einstein radius 1, softened by half a step; complex arcsec."""
    return distance / (distance.real**2 + distance.imag**2 + (0.5 * step) ** 2)


@functools.lru_cache(maxsize=2)  # a model is built more than once where its fit is kept
def _compressed(
    recipe: Recipe, masses: tuple[float, ...], num_angles: int, crop: int, binning: int, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """Differences of deflection [rank, 2 S²], and each vortex's share of them [grid, rank].

    Their errors weigh alike for all lengths.
    """

    def fields(masses: Sequence[float], angles: Sequence[float]) -> np.ndarray:
        values = vortex_deflections(recipe, masses, angles, crop, binning)
        values = values.reshape(len(values), -1)
        return np.concatenate([values.real, values.imag], axis=1)

    point = fields([masses[-1] + 1.0], [0.0])
    difference = fields(masses, np.arange(num_angles) * (np.pi / num_angles)) - point
    size = np.linalg.norm(difference, axis=1, keepdims=True)
    left, singular, right = np.linalg.svd(difference / size, full_matrices=False)
    share = left[:, :rank] * singular[:rank] * size
    return right[:rank].astype(np.float32), share.astype(np.float32)


@keras.saving.register_keras_serializable(package="dlens_tf")
class LensFit(keras.layers.Layer):
    """Pictures, evidence and facts of images [N, H, W, 1]; see the module.

    Args:
      fitted: what is fitted: by name, prior mean, deviation, lowest and highest value.
      fixed: value of every other parameter of the smooth lens.
      noise: the recipe's noise law.
      background_rms: of a pixel, in the image's unit; of Model I at exposure 1.
      exposure_time: of the instrument, s.
      pixel_scale: arcsec.
      deflection_scale: factor on all deflections.
      point_theta_E: Einstein radius of a vortex's mass as a point, arcsec.
      amplitude: flux of a pixel at the source's R_sersic, or, if the source has a magnitude, flux
        of magnitude 20 times the pixel's area.
      by_magnitude: whether the source has a magnitude.
      crop: central pixels per side that are kept.
      binning: pixels per side that are averaged after the fit.
      supersampling: subpixels per pixel and axis of the smooth model.
      steps: Gauss–Newton steps.
      masses: log10 of the axion masses of the grid of vortices, eV.
      num_angles: their angles, equally spaced over π.
      rank: singular vectors that the vortices' deflections are compressed to.

    Call: images float32 [N, H, W, 1], raw flux, and start values [N, K] in the order of `fitted`.
    Returns a dict of float32: "pictures" [N, S, S, 3] with S = crop / binning, "evidence"
    [N, masses, angles, 3] and "facts" [N, K + 2].

    The PSF and the compressed deflections are weights; `for_recipe` sets them.
    """

    def __init__(
        self,
        fitted: Mapping[str, Sequence[float]],
        fixed: Mapping[str, float],
        noise: str,
        background_rms: float,
        exposure_time: float,
        pixel_scale: float,
        deflection_scale: float,
        point_theta_E: float,
        amplitude: float,
        by_magnitude: bool,
        crop: int,
        binning: int,
        supersampling: int,
        steps: int,
        masses: Sequence[float],
        num_angles: int,
        rank: int,
        **kwargs,
    ):
        super().__init__(**{**kwargs, "dtype": "float32", "trainable": False})
        if crop % binning:
            raise ValueError(f"crop {crop} must be a multiple of binning {binning}")
        self.fitted = {name: list(numbers) for name, numbers in fitted.items()}
        self.fixed = dict(fixed)
        self.noise = noise
        self.background_rms = background_rms
        self.exposure_time = exposure_time
        self.pixel_scale = pixel_scale
        self.deflection_scale = deflection_scale
        self.point_theta_E = point_theta_E
        self.amplitude = amplitude
        self.by_magnitude = by_magnitude
        self.crop = crop
        self.binning = binning
        self.supersampling = supersampling
        self.steps = steps
        self.masses = list(masses)
        self.num_angles = num_angles
        self.rank = rank
        mean, std, low, high = np.array(list(self.fitted.values()), np.float32).T
        self._mean, self._std, self._low, self._high = mean, std, low, high

    @classmethod
    def for_recipe(
        cls,
        recipe: Recipe,
        crop: int | None = None,
        binning: int = 1,
        supersampling: int = 2,
        steps: int = 6,
        num_masses: int = 33,
        num_angles: int = 16,
        rank: int = 64,
        **kwargs,
    ) -> "LensFit":
        """The front end of a recipe.

        Raises:
          UserError: if it does not fit the recipe.
        """
        check_recipe(recipe)
        instrument = recipe.instrument
        crop = crop or recipe.num_pix
        fitted = fitted_parameters(recipe)
        fixed = {
            name: float(recipe.shared_parameters[name].prior.value)
            for name in (*_LENS, *_POSITION, *_SHAPE, _MAGNITUDE)
            if name in recipe.priors and name not in fitted
        }
        by_magnitude = recipe.source_amplitude is None
        unit = recipe.source_amplitude
        if by_magnitude:
            unit = 10.0 ** (-0.4 * (20.0 - instrument.magnitude_zero_point))
        counts = recipe.noise == "deeplense_counts"
        low, high = next(
            priors["log10_m_axion"].support
            for priors in recipe.class_priors.values()
            if "log10_m_axion" in priors
        )
        layer = cls(
            fitted=fitted,
            fixed=fixed,
            noise=recipe.noise,
            background_rms=DEEPLENSE_BACKGROUND_RMS if counts else instrument.background_rms,
            exposure_time=1.0 if counts else instrument.total_exposure_time,
            pixel_scale=instrument.pixel_scale,
            deflection_scale=recipe.deflection_scale,
            point_theta_E=_vortex(recipe).bead_theta_E(recipe.plane)
            * math.sqrt(_vortex(recipe).num_beads),
            amplitude=unit * instrument.pixel_scale**2,
            by_magnitude=by_magnitude,
            crop=crop,
            binning=binning,
            supersampling=min(supersampling, recipe.supersampling),
            steps=steps,
            masses=np.linspace(low, high, num_masses).tolist(),
            num_angles=num_angles,
            rank=rank,
            **kwargs,
        )
        layer.build((None, *recipe.image_shape), (None, len(fitted)))
        for factor, matrix in layer.optics.items():
            matrix.assign(gaussian_matrix(instrument, crop, int(factor)).astype(np.float32))
        grid = tuple(layer.masses), num_angles
        basis, mix = _compressed(recipe, *grid, crop, binning, rank)
        layer.basis.assign(basis)
        layer.mix.assign(mix)
        return layer

    def build(self, images_shape, start_shape):
        del start_shape
        height, width = images_shape[1:3]
        if min(height, width) < self.crop:
            raise ValueError(f"images {(height, width)} are smaller than the crop {self.crop}")
        # By name: TensorFlow saves no dictionaries with other keys.
        self.optics = {
            str(factor): self.add_weight(
                name=f"optics_{factor}",
                shape=(self.crop, self.crop * factor),
                initializer="zeros",
                trainable=False,
            )
            for factor in sorted({1, self.supersampling})
        }
        side = self.crop // self.binning
        self.basis = self.add_weight(
            name="basis", shape=(self.rank, 2 * side**2), initializer="zeros", trainable=False
        )
        self.mix = self.add_weight(
            name="mix",
            shape=(len(self.masses) * self.num_angles, self.rank),
            initializer="zeros",
            trainable=False,
        )

    # The smooth model.

    def _grid(self, factor: int) -> tuple:
        """Positions of subpixels, two arrays [1, P]; spread out in the graph, to keep it small."""
        side = self.crop * factor
        axis = (np.arange(side) - 0.5 * (side - 1)) * (self.pixel_scale / factor)
        axis = ops.convert_to_tensor(axis, dtype="float32")
        x = ops.broadcast_to(axis[None, :], (side, side))
        y = ops.broadcast_to(axis[:, None], (side, side))
        return ops.reshape(x, (1, -1)), ops.reshape(y, (1, -1))

    def _named(self, values) -> dict:
        """All parameters by name, each [N, 1] or a number."""
        named = {name: values[:, i : i + 1] for i, name in enumerate(self.fitted)}
        return {**self.fixed, **named}

    def _deflection(self, named: Mapping, factor: int, masses: Sequence[str] = _MASSES) -> tuple:
        """By some of the `_MASSES`, two arrays [N, P], arcsec."""
        x, y = self._grid(factor)
        lens = {n: ops.convert_to_tensor(named[n], dtype="float32") for n in _LENS}
        gamma = {n: lens.pop(n) for n in ("gamma1", "gamma2")}
        center = {n: lens[n] for n in ("center_x", "center_y")}
        parts = []
        if "galaxy" in masses:
            parts.append(lensing.isothermal(x, y, **lens))
        if "vortex" in masses:
            parts.append(lensing.point_mass(x, y, theta_E=self.point_theta_E, **center))
        if "shear" in masses:
            parts.append(lensing.shear(x, y, **gamma))
        return tuple(self.deflection_scale * sum(part) for part in zip(*parts, strict=True))

    def _source_plane(self, named: Mapping, factor: int) -> tuple:
        """Positions in the source plane, two arrays [N, P], arcsec."""
        x, y = self._grid(factor)
        deflection = self._deflection(named, factor)
        return x - deflection[0], y - deflection[1]

    def _light(self, named: Mapping, beta) -> tuple:
        """Flux per pixel and its gradient in the source plane, before the PSF, each [N, P]."""
        shape = {n: ops.convert_to_tensor(named[n], dtype="float32") for n in (*_POSITION, *_SHAPE)}
        light = lensing.sersic(*beta, **shape)
        log_scale = math.log(self.amplitude)
        if self.by_magnitude:
            log_scale = log_scale - lensing.sersic_log_flux(
                shape["source_R_sersic"], shape["source_n_sersic"]
            )
            log_scale = log_scale + lensing.LOG_FLUX_PER_MAGNITUDE * (named[_MAGNITUDE] - 20.0)
        if self.noise == "none_doubled":
            log_scale = log_scale + math.log(2.0)
        if _EXPOSURE in self.fitted:
            log_scale = log_scale + math.log(10.0) * named[_EXPOSURE]
        scale = ops.exp(ops.convert_to_tensor(log_scale, dtype="float32"))
        return tuple(part * scale for part in light)

    def _through(self, light, factor: int):
        """PSF and average to pixels of [..., P], giving [..., crop, crop]."""
        side = self.crop * factor
        matrix = self.optics[str(factor)]
        light = ops.reshape(light, (-1, side, side))
        return ops.matmul(ops.matmul(matrix, light), ops.transpose(matrix))

    def smooth(self, values):
        """The smooth image [N, crop, crop] of parameters [N, K]."""
        named = self._named(values)
        beta = self._source_plane(named, self.supersampling)
        return self._through(self._light(named, beta)[0], self.supersampling)

    def _derivatives(self, values, with_gradient: bool = False):
        """Changes of the image when parameters [N, K] change by their prior's deviation.

        With the gradient also that of the source along x and y, as seen through the lens:
        [N, K, crop, crop], or [N, K + 2, crop, crop].
        """
        named = self._named(values)
        x, y = self._grid(1)
        beta = self._source_plane(named, 1)
        light, by_x, by_y = self._light(named, beta)
        before = {
            masses: self._deflection(named, 1, masses)
            for masses in dict.fromkeys(_MOVED[n] for n in self.fitted if n in _MOVED)
        }
        changes = []
        for name, std in zip(self.fitted, self._std, strict=True):
            step = _DIFFERENCE.get(name, _DEFAULT_DIFFERENCE)
            moved = {**named, name: named[name] + step}
            if name == "source_x":
                changes.append(-std * by_x)
            elif name == "source_y":
                changes.append(-std * by_y)
            elif name == "gamma1":
                changes.append(-self.deflection_scale * std * (by_x * x - by_y * y))
            elif name == "gamma2":
                changes.append(-self.deflection_scale * std * (by_x * y + by_y * x))
            elif name == _MAGNITUDE:
                changes.append(lensing.LOG_FLUX_PER_MAGNITUDE * std * light)
            elif name == _EXPOSURE:
                changes.append(math.log(10.0) * std * light)
            elif name in _SHAPE:
                changes.append((self._light(moved, beta)[0] - light) * (std / step))
            else:
                old, new = before[_MOVED[name]], self._deflection(moved, 1, _MOVED[name])
                change = by_x * (new[0] - old[0]) + by_y * (new[1] - old[1])
                changes.append(change * (-std / step))
        if with_gradient:
            changes += [by_x, by_y]
        images = self._through(ops.stack(changes, axis=1), 1)
        return ops.reshape(images, (-1, len(changes), self.crop, self.crop))

    def _expectation(self, values, signal):
        """Mean and variance of pixels [N, crop, crop], and the mean's derivative by the signal."""
        if self.noise == "instrument":
            return fitting.gaussian_moments(signal, self.background_rms, self.exposure_time)
        if self.noise == "none_doubled":
            background = self.background_rms / NOISE_FREE_PRECISION
            return fitting.gaussian_moments(signal, background, None)
        time = ops.exp(math.log(10.0) * self._named(values)[_EXPOSURE])[:, :, None]
        return fitting.count_moments(signal, self.background_rms * time)

    # The fit.

    def _compare(self, images, values) -> _Fit:
        """What parameters [N, K] make of cropped images [N, crop, crop]."""
        signal = self.smooth(values)
        mean, variance, slope = self._expectation(values, signal)
        weight = ops.rsqrt(variance)
        residual = (images - mean) * weight
        cost = ops.sum(residual**2 + ops.log(variance), axis=(1, 2))
        cost = cost + ops.sum(self._pull(values) ** 2, axis=1)
        return _Fit(values, signal, residual, weight * slope, cost)

    def _pull(self, values):
        """How far parameters [N, K] are from the prior's mean, in its deviations."""
        return (values - self._mean) / self._std

    def _step(self, images, fit: _Fit, damping) -> tuple[_Fit, keras.KerasTensor]:
        """One damped Gauss–Newton step, kept in the images where it lowers the cost."""
        columns = self._derivatives(fit.values) * fit.weight[:, None]
        columns = ops.reshape(columns, (-1, len(self.fitted), self.crop**2))
        normal = ops.matmul(columns, ops.transpose(columns, (0, 2, 1)))
        normal = normal + np.eye(len(self.fitted), dtype=np.float32)
        flat = ops.reshape(fit.residual, (-1, self.crop**2, 1))
        gradient = ops.matmul(columns, flat) - self._pull(fit.values)[:, :, None]
        ridge = damping[:, None, None] * normal * np.eye(len(self.fitted), dtype=np.float32)
        change = fitting.solve_positive(normal + ridge, gradient)[..., 0]
        moved = fit.values + ops.clip(change, -1.0, 1.0) * self._std
        new = self._compare(images, ops.clip(moved, self._low, self._high))
        better = new.cost < fit.cost
        return _pick(better, new, fit), ops.where(better, 0.2 * damping, 8.0 * damping)

    def _fit(self, images, start) -> _Fit:
        """The fit of cropped images [N, crop, crop] from start values [N, K]."""
        first = self._compare(images, ops.clip(start, self._low, self._high))

        def step(_, state):
            *fit, damping = state
            fit, damping = self._step(images, _Fit(*fit), damping)
            return (*fit, damping)

        state = (*first, 1e-2 * ops.ones_like(first.cost))
        return _Fit(*ops.fori_loop(0, self.steps, step, state)[:-1])

    def fit(self, images, start):
        """Fitted parameters [N, K] of cropped images [N, crop, crop] from start values [N, K]."""
        return self._fit(images, start).values

    def _bin(self, images):
        """Means over binning × binning pixels of [..., c, c], times binning."""
        if self.binning == 1:
            return images
        side, factor = self.crop // self.binning, self.binning
        shape = ops.shape(images)
        images = ops.reshape(images, (*shape[:-2], side, factor, side, factor))
        return ops.mean(images, axis=(-3, -1)) * factor

    def _evidence(self, values, residual, weight):
        """[N, masses, angles, 3]: see `call`; all inputs whitened, residual binned [N, S, S]."""
        number, side = len(self.fitted), self.crop // self.binning
        images = self._bin(self._derivatives(values, with_gradient=True) * weight[:, None])
        images = ops.reshape(images, (-1, number + 2, side**2))
        columns, gradient = images[:, :number], -self.deflection_scale * images[:, number:]
        flat = ops.reshape(residual, (-1, 1, side**2))
        x, y = self.basis[:, : side**2], self.basis[:, side**2 :]
        changes = gradient[:, :1] * x + gradient[:, 1:] * y
        # One look at the changes, which are many, for what they share with columns and residual.
        rows = ops.concatenate([columns, flat], axis=1)
        shared = ops.matmul(rows, ops.transpose(changes, (0, 2, 1)))
        overlap, score = shared[:, :number], ops.transpose(shared[:, number:], (0, 2, 1))
        power = ops.matmul(changes, ops.transpose(changes, (0, 2, 1)))
        moments = ops.matmul(columns, ops.transpose(rows, (0, 2, 1)))
        normal = moments[:, :, :number] + np.eye(number, dtype=np.float32)
        pull = moments[:, :, number:] - self._pull(values)[:, :, None]
        solved = fitting.solve_positive(normal, overlap)
        score = score - ops.matmul(ops.transpose(solved, (0, 2, 1)), pull)
        power = power - ops.matmul(ops.transpose(overlap, (0, 2, 1)), solved)
        score = ops.matmul(self.mix, score)[..., 0]
        power = ops.sum(ops.matmul(self.mix, power) * self.mix, axis=-1)
        power = ops.maximum(power, 1e-6)
        ratio = score - 0.5 * power
        # Never below zero, whatever a compiler makes of the rounding of large numbers.
        ratio = ops.maximum(ops.max(ratio, axis=-1, keepdims=True) - ratio, 0.0)
        channels = [ops.arcsinh(score * ops.rsqrt(power)), -ops.log(1.0 + ratio), ops.log(power)]
        shape = (-1, len(self.masses), self.num_angles, 3)
        return ops.reshape(ops.stack(channels, axis=-1), shape) * np.float32([0.5, 0.3, 0.2])

    def call(self, images, start):
        height, width = images.shape[1:3]
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        images = images[:, top : top + self.crop, left : left + self.crop, 0]
        fit = self._fit(images, start)
        residual = self._bin(fit.residual)
        unit = ops.max(fit.signal, axis=(1, 2), keepdims=True) / 20.0
        pictures = [
            ops.arcsinh(self._bin(images) / (unit * self.binning)) / 2.0,
            ops.arcsinh(self._bin(fit.signal) / (unit * self.binning)) / 2.0,
            ops.arcsinh(residual),
        ]
        quality = ops.log(ops.mean(residual**2, axis=(1, 2)) + 1e-3)
        facts = [self._pull(fit.values), quality[:, None], ops.log(unit[:, :, 0])]
        outputs = {
            "pictures": ops.stack(pictures, axis=-1),
            "evidence": self._evidence(fit.values, residual, fit.weight),
            "facts": ops.concatenate(facts, axis=-1),
        }
        return {name: ops.stop_gradient(value) for name, value in outputs.items()}

    def compute_output_shape(self, images_shape, start_shape):
        del start_shape
        side = self.crop // self.binning
        return {
            "pictures": (images_shape[0], side, side, 3),
            "evidence": (images_shape[0], len(self.masses), self.num_angles, 3),
            "facts": (images_shape[0], len(self.fitted) + 2),
        }

    def get_config(self):
        names = (
            "fitted", "fixed", "noise", "background_rms", "exposure_time", "pixel_scale",
            "deflection_scale", "point_theta_E", "amplitude", "by_magnitude", "crop", "binning",
            "supersampling", "steps", "masses", "num_angles", "rank",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="dlens_tf")
class TemplateStart(keras.layers.Layer):
    """Start values for `LensFit` where only the source's position, and the exposure, are free.

    The best of a grid of smooth images, compared after coarse binning.

    Args:
      parameters: what is fitted, in order: source_x, source_y and perhaps log10_exposure_time.
      crop: central pixels per side that are compared.
      binning: pixels per side that are averaged before.
      positions: source positions per axis in the grid.
      reach: half-width of the grid, arcsec.

    Input: images float32 [N, H, W, 1]. Output: float32 [N, K].

    The templates are a weight; `for_fit` sets it.
    """

    def __init__(
        self,
        parameters: Sequence[str],
        crop: int,
        binning: int,
        positions: int = 9,
        reach: float = 0.35,
        **kwargs,
    ):
        super().__init__(**{**kwargs, "dtype": "float32", "trainable": False})
        self.parameters = list(parameters)
        self.crop = crop
        self.binning = binning
        self.positions = positions
        self.reach = reach

    @classmethod
    def for_fit(cls, fit: LensFit, **kwargs) -> "TemplateStart":
        """Templates of a fit's smooth lens.

        Raises:
          UserError: if more than position and exposure is free.
        """
        names = [*fit.fitted]
        if names[:2] != list(_POSITION) or not set(names[2:]) <= {_EXPOSURE}:
            raise UserError(
                "front end 'lens_fit' needs a network to start from where the macro-model is free: "
                "train one on its parameters and give its run as --start_run"
            )
        reach = max(abs(edge) for edge in fit.fitted["source_x"][2:])
        binning = next(n for n in (8, 7, 4, 1) if fit.crop % n == 0)
        layer = cls(names, fit.crop, binning, reach=float(reach), **kwargs)
        layer.build((None, fit.crop, fit.crop, 1))
        values = np.zeros((layer.positions**2, len(names)), np.float32)
        values[:, :2] = layer._grid()
        images = ops.convert_to_numpy(fit.smooth(ops.convert_to_tensor(values)))
        layer.templates.assign(ops.convert_to_numpy(layer._coarse(images)))
        return layer

    def build(self, input_shape):
        del input_shape
        self.templates = self.add_weight(
            name="templates",
            shape=(self.positions**2, (self.crop // self.binning) ** 2),
            initializer="zeros",
            trainable=False,
        )

    def _grid(self) -> np.ndarray:
        axis = np.linspace(-self.reach, self.reach, self.positions)
        return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)

    def _coarse(self, images):
        side = self.crop // self.binning
        images = ops.reshape(images, (-1, side, self.binning, side, self.binning))
        return ops.reshape(ops.mean(images, axis=(2, 4)), (-1, side**2))

    def call(self, images):
        height, width = images.shape[1:3]
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        coarse = self._coarse(images[:, top : top + self.crop, left : left + self.crop, 0])
        coarse = coarse - ops.min(coarse, axis=1, keepdims=True)
        power = ops.sum(self.templates**2, axis=1)
        match = ops.matmul(coarse, ops.transpose(self.templates))
        best = ops.argmax(match * ops.rsqrt(power), axis=1)
        start = ops.take(ops.convert_to_tensor(self._grid()), best, axis=0)
        if _EXPOSURE not in self.parameters:
            return start
        scale = ops.take_along_axis(match, best[:, None], axis=1)
        scale = scale / ops.take(power, best, axis=0)[:, None]
        return ops.concatenate([start, ops.log10(ops.maximum(scale, 1e-3))], axis=-1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], len(self.parameters))

    def get_config(self):
        names = ("parameters", "crop", "binning", "positions", "reach")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
