"""Exact likelihood of an image's pixels under the noise laws of `simulation.noise`.

A likelihood knows the observed image; called with noise-free images it gives the logarithm of
its probability, the score (its derivative by each pixel's variables) and the expected information
about them, which is all that `brute_force` needs for Gauss–Newton steps. A pixel's variables are
its noise-free flux and, for counts, the logarithm of the exposure time that all pixels share.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.polynomial import Polynomial
from scipy import special

from dlens_tf.simulation.noise import DEEPLENSE_BACKGROUND_RMS
from dlens_tf.simulation.recipes import Recipe


class Terms(NamedTuple):
    """What a likelihood says of one noise-free image of P pixels, with V variables a pixel.

    Attributes:
      value: logarithm of the likelihood.
      score: float64 [V, P], its derivatives.
      information: float64 [V, V, P], expected information, positive semidefinite.
    """

    value: float
    score: np.ndarray
    information: np.ndarray


class InstrumentNoise:
    """Independent Gaussian noise of sky, read-out and source, its variance that of the model.

    Args:
      image: observed [H, W, C].
      recipe: its bands' backgrounds and exposure times.
    """

    has_exposure = False

    def __init__(self, image: np.ndarray, recipe: Recipe):
        self._data = np.asarray(image, np.float64).ravel()
        self.pixels = np.arange(image.size)
        ones = np.ones(image.shape)
        self._background = (ones * [b.background_rms**2 for b in recipe.bands]).ravel()
        self._inverse_time = (ones / [b.total_exposure_time for b in recipe.bands]).ravel()

    def __call__(self, model: np.ndarray, log10_exposure: float | None = None) -> Terms:
        """Terms of a noise-free image [P]."""
        slope = np.where(model > 0.0, self._inverse_time, 0.0)
        variance = self._background + slope * model
        weight = 1.0 / variance
        residual = self._data - model
        scaled = residual * weight
        value = -0.5 * np.sum(residual * scaled + np.log(variance))
        score = scaled + 0.5 * slope * (scaled**2 - weight)
        information = weight + 0.5 * (slope * weight) ** 2
        return Terms(float(value), score[None], information[None, None])


def log_counts_probability(
    counts: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> np.ndarray:
    """Logarithm of the probability of a Poisson count whose rate is a Gaussian cut at zero.

    The integral over the rate λ is closed for no counts. For k counts it is taken over ln λ by
    Laplace's method with its next term (Tierney & Kadane 1986), good to 1e-3 for a single count
    and better by 1/k² beyond.

    Args:
      counts: k, whole numbers as floats, of one shape with the others.
      mean: of the Gaussian before it is cut.
      variance: of the Gaussian.
    """
    deviation = np.sqrt(variance)
    z = mean / deviation
    dark = counts == 0.0
    # k = 0: the cut part, and ∫ exp(-λ) N(λ) dλ.
    none = np.logaddexp(
        special.log_ndtr(-z[dark]),
        special.log_ndtr(z[dark] - deviation[dark]) + (0.5 * variance[dark] - mean[dark]),
    )
    k, mu, s2 = counts[~dark], mean[~dark], variance[~dark]
    inverse = 1.0 / s2
    half = 0.5 * (mu - s2)
    root = np.sqrt(half**2 + (k + 1.0) * s2)
    # The positive root of λ² + (s² - µ) λ = (k + 1) s², without cancellation.
    rate = np.where(half > 0.0, half + root, (k + 1.0) * s2 / (root - half))
    scaled = rate * inverse
    curvature = rate + scaled * (2.0 * rate - mu)
    third = rate + scaled * (4.0 * rate - mu)
    fourth = rate + scaled * (8.0 * rate - mu)
    correction = (5.0 / 24.0 * third**2 / curvature - 0.125 * fourth) / curvature**2
    some = (
        (k + 1.0) * np.log(rate)
        - rate
        - 0.5 * inverse * (rate - mu) ** 2
        - special.gammaln(k + 1.0)
        - 0.5 * np.log(curvature * s2)
        + np.log1p(correction)
    )
    result = np.empty_like(mean)
    result[dark], result[~dark] = none, some
    return result


class DeepLenseCounts:
    """Model I: Poisson counts of a Gaussian rate cut at zero, with an unknown exposure time.

    Pixels that are dark in `model` tell of the exposure time only: they keep that flux, and their
    likelihood, a function of the exposure time alone, is a polynomial fitted once.

    Args:
      image: observed counts [H, W, 1].
      recipe: with noise law "deeplense_counts".
      model: noise-free image [H, W, 1] near the truth.
      log10_exposure: of an exposure time near the truth.
    """

    has_exposure = True
    _DARK = 1e-5  # of flux; the background's deviation is 1e-2
    _REACH = 0.05  # of the polynomial, dex of exposure time

    def __init__(self, image: np.ndarray, recipe: Recipe, model: np.ndarray, log10_exposure: float):
        del recipe
        data, model = (np.asarray(a, np.float64).ravel() for a in (image, model))
        dark = model < self._DARK
        self.pixels = np.flatnonzero(~dark)
        self._data = data[self.pixels]
        self._exposure = log10_exposure
        shifts = np.linspace(-self._REACH, self._REACH, 9)
        values = [_counts_log_probability(data[dark], model[dark], log10_exposure + s).sum()
                  for s in shifts]  # fmt: skip
        self._dark = Polynomial.fit(shifts, values, 4)
        self._dark_slope = self._dark.deriv()
        self._fluxes = np.concatenate([[0.0], np.geomspace(1e-4, 1.5 * model.max(), 40)])
        self._informations = np.stack(
            [_counts_information(flux, log10_exposure) for flux in self._fluxes], axis=-1
        )
        # At no flux, of all dark pixels.
        self._dark_information = dark.sum() * self._informations[1, 1, 0]

    def __call__(self, model: np.ndarray, log10_exposure: float) -> Terms:
        """Terms of a noise-free image at `pixels`; the second variable is the exposure's log10."""
        flux_step, exposure_step = 1e-5, 1e-6
        own = _counts_log_probability(self._data, model, log10_exposure)
        by_flux = _counts_log_probability(self._data, model + flux_step, log10_exposure)
        by_exposure = _counts_log_probability(self._data, model, log10_exposure + exposure_step)
        shift = log10_exposure - self._exposure
        score = np.stack([(by_flux - own) / flux_step, (by_exposure - own) / exposure_step])
        information = np.empty((2, 2, len(model)))
        for i, j in ((0, 0), (0, 1), (1, 1)):
            information[i, j] = np.interp(model, self._fluxes, self._informations[i, j])
        information[1, 0] = information[0, 1]
        # Shared by all pixels, it matters only in the sum.
        score[1] += self._dark_slope(shift) / len(model)
        information[1, 1] += self._dark_information / len(model)
        return Terms(float(own.sum() + self._dark(shift)), score, information)


