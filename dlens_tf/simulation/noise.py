"""Noise laws of the recipes, with their variances.

Each takes a noise-free image and a generator and returns a `NoisyImage`. The signal-to-noise
of an image is the matched-filter one, sqrt(Σ signal² / variance) over its pixels.
"""

import dataclasses

import numpy as np
from scipy import stats

from dlens_tf.simulation.recipes import Recipe

DEEPLENSE_BACKGROUND_RMS = 0.01
"""Model I's background noise, in its flux unit."""


@dataclasses.dataclass(frozen=True)
class NoisyImage:
    """An image as observed.

    Attributes:
      image: float64 [H, W, C], in the recipe's flux unit.
      exposure_time: seconds (Model I: its own unit), in the first band.
      background_rms: noise of a pixel without source in the first band, in the image's unit; 0
        without noise. For Model I that of the Gaussian background, before counts are cut at zero.
      snr: matched-filter signal-to-noise; None without noise.
    """

    image: np.ndarray
    exposure_time: float
    background_rms: float
    snr: float | None


def _matched_filter_snr(signal: np.ndarray, variance: np.ndarray) -> float:
    return float(np.sqrt(np.sum(signal**2 / variance)))


def deeplense_counts_variance(model: np.ndarray, exposure_time: float) -> np.ndarray:
    """Variance of Model I counts where they are far above zero: 2 t I + (0.01 t)²."""
    return 2.0 * exposure_time * model + (DEEPLENSE_BACKGROUND_RMS * exposure_time) ** 2


def _deeplense_counts(model: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> NoisyImage:
    """Model I: Gaussian shot noise and background, then a Poisson draw of the clipped sum."""
    exposure_time = 10.0 ** rng.uniform(*recipe.exposure_log10)
    shot = rng.normal(size=model.shape) * np.sqrt(np.abs(model) / exposure_time)
    background = rng.normal(size=model.shape) * DEEPLENSE_BACKGROUND_RMS
    rate = exposure_time * (model + shot + background)
    return NoisyImage(
        image=rng.poisson(np.maximum(rate, 0.0)).astype(np.float64),
        exposure_time=exposure_time,
        background_rms=DEEPLENSE_BACKGROUND_RMS * exposure_time,
        snr=_matched_filter_snr(
            exposure_time * model, deeplense_counts_variance(model, exposure_time)
        ),
    )


def _instrument(model: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> NoisyImage:
    """Sky and read noise plus Gaussian shot noise, lenstronomy's `noise_for_model`."""
    background, shot = instrument_noise(model, recipe)
    noise = background * rng.normal(size=model.shape) + shot * rng.normal(size=model.shape)
    return NoisyImage(
        image=model + noise,
        exposure_time=recipe.instrument.total_exposure_time,
        background_rms=recipe.instrument.background_rms,
        snr=_matched_filter_snr(model, background**2 + shot**2),
    )


def instrument_noise(model: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Deviations of the background [C] and of the shot noise [..., C] of images [..., C]."""
    background = np.array([band.background_rms for band in recipe.bands])
    shot = [band.shot_noise(model[..., i]) for i, band in enumerate(recipe.bands)]
    return background, np.stack(shot, axis=-1)


def _none_doubled(model: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> NoisyImage:
    """Published Models II and III: the model added to itself."""
    return NoisyImage(2.0 * model, recipe.instrument.total_exposure_time, 0.0, None)


_LAWS = {
    "deeplense_counts": _deeplense_counts,
    "instrument": _instrument,
    "none_doubled": _none_doubled,
}


def observe(model: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> NoisyImage:
    """Adds the recipe's noise to a noise-free image [H, W, C]."""
    return _LAWS[recipe.noise](model, recipe, rng)


def moments(
    model: np.ndarray, recipe: Recipe, exposure_time: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each pixel under the recipe's noise law.

    Args:
      model: noise-free image [..., C].
      recipe: its noise law and instrument.
      exposure_time: of the image; only Model I's law depends on it.

    Returns:
      (mean, variance), each of the shape of `model`, in the unit of the image and its square.
    """
    if recipe.noise == "none_doubled":
        return 2.0 * model, np.zeros_like(model)
    if recipe.noise == "instrument":
        background, shot = instrument_noise(model, recipe)
        return model, background**2 + shot**2
    # A Poisson draw of the Gaussian rate cut at zero: E = E[max], Var = E[max] + Var[max].
    center = exposure_time * model
    sigma = np.sqrt(center + (DEEPLENSE_BACKGROUND_RMS * exposure_time) ** 2)
    above, density = stats.norm.cdf(center / sigma), stats.norm.pdf(center / sigma)
    mean = center * above + sigma * density
    square = (center**2 + sigma**2) * above + center * sigma * density
    return mean, mean + square - mean**2
