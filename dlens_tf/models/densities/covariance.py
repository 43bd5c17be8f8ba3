"""A normal law of all parameters together, over the probits of their places in the support."""

import numpy as np
from keras import ops
from scipy import special, stats

from dlens_tf.models.densities.base import (
    Density,
    between,
    bounded,
    normal_cdf,
    normal_log_prob,
    probit,
)

_LARGEST_CENTRE = 4.0  # probits: 3e-5 of the support from its end
_SMALLEST_WIDTH = 1e-3  # probits
_LARGEST_WEIGHT = 30.0
_EDGE = 1e-6  # of the support: what is nearer to an end counts as there
_LAST = -float(stats.norm.ppf(_EDGE))  # probit, 4.75
_WIDTHS_INSIDE = 3.0  # from the centre to there at least: 0.13 % is beyond at most


class CovarianceDensity(Density):
    """Normal law of full covariance in z = Φ^-1(x), x being places in the support [0, 1].

    Its correlations are those of a Gaussian copula. The uniform law is z ~ N(0, 1); a width below
    1 gives a peak, above it a law that rises towards both ends. The density at an end of the
    support is zero or infinite (or 1, at width 1): values within 1e-6 of an end are taken there.
    Widths are bounded, the more the nearer the centre is to an end, so that at most 0.13 % of the
    probability lies beyond that: 1.58 in the middle, 0.25 at centres of 4.

    Args:
      num_parameters: P.
    """

    def __init__(self, num_parameters: int):
        super().__init__(num_parameters)
        self.num_numbers = 2 * num_parameters + num_parameters * (num_parameters - 1) // 2
        self.cost = num_parameters

    def initial_numbers(self) -> np.ndarray:
        """The uniform law: centres of 0 and widths of 1."""
        numbers = np.zeros(self.num_numbers)
        share = (1.0 - _SMALLEST_WIDTH) / (_LAST / _WIDTHS_INSIDE - _SMALLEST_WIDTH)
        numbers[self.num_parameters : 2 * self.num_parameters] = special.logit(share)
        return numbers

    def _laws(self, numbers):
        """Centres and widths of z, each [N, P]."""
        size = self.num_parameters
        centre = bounded(numbers[:, :size], _LARGEST_CENTRE)
        largest = (_LAST - ops.abs(centre)) / _WIDTHS_INSIDE
        return centre, between(numbers[:, size : 2 * size], _SMALLEST_WIDTH, largest)

    def _factor(self, numbers) -> list:
        """Rows p of the Cholesky factor of the correlations, each [N, p + 1], of length 1."""
        rows, start = [], 2 * self.num_parameters
        for p in range(self.num_parameters):
            weights = bounded(numbers[:, start : start + p], _LARGEST_WEIGHT)
            row = ops.concatenate([weights, ops.ones_like(numbers[:, :1])], axis=-1)
            rows.append(row / ops.sqrt(ops.sum(row**2, axis=-1, keepdims=True)))
            start += p
        return rows

    def _standardised(self, numbers, x):
        """Standardised z, [..., N, P], and the logarithm of its derivative by x."""
        centre, width = self._laws(numbers)
        z = probit(ops.clip(x, _EDGE, 1.0 - _EDGE))
        return (z - centre) / width, -ops.log(width) - normal_log_prob(z)

    def cdf(self, numbers, x):
        return normal_cdf(self._standardised(numbers, x)[0])

    def log_prob(self, numbers, x):
        z, log_derivative = self._standardised(numbers, x)
        return normal_log_prob(z) + log_derivative

    def joint_log_prob(self, numbers, x):
        z, log_derivative = self._standardised(numbers, x)
        free, total = [], ops.sum(log_derivative, axis=-1)
        for p, row in enumerate(self._factor(numbers)):
            explained = sum(row[:, q] * free[q] for q in range(p))
            free.append((z[..., p] - explained) / row[:, p])
            total = total + normal_log_prob(free[p]) - ops.log(row[:, p])
        return total

    def icdf(self, numbers, u):
        centre, width = self._laws(numbers)
        return normal_cdf(centre + width * probit(u))

    def sample(self, numbers, uniforms):
        centre, width = self._laws(numbers)
        free = probit(uniforms)
        z = [ops.sum(row * free[..., : p + 1], -1) for p, row in enumerate(self._factor(numbers))]
        return normal_cdf(centre + width * ops.stack(z, axis=-1))
