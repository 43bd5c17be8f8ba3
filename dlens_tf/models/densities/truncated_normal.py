"""The normal law cut at the ends of [0, 1], with its mode inside.

All functions are elementwise and broadcast. As the mode lies inside, nothing cancels between the
two tails, and float32 is enough for any width.
"""

import math

from keras import ops

from dlens_tf.models.densities.base import RESOLUTION, between, normal_log_prob

_SMALLEST_WIDTH, _LARGEST_WIDTH = 3e-4, 2.0
_ROOT2 = math.sqrt(2.0)


def mode_and_width(raw_mode, raw_width):
    """Modes in [0, 1] and widths (of the uncut law) from any numbers; zeros give 1/2 and 1."""
    return ops.sigmoid(raw_mode), between(raw_width, _SMALLEST_WIDTH, _LARGEST_WIDTH)


def _ends(mode, width):
    """Error functions at the ends of the support: twice the probability between mode and end."""
    return ops.erf(-mode / (_ROOT2 * width)), ops.erf((1.0 - mode) / (_ROOT2 * width))


def log_prob(mode, width, x):
    """Logarithm of the density."""
    low, high = _ends(mode, width)
    return normal_log_prob((x - mode) / width) - ops.log(width) - ops.log(0.5 * (high - low))


def cdf(mode, width, x):
    """Distribution function."""
    low, high = _ends(mode, width)
    return (ops.erf((x - mode) / (_ROOT2 * width)) - low) / (high - low)


def icdf(mode, width, u):
    """Quantile function."""
    low, high = _ends(mode, width)
    # Short of ±1, where the inverse is infinite: beyond the support for any law that ends there.
    z = ops.erfinv(ops.clip(low + u * (high - low), -1.0 + 1e-7, 1.0 - 1e-7))
    return ops.clip(mode + _ROOT2 * width * z, 0.0, 1.0)


def moments(mode, width):
    """Mean and standard deviation.

    Reference: Johnson, Kotz & Balakrishnan 1994, Continuous Univariate Distributions 1, §13.10.1.
    """
    low, high = _ends(mode, width)
    inside = 0.5 * (high - low)
    a, b = -mode / width, (1.0 - mode) / width
    at_a, at_b = (ops.exp(normal_log_prob(z)) / inside for z in (a, b))
    shift = at_a - at_b
    variance = width**2 * (1.0 + a * at_a - b * at_b - shift**2)
    return mode + width * shift, ops.sqrt(ops.maximum(variance, RESOLUTION**2))
