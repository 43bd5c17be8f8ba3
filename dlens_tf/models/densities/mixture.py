"""Mixtures of normal laws cut at the ends of the support."""

import numpy as np
from keras import ops
from scipy import special

from dlens_tf.errors import UserError
from dlens_tf.models.densities import truncated_normal
from dlens_tf.models.densities.base import Density, weighted_moments


class MixtureDensity(Density):
    """A mixture of joint laws, in each of which the parameters are independent and normal.

    The parameters share the components and their weights, so the mixture can say how parameters
    depend on each other and have several peaks; its marginals are mixtures of the same weights.

    Args:
      num_parameters: P.
      components: C.

    Reference: Bishop 1994, Mixture density networks (components without the cut).
    """

    options = ("components",)

    def __init__(self, num_parameters: int, components: int = 8):
        super().__init__(num_parameters)
        if not 1 <= components <= 500:
            raise UserError(f"a mixture has 1 to 500 components, not {components}")
        self.components = components
        self.cost = components
        self.num_numbers = components * (1 + 2 * num_parameters)
        self.num_uniforms = num_parameters + 1

    def initial_numbers(self) -> np.ndarray:
        """Wide laws of equal weight, their modes spread over the support."""
        places = (np.arange(self.components) + 0.5) / self.components
        # In another order for each parameter, or the parameters would seem to depend.
        modes = [np.random.default_rng(p).permutation(places) for p in range(self.num_parameters)]
        weights, widths = np.zeros(self.components), np.zeros((self.components, len(modes)))
        return np.concatenate([weights, special.logit(modes).T.ravel(), widths.ravel()])

    def _laws(self, numbers):
        """Logarithms of the weights [N, C, 1]; modes and widths, each [N, C, P]."""
        size = self.components * self.num_parameters
        shape = (-1, self.components, self.num_parameters)
        modes = ops.reshape(numbers[:, self.components : self.components + size], shape)
        widths = ops.reshape(numbers[:, self.components + size :], shape)
        log_weights = ops.log_softmax(numbers[:, : self.components], axis=-1)
        laws = truncated_normal.mode_and_width(modes, widths)
        return log_weights[..., np.newaxis], *laws

    def cdf(self, numbers, x):
        log_weights, *laws = self._laws(numbers)
        each = truncated_normal.cdf(*laws, ops.clip(x, 0.0, 1.0)[..., np.newaxis, :])
        return ops.sum(ops.exp(log_weights) * each, axis=-2)

    def _log_probs(self, laws, x):
        """Of each component, [..., N, C, P]."""
        return truncated_normal.log_prob(*laws, ops.clip(x, 0.0, 1.0)[..., np.newaxis, :])

    def log_prob(self, numbers, x):
        log_weights, *laws = self._laws(numbers)
        return ops.logsumexp(log_weights + self._log_probs(laws, x), axis=-2)

    def joint_log_prob(self, numbers, x):
        log_weights, *laws = self._laws(numbers)
        each = ops.sum(self._log_probs(laws, x), axis=-1)
        return ops.logsumexp(log_weights[..., 0] + each, axis=-1)

    def sample(self, numbers, uniforms):
        log_weights, *laws = self._laws(numbers)
        each = truncated_normal.icdf(*laws, uniforms[..., np.newaxis, :-1])
        upper = ops.cumsum(ops.exp(log_weights[..., 0]), axis=-1)[..., :-1]
        beyond = ops.cast(uniforms[..., -1:] >= upper, numbers.dtype)
        one = ops.ones_like(uniforms[..., -1:])
        is_drawn = ops.concatenate([one, beyond], -1) - ops.concatenate([beyond, 0.0 * one], -1)
        return ops.sum(is_drawn[..., np.newaxis] * each, axis=-2)

    def moments(self, numbers):
        log_weights, *laws = self._laws(numbers)
        means, deviations = truncated_normal.moments(*laws)
        weights = ops.exp(log_weights)
        mean, between = weighted_moments(means, weights, axis=-2)
        return mean, ops.sqrt(between**2 + ops.sum(weights * deviations**2, axis=-2))
