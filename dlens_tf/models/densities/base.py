"""What every density can do, and what follows from its distribution function alone."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from keras import ops
from scipy import stats

RESOLUTION = 1e-6
"""Width, as a fraction of the support, below which float32 values can't tell two apart."""

# Nodes u of integrals over [0, 1] and their weights: equal steps of the probit, which for smooth
# quantile functions converges faster than any power, tails of a normal law included.
_PROBITS = np.linspace(-5.25, 5.25, 43)
_NODES = stats.norm.cdf(_PROBITS)
_WEIGHTS = stats.norm.pdf(_PROBITS) / stats.norm.pdf(_PROBITS).sum()

BISECTIONS = 22  # to 2e-7 of the support, near the rounding of float32


def probit(u):
    """The standard normal law's quantile function; finite for u from 1e-7 to 1 - 1e-7."""
    return math.sqrt(2.0) * ops.erfinv(ops.clip(2.0 * u - 1.0, -1.0 + 2e-7, 1.0 - 2e-7))


def normal_cdf(z):
    """The standard normal law's distribution function."""
    return 0.5 * ops.erfc(-z / math.sqrt(2.0))


def normal_log_prob(z):
    """Logarithm of the standard normal law's density."""
    return -0.5 * z**2 - 0.5 * math.log(2.0 * math.pi)


def between(raw, smallest: float, largest):
    """A width between two bounds, the upper of which may be a tensor, from any number.

    For zero, it is the bounds' mean.
    """
    return smallest + (largest - smallest) * ops.sigmoid(raw)


def bounded(raw, bound: float):
    """Near the identity for small numbers, and never beyond ±bound."""
    return bound * ops.tanh(raw / bound)


def weighted_moments(values, weights, axis: int):
    """Mean and standard deviation along an axis; the weights, which sum to 1, broadcast.

    The deviation is `RESOLUTION` at least.
    """
    weights = ops.cast(ops.convert_to_tensor(weights), values.dtype)
    mean = ops.sum(weights * values, axis=axis, keepdims=True)
    variance = ops.sum(weights * (values - mean) ** 2, axis=axis)
    return ops.squeeze(mean, axis), ops.sqrt(variance + RESOLUTION**2)


def bisect(cdf: Callable[[Any], Any], u):
    """The values x in [0, 1] at which an increasing function `cdf(x)` is `u`, elementwise.

    They have no gradient. A loop in the graph: XLA compiles it as fast for any number of halvings.
    """

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        is_left = ops.stop_gradient(cdf(middle)) < u
        return ops.where(is_left, middle, low), ops.where(is_left, high, middle)

    low, high = ops.fori_loop(0, BISECTIONS, halve, (ops.zeros_like(u), ops.ones_like(u)))
    return 0.5 * (low + high)


class Density:
    """A family of joint densities of P parameters on the unit cube.

    A member of the family is told by D real numbers, any of which are valid, as a network gives
    them. Everything is in keras.ops and in the numbers' own precision, so the same code answers
    in a float32 graph and, more precisely, in Python. Shapes: `numbers` [N, D]; values x and
    probabilities u [..., N, P], leading axes being free.

    Marginal means: of one parameter by itself, over all values of the others.

    Args:
      num_parameters: P.

    Attributes:
      num_parameters: P.
      num_numbers: D.
      num_uniforms: uniform numbers that one joint sample is made from.
      cost, cost_per_image: numbers held at once for a value, and for an image beside its values;
        they set how many go through together.
    """

    num_numbers: int
    cost = 1
    cost_per_image = 0
    options: ClassVar[tuple[str, ...]] = ()
    """Names of the arguments beside P, kept as attributes."""

    def __init__(self, num_parameters: int):
        self.num_parameters = num_parameters
        self.num_uniforms = num_parameters

    def get_config(self) -> dict[str, Any]:
        """JSON-ready options, without the number of parameters."""
        return {name: getattr(self, name) for name in self.options}

    def initial_numbers(self) -> np.ndarray:
        """Numbers [D] that describe the uniform law, or one near it."""
        return np.zeros(self.num_numbers)

    def cdf(self, numbers, x):
        """Marginal distribution functions at x, [..., N, P]."""
        raise NotImplementedError

    def log_prob(self, numbers, x):
        """Logarithms of the marginal densities at x, [..., N, P]; x is clipped to [0, 1]."""
        raise NotImplementedError

    def joint_log_prob(self, numbers, x):
        """Logarithm of the joint density at x, [..., N]: here, of independent parameters."""
        return ops.sum(self.log_prob(numbers, x), axis=-1)

    def icdf(self, numbers, u):
        """Marginal quantile functions at u, [..., N, P]: here, by bisection of `cdf`."""
        return bisect(lambda x: self.cdf(numbers, x), u)

    def sample(self, numbers, uniforms):
        """Joint samples.

        Args:
          numbers: [N, D].
          uniforms: independent draws from [0, 1), [S, N, num_uniforms].

        Returns:
          [S, N, P]: here, of independent parameters.
        """
        return self.icdf(numbers, uniforms)

    def quantiles(self, numbers, levels):
        """Marginal quantiles at Q levels, [N, P, Q]."""
        return ops.moveaxis(self._at_levels(numbers, levels), 0, -1)

    def moments(self, numbers):
        """Marginal means and standard deviations, each [N, P]: here, by quadrature of `icdf`."""
        weights = _WEIGHTS[:, np.newaxis, np.newaxis]
        return weighted_moments(self._at_levels(numbers, _NODES), weights, axis=0)

    def _at_levels(self, numbers, levels):
        """`icdf` at each level, [Q, N, P]."""
        levels = ops.cast(ops.convert_to_tensor(np.asarray(levels)), numbers.dtype)
        shape = (1, ops.shape(numbers)[0], self.num_parameters)
        u = ops.reshape(levels, (-1, 1, 1)) * ops.ones(shape, dtype=numbers.dtype)
        return self.icdf(numbers, u)
