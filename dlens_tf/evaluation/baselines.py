"""What a network has to beat: the prior's centre, a linear fit, published numbers, the limit.

The first two are predictors that meet the same test examples; the others are numbers that live
with the recipe.
"""

import dataclasses

import numpy as np

from dlens_tf.parameters import ParameterSet
from dlens_tf.simulation.recipes import InformationLimit, PublishedResult, Recipe

MAX_TRAINING_IMAGES = 5000
"""Training images that the linear fit uses at most; more change it by less than its errors."""


def predict_centre(targets: ParameterSet, num: int) -> tuple[np.ndarray, np.ndarray]:
    """The prior's mean and standard deviation for every example: what no image tells.

    Returns:
      mean and stddev, float64 [num, P] each.
    """
    return np.tile(targets.means, (num, 1)), np.tile(targets.stds, (num, 1))


@dataclasses.dataclass(frozen=True)
class LinearFit:
    """Ridge regression of parameters on summary statistics.

    Attributes:
      centre: mean of each statistic over the training images [K].
      scale: its standard deviation, 1 for constant ones [K].
      weights: [K, P].
      intercept: [P].
      residual_std: rms of the residuals on the training images [P].
      supports: prior ranges [P, 2], to which predictions are kept.
      num_images: training images used.
    """

    centre: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray
    residual_std: np.ndarray
    supports: np.ndarray
    num_images: int

    def predict(self, statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predictions from statistics [N, K]: mean and stddev, float64 [N, P] each."""
        mean = (statistics - self.centre) / self.scale @ self.weights + self.intercept
        mean = np.clip(mean, self.supports[:, 0], self.supports[:, 1])
        return mean, np.tile(self.residual_std, (len(mean), 1))


def fit_linear(
    statistics: np.ndarray, truth: np.ndarray, targets: ParameterSet, ridge: float = 1e-3
) -> LinearFit:
    """Fits a linear model by least squares with a ridge.

    Args:
      statistics: [N, K].
      truth: [N, P].
      targets: the P parameters.
      ridge: penalty on the squared weights of standardised statistics, per example. It keeps
        collinear statistics, such as shares that sum to 1, and few examples well posed.
    """
    num = len(statistics)
    centre, scale = statistics.mean(axis=0), statistics.std(axis=0)
    # A constant statistic has no spread but for rounding, which must not be blown up.
    scale = np.where(scale > 1e-9 * (np.abs(centre) + 1e-30), scale, 1.0)
    standard = (statistics - centre) / scale
    intercept = truth.mean(axis=0)
    penalty = np.sqrt(ridge * num) * np.eye(standard.shape[1])
    weights = np.linalg.lstsq(
        np.concatenate([standard, penalty]),
        np.concatenate([truth - intercept, np.zeros((len(penalty), truth.shape[1]))]),
        rcond=None,
    )[0]
    rest = truth - intercept - standard @ weights
    # The floor only matters where the fit is exact: a Gaussian needs some width.
    residual_std = np.maximum(np.sqrt(np.mean(rest**2, axis=0)), 1e-6 * targets.stds)
    return LinearFit(centre, scale, weights, intercept, residual_std, targets.supports, num)


def published_results(recipe: Recipe | None, parameter: str) -> list[PublishedResult]:
    """Published test errors of this parameter, best first."""
    results = recipe.published if recipe else ()
    return sorted((r for r in results if r.parameter == parameter), key=lambda r: r.mae)


def information_limit(recipe: Recipe | None, parameter: str) -> InformationLimit | None:
    """The best possible error of this parameter, where the recipe knows it."""
    limit = recipe.information_limit if recipe else None
    return limit if limit and limit.parameter == parameter else None