def _counts_log_probability(
    counts: np.ndarray, model: np.ndarray, log10_exposure: float
) -> np.ndarray:
    exposure = 10.0**log10_exposure
    mean = exposure * model
    return log_counts_probability(counts, mean, mean + (DEEPLENSE_BACKGROUND_RMS * exposure) ** 2)


def _counts_information(flux: float, log10_exposure: float) -> np.ndarray:
    """Expected information [2, 2] of a pixel about its flux and the exposure's log10."""
    exposure = 10.0**log10_exposure
    mean = exposure * flux
    deviation = math.sqrt(2.0 * mean + (DEEPLENSE_BACKGROUND_RMS * exposure) ** 2)
    reach = 8.0 * deviation + 10.0
    counts = np.arange(max(0.0, math.floor(mean - reach)), mean + reach)
    flux_step, exposure_step = 1e-5, 1e-6
    fluxes = np.full(len(counts), flux)
    own = _counts_log_probability(counts, fluxes, log10_exposure)
    by_flux = _counts_log_probability(counts, fluxes + flux_step, log10_exposure)
    by_exposure = _counts_log_probability(counts, fluxes, log10_exposure + exposure_step)
    score = np.stack([(by_flux - own) / flux_step, (by_exposure - own) / exposure_step])
    return (score * np.exp(own)) @ score.T


def make_likelihood(
    image: np.ndarray, recipe: Recipe, model: np.ndarray, log10_exposure: float | None
) -> InstrumentNoise | DeepLenseCounts:
    """The likelihood of an observed image [H, W, C].

    Args:
      image: observed.
      recipe: its noise law; it must have one.
      model: noise-free image [H, W, C] near the truth.
      log10_exposure: near the truth, for counts.
    """
    if recipe.noise == "instrument":
        return InstrumentNoise(image, recipe)
    return DeepLenseCounts(image, recipe, model, log10_exposure)
