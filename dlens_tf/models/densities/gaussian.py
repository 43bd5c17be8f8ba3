"""Independent normal laws, cut at the ends of the support."""

from keras import ops

from dlens_tf.models.densities import truncated_normal
from dlens_tf.models.densities.base import Density


class GaussianDensity(Density):
    """Independent parameters, each a normal law cut at the ends of the support.

    The mode is inside: a law that only falls, or only rises, is at its widest half a normal law.

    Args:
      num_parameters: P.
    """

    def __init__(self, num_parameters: int):
        super().__init__(num_parameters)
        self.num_numbers = 2 * num_parameters

    def _laws(self, numbers):
        return truncated_normal.mode_and_width(*ops.split(numbers, 2, axis=-1))

    def cdf(self, numbers, x):
        return truncated_normal.cdf(*self._laws(numbers), ops.clip(x, 0.0, 1.0))

    def log_prob(self, numbers, x):
        return truncated_normal.log_prob(*self._laws(numbers), ops.clip(x, 0.0, 1.0))

    def icdf(self, numbers, u):
        return truncated_normal.icdf(*self._laws(numbers), u)

    def moments(self, numbers):
        return truncated_normal.moments(*self._laws(numbers))
