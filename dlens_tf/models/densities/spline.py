"""Monotone rational-quadratic splines as quantile functions: flat, skewed, bounded, narrow.

A spline of K bins maps probability u in [0, 1] to value x in [0, 1]. In each bin, of width w in u
and height h in x, with ξ the fraction of the width and δ0, δ1 the derivatives at its ends in units
of h / w,

    x = x_k + h · (ξ² + δ0 ξ (1 - ξ)) / (1 + (δ0 + δ1 - 2) ξ (1 - ξ)),

which is inverted by the root of a quadratic. The density is the inverse of the derivative.

Reference: Durkan et al. 2019, arXiv:1906.04032, equations 4 to 8, here with the density at a knot
in units of the mean of the neighbouring bins': a narrow law then needs no derivatives of its own.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from dlens_tf.errors import UserError
from dlens_tf.models.densities.base import Density, bounded, weighted_moments

_MOST_BINS = 64  # more would cost time and memory, and leave float32 and the data little in each

_SMALLEST_WIDTH = 1e-4
"""Least probability of a bin: what a law leaves for values that it holds for impossible."""

_SMALLEST_HEIGHT = 1e-5
"""Least height of a bin: no law is much narrower than so much of the support times K."""

_DERIVATIVE_BOUND = 3.0  # of the logarithm
_SMALLEST_RATIO = 0.01  # of the derivative at a bin's end to its slope
_GAUSS_NODES, _GAUSS_WEIGHTS = (a / 2.0 for a in np.polynomial.legendre.leggauss(8))


def check_bins(bins: int) -> int:
    """Returns the number of bins; raises a `UserError` if it is out of range."""
    if not 2 <= bins <= _MOST_BINS:
        raise UserError(f"a spline has 2 to {_MOST_BINS} bins, not {bins}; 16 to 32 will do")
    return bins


def numbers_per_spline(bins: int) -> int:
    """How many numbers tell a spline."""
    return 3 * bins + 1


class Spline(NamedTuple):
    """Bins of splines; [..., K + 1] knots and [..., K] for the rest.

    Attributes:
      u, x: the knots.
      log_slope: logarithm of h / w.
      start, end: δ0 and δ1.
    """

    u: Any
    x: Any
    log_slope: Any
    start: Any
    end: Any


def _knots(raw, smallest: float):
    """Ends of bins that share [0, 1], [..., K + 1]."""
    sizes = smallest + (1.0 - raw.shape[-1] * smallest) * ops.softmax(raw, axis=-1)
    inner = ops.cumsum(sizes, axis=-1)[..., :-1]
    zero = ops.zeros_like(raw[..., :1])
    return ops.concatenate([zero, inner, zero + 1.0], axis=-1)


def make_spline(raw) -> Spline:
    """The spline that [..., 3 K + 1] real numbers tell; all zero tell the identity."""
    bins = (raw.shape[-1] - 1) // 3
    u = _knots(raw[..., :bins], _SMALLEST_WIDTH)
    x = _knots(raw[..., bins : 2 * bins], _SMALLEST_HEIGHT)
    log_slope = ops.log(x[..., 1:] - x[..., :-1]) - ops.log(u[..., 1:] - u[..., :-1])
    left = ops.concatenate([log_slope[..., :1], log_slope], axis=-1)
    right = ops.concatenate([log_slope, log_slope[..., -1:]], axis=-1)
    # The mean of the neighbouring bins' densities: no bin hides a peak narrower than itself.
    log_mean_density = ops.logaddexp(-left, -right) - math.log(2.0)
    log_derivative = bounded(raw[..., 2 * bins :], _DERIVATIVE_BOUND) - log_mean_density
    # Beside a far denser bin the density may jump: it would fall too fast for float32.
    smallest = math.log(_SMALLEST_RATIO)
    start = ops.exp(ops.maximum(log_derivative[..., :-1] - log_slope, smallest))
    end = ops.exp(ops.maximum(log_derivative[..., 1:] - log_slope, smallest))
    return Spline(u, x, log_slope, start, end)


class _Bin(NamedTuple):
    """The bins that values lie in, each [...]; see `Spline`."""

    u_low: Any
    u_high: Any
    x_low: Any
    x_high: Any
    log_slope: Any
    start: Any
    end: Any


def _find(spline: Spline, knots, values) -> _Bin:
    """The bin of each value [...] along an axis with these knots."""
    beyond = ops.cast(values[..., np.newaxis] >= knots[..., 1:-1], values.dtype)
    one = ops.ones_like(beyond[..., :1])
    # One in the value's own bin, zero elsewhere; a sum instead of a gather suits XLA.
    is_here = ops.concatenate([one, beyond], -1) - ops.concatenate([beyond, 0.0 * one], -1)
    fields = (spline.u[..., :-1], spline.u[..., 1:], spline.x[..., :-1], spline.x[..., 1:])
    return _Bin(*(ops.sum(is_here * field, axis=-1) for field in (*fields, *spline[2:])))


def _rise(start, end, xi):
    """Height reached at a fraction ξ of a bin, as a fraction of its own."""
    both = xi * (1.0 - xi)
    return (xi**2 + start * both) / (1.0 + (start + end - 2.0) * both)


def spline_icdf(spline: Spline, u):
    """Values [...] at probabilities u [...]."""
    u = ops.clip(u, 0.0, 1.0)
    b = _find(spline, spline.u, u)
    xi = (u - b.u_low) / (b.u_high - b.u_low)
    return b.x_low + (b.x_high - b.x_low) * _rise(b.start, b.end, xi)


def spline_cdf_log_prob(spline: Spline, x):
    """Probabilities at values x [...], and logarithms of the density there."""
    x = ops.clip(x, 0.0, 1.0)
    b = _find(spline, spline.x, x)
    height = b.x_high - b.x_low
    # Solved from the nearer end of the bin, where nothing cancels.
    is_far = x - b.x_low > 0.5 * height
    eta = ops.where(is_far, b.x_high - x, x - b.x_low) / height
    near = ops.where(is_far, b.end, b.start)
    excess = b.start + b.end - 2.0
    linear = near - eta * excess
    discriminant = linear**2 + 4.0 * eta * (1.0 - near + eta * excess)
    xi = 2.0 * eta / (linear + ops.sqrt(discriminant))
    rest = 1.0 - xi
    far = b.start + b.end - near
    steepness = near * rest**2 + 2.0 * xi * rest + far * xi**2
    log_derivative = b.log_slope + ops.log(steepness) - 2.0 * ops.log(1.0 + excess * xi * rest)
    width = b.u_high - b.u_low
    u = ops.where(is_far, b.u_high - width * xi, b.u_low + width * xi)
    return u, -log_derivative


def spline_nodes(spline: Spline):
    """Values and weights [..., 8 K] of integrals over u: Gauss–Legendre in each bin."""
    nodes = ops.cast(ops.convert_to_tensor(_GAUSS_NODES + 0.5), spline.u.dtype)
    weights = ops.cast(ops.convert_to_tensor(_GAUSS_WEIGHTS), spline.u.dtype)
    rise = _rise(spline.start[..., np.newaxis], spline.end[..., np.newaxis], nodes)
    low, high = spline.x[..., :-1, np.newaxis], spline.x[..., 1:, np.newaxis]
    widths = (spline.u[..., 1:] - spline.u[..., :-1])[..., np.newaxis]
    values = low + (high - low) * rise
    shape = (*ops.shape(values)[:-2], values.shape[-2] * values.shape[-1])
    return ops.reshape(values, shape), ops.reshape(widths * weights, shape)


class SplineDensity(Density):
    """Independent parameters, the quantile function of each a spline.

    Args:
      num_parameters: P.
      bins: K, bins of each spline.
    """

    options = ("bins",)

    def __init__(self, num_parameters: int, bins: int = 24):
        super().__init__(num_parameters)
        self.bins = check_bins(bins)
        self.cost = bins
        self.num_numbers = num_parameters * numbers_per_spline(bins)

    def _spline(self, numbers) -> Spline:
        shape = (-1, self.num_parameters, numbers_per_spline(self.bins))
        return make_spline(ops.reshape(numbers, shape))

    def cdf(self, numbers, x):
        return spline_cdf_log_prob(self._spline(numbers), x)[0]

    def log_prob(self, numbers, x):
        return spline_cdf_log_prob(self._spline(numbers), x)[1]

    def icdf(self, numbers, u):
        return spline_icdf(self._spline(numbers), u)

    def moments(self, numbers):
        values, weights = spline_nodes(self._spline(numbers))
        return weighted_moments(values, weights, axis=-1)
