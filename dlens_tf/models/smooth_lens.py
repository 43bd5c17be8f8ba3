"""A front end that shows the network what the smooth lens does not explain.

In a recipe with a fixed macro-model only the source's position, and in Model I the exposure,
change the smooth image. `SmoothLensResidual` fits them to each image by Gauss–Newton steps
inside the graph and hands on the whitened residual, in which substructure stands out, beside
the image and the fitted smooth model. It knows the recipe's macro-model: right for the noisy
legacy recipes, whose training images reveal it, and of no use for lenses with a free macro-model.
"""

import math

import keras
import numpy as np
from keras import ops

from dlens_tf.errors import UserError
from dlens_tf.models import fitting
from dlens_tf.simulation.noise import DEEPLENSE_BACKGROUND_RMS
from dlens_tf.simulation.recipes import Recipe

_FREE = {"source_x", "source_y"}
NOISE_LAWS = ("deeplense_counts", "instrument")


def check_recipe(recipe: Recipe) -> None:
    """Raises a `UserError` if this front end does not fit the recipe."""
    fits = (
        {p.name for p in recipe.shared_parameters.free} == _FREE
        and recipe.noise in NOISE_LAWS
        and recipe.supersampling == 1
        and len(recipe.bands) == 1
        and recipe.instrument.psf_kernel is None
        and not recipe.has_galaxies
        and "lens_magnitude" not in recipe.priors
    )
    if not fits:
        raise UserError(
            f"front end 'smooth_residual' needs a noisy recipe with a fixed macro-model, one band "
            f"and a Gaussian PSF, which '{recipe.name}' is not; use --front_end=flux"
        )
    index = recipe.shared_parameters["source_n_sersic"].prior.value
    if index != 1.0:
        raise UserError(
            f"front end 'smooth_residual' needs a source of Sersic index 1, that of "
            f"'{recipe.name}' is {index:g}; use --front_end=flux"
        )


@keras.saving.register_keras_serializable(package="dlens_tf")
class SmoothLensResidual(keras.layers.Layer):
    """Image, smooth model and whitened residual, cropped and binned.

    The smooth model is scale × PSF ∗ Sersic(beta(theta) - source position). Position and scale
    start from the best template of a grid and are refined by damped Gauss–Newton steps on the
    noise-weighted residual.

    Args:
      crop: central pixels per side that are kept.
      binning: pixels per side that are averaged after the fit.
      grid: source positions per axis in the template grid.
      position_range: half-width of that grid, arcsec.
      steps: Gauss–Newton steps.
      noise: "deeplense_counts" (photon counts; the scale is the exposure time) or
        "instrument" (Gaussian background and shot noise).
      background_rms: of the instrument, in the image's unit; of Model I at exposure 1.
      exposure_time: of the instrument, s; ignored for counts.
      source: Sersic source: amplitude (surface brightness at R_sersic times the pixel's area),
        R_sersic, e1, e2; its index is 1.
      psf_size: length of the one-dimensional kernel of the (separable) PSF.

    Input: images [N, H, W, 1], raw flux. Output: float32 [N, crop/binning, crop/binning, 3]:
    stretched image, stretched smooth model, residual in standard deviations.

    The unlensed coordinates, the kernel and the templates are weights; `for_recipe` sets them.
    """

    def __init__(
        self,
        crop: int,
        binning: int,
        noise: str,
        background_rms: float,
        exposure_time: float,
        source: dict,
        psf_size: int,
        grid: int = 9,
        position_range: float = 0.36,
        steps: int = 4,
        **kwargs,
    ):
        super().__init__(**{**kwargs, "dtype": "float32", "trainable": False})
        if crop % (4 * binning):
            raise ValueError(f"crop {crop} must be a multiple of 4 × binning {binning}")
        self.crop = crop
        self.binning = binning
        self.noise = noise
        self.background_rms = background_rms
        self.exposure_time = exposure_time
        self.source = dict(source)
        self.psf_size = psf_size
        self.grid = grid
        self.position_range = position_range
        self.steps = steps

    @classmethod
    def for_recipe(
        cls, recipe: Recipe, crop: int | None = None, binning: int = 1, **kwargs
    ) -> "SmoothLensResidual":
        """The front end of a recipe: ray-shoots its macro-model with lenstronomy.

        Raises:
          UserError: if the recipe is noise-free, or its macro-model or Sersic index is not fixed.
        """
        check_recipe(recipe)
        from dlens_tf.simulation import lenstronomy_engine

        optics = lenstronomy_engine.smooth_optics(recipe)
        fixed = {p.name: p.prior.value for p in recipe.shared_parameters if not p.is_free}
        # A little beyond the prior, so that noise does not push the fit against the border.
        reach = np.abs(recipe.shared_parameters.select(sorted(_FREE)).supports).max()
        kwargs.setdefault("position_range", round(float(reach) + 0.01, 6))
        counts = recipe.noise == "deeplense_counts"
        crop = crop or recipe.num_pix
        layer = cls(
            crop=crop,
            binning=binning,
            noise=recipe.noise,
            background_rms=DEEPLENSE_BACKGROUND_RMS if counts else recipe.instrument.background_rms,
            exposure_time=1.0 if counts else recipe.instrument.total_exposure_time,
            source={
                "amplitude": optics.amplitude,
                "R_sersic": fixed["source_R_sersic"],
                "e1": fixed["source_e1"],
                "e2": fixed["source_e2"],
            },
            psf_size=len(optics.psf),
            **kwargs,
        )
        layer.build((None, *recipe.image_shape))
        edge = (recipe.num_pix - crop) // 2
        inner = slice(edge, edge + crop)
        layer.beta.assign(np.stack([optics.beta_x[inner, inner], optics.beta_y[inner, inner]]))
        layer.psf.assign(optics.psf)
        layer.templates.assign(layer._make_templates())
        return layer

    def build(self, input_shape):
        if min(input_shape[1:3]) < self.crop:
            raise ValueError(f"images {input_shape[1:3]} are smaller than the crop {self.crop}")
        side = self.crop // (4 * self.binning)
        self.beta = self.add_weight(
            name="beta", shape=(2, self.crop, self.crop), initializer="zeros", trainable=False
        )
        self.psf = self.add_weight(
            name="psf", shape=(self.psf_size,), initializer="zeros", trainable=False
        )
        self.templates = self.add_weight(
            name="templates",
            shape=(self.grid**2, side * side),
            initializer="zeros",
            trainable=False,
        )

    def _grid_positions(self) -> np.ndarray:
        """Source positions of the templates, float32 [grid², 2], arcsec."""
        axis = np.linspace(-self.position_range, self.position_range, self.grid)
        return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)

    def _make_templates(self) -> np.ndarray:
        """Unit-norm smooth images on the grid, coarsely binned, [grid², pixels]."""
        positions = ops.convert_to_tensor(self._grid_positions())
        images = self._coarse(self._convolve(self._sersic(positions)[0]))
        images = ops.convert_to_numpy(images)
        return images / np.linalg.norm(images, axis=1, keepdims=True)

    def _sersic(self, position):
        """Surface brightness and its derivatives by source position, each [N, crop, crop].

        `position` is [N, 2]. Sersic index 1: I = A exp(-b (R / R_s - 1)), b = 1.9992 - 0.3271,
        with lenstronomy's product-average elliptical radius.
        """
        e1, e2 = self.source["e1"], self.source["e2"]
        size = math.hypot(e1, e2)
        q, phi = (1.0 - size) / (1.0 + size), 0.5 * math.atan2(e2, e1)
        slope = (1.9992 - 0.3271) / self.source["R_sersic"]
        dx = self.beta[0] - position[:, 0, None, None]
        dy = self.beta[1] - position[:, 1, None, None]
        along = (math.cos(phi) * dx + math.sin(phi) * dy) * math.sqrt(q)
        across = (-math.sin(phi) * dx + math.cos(phi) * dy) / math.sqrt(q)
        radius = ops.sqrt(along**2 + across**2 + 1e-12)
        brightness = self.source["amplitude"] * ops.exp((1.9992 - 0.3271) - slope * radius)
        pull = slope * brightness / radius
        along, across = along * math.sqrt(q), across / math.sqrt(q)
        by_x = pull * (math.cos(phi) * along - math.sin(phi) * across)
        by_y = pull * (math.sin(phi) * along + math.cos(phi) * across)
        return brightness, by_x, by_y

    def _convolve(self, images):
        """PSF convolution of [N, crop, crop], one axis after the other."""
        # Shifted sums: several times faster on a CPU than a one-channel convolution.
        reach = self.psf_size // 2
        padded = ops.pad(images, [(0, 0), (reach, reach), (reach, reach)])
        rows = sum(self.psf[i] * padded[:, i : i + self.crop] for i in range(self.psf_size))
        return sum(self.psf[i] * rows[:, :, i : i + self.crop] for i in range(self.psf_size))

    def _bin(self, images, factor: int):
        """Means of factor × factor pixels of [N, S, S]."""
        if factor == 1:
            return images
        side = self.crop // factor
        return ops.mean(ops.reshape(images, (-1, side, factor, side, factor)), axis=(2, 4))

    def _coarse(self, images):
        binned = self._bin(images, 4 * self.binning)
        side = self.crop // (4 * self.binning)
        return ops.reshape(binned, (-1, side * side))

    def _expectation(self, model, scale):
        """Mean and variance of each pixel, and the mean's derivative by scale × model."""
        if self.noise == "instrument":
            return fitting.gaussian_moments(scale * model, self.background_rms, self.exposure_time)
        return fitting.count_moments(scale * model, self.background_rms * scale)

    def _start(self, images):
        """Position [N, 2] and scale [N] of the best template."""
        coarse = self._coarse(images)
        coarse = coarse - ops.min(coarse, axis=1, keepdims=True)
        best = ops.argmax(ops.matmul(coarse, ops.transpose(self.templates)), axis=1)
        position = ops.take(ops.convert_to_tensor(self._grid_positions()), best, axis=0)
        model = self._convolve(self._sersic(position)[0])
        scale = ops.sum(images * model, axis=(1, 2)) / ops.sum(model * model, axis=(1, 2))
        return position, ops.maximum(scale, 1e-3)

    def _step(self, images, position, log_scale):
        """One damped Gauss–Newton step in (x, y, log scale)."""
        derivatives = [self._convolve(image) for image in self._sersic(position)]
        scale = ops.exp(log_scale)[:, None, None]
        mean, variance, slope = self._expectation(derivatives[0], scale)
        weight = ops.rsqrt(variance)
        residual = (images - mean) * weight
        columns = [slope * scale * d * weight for d in (*derivatives[1:], derivatives[0])]
        jacobian = ops.stack([ops.reshape(c, (-1, self.crop**2)) for c in columns], axis=1)
        normal = ops.matmul(jacobian, ops.transpose(jacobian, (0, 2, 1)))
        gradient = ops.einsum("nkp,np->nk", jacobian, ops.reshape(residual, (-1, self.crop**2)))
        diagonal = ops.diagonal(normal, axis1=1, axis2=2)
        damped = normal + (1e-3 * diagonal + 1e-6)[:, :, None] * ops.eye(3)
        change = fitting.solve_positive(damped, gradient[:, :, None])[..., 0]
        limit = np.float32([0.1, 0.1, 0.5])
        change = ops.clip(change, -limit, limit)
        position = ops.clip(position + change[:, :2], -self.position_range, self.position_range)
        return position, log_scale + change[:, 2]

    def fit(self, images):
        """Fits source position [N, 2] (arcsec) and scale [N] to cropped images [N, crop, crop]."""
        position, scale = self._start(images)
        log_scale = ops.log(scale)
        for _ in range(self.steps):
            position, log_scale = self._step(images, position, log_scale)
        return position, ops.exp(log_scale)

    def call(self, images):
        height, width = images.shape[1:3]
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        images = images[:, top : top + self.crop, left : left + self.crop, 0]
        position, scale = self.fit(images)
        scale = scale[:, None, None]
        model = self._convolve(self._sersic(position)[0])
        mean, variance, _ = self._expectation(model, scale)
        residual = self._bin((images - mean) * ops.rsqrt(variance), self.binning) * self.binning
        brightness = self._stretch(self._bin(images / scale, self.binning))
        smooth = self._stretch(self._bin(model, self.binning))
        return ops.stop_gradient(ops.stack([brightness, smooth, residual], axis=-1))

    def _stretch(self, brightness):
        return ops.arcsinh(brightness / (0.05 * self.source["amplitude"]))

    def compute_output_shape(self, input_shape):
        side = self.crop // self.binning
        return (input_shape[0], side, side, 3)

    def get_config(self):
        return {
            **super().get_config(),
            "crop": self.crop,
            "binning": self.binning,
            "noise": self.noise,
            "background_rms": self.background_rms,
            "exposure_time": self.exposure_time,
            "source": self.source,
            "psf_size": self.psf_size,
            "grid": self.grid,
            "position_range": self.position_range,
            "steps": self.steps,
        }
