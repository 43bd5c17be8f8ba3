"""The equally weighted mixture of other densities: what an ensemble of models believes."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from dlens_tf.models.densities.base import Density


class EnsembleDensity(Density):
    """The mean of M joint densities, whose numbers stand side by side.

    Args:
      num_parameters: P.
      members: a description of each member, as `densities.make_density` takes it.
    """

    options = ("members",)

    def __init__(self, num_parameters: int, members: Sequence[Mapping[str, Any]]):
        from dlens_tf.models.densities import make_density  # which knows this class

        super().__init__(num_parameters)
        self.members = [dict(member) for member in members]
        self._families = [make_density(member, num_parameters) for member in self.members]
        self.num_numbers = sum(family.num_numbers for family in self._families)
        # One more uniform number says which member a sample is of.
        self.num_uniforms = 1 + max(family.num_uniforms for family in self._families)
        self.cost = sum(family.cost for family in self._families)
        self.cost_per_image = sum(family.cost_per_image for family in self._families)

    def initial_numbers(self) -> np.ndarray:
        return np.concatenate([family.initial_numbers() for family in self._families])

    def _ask(self, question: Callable, numbers, values=None, axis: int = -2):
        """What each member answers, side by side in a new axis after that of the examples.

        Neighbours of one family are asked together, as so many more examples: a graph then holds
        the mathematics once, however many members there are.

        Args:
          question: takes a family, its numbers [N, …] and, if given, values [..., N, n].
          numbers: [N, D].
          values: [..., N, n], the same for all members.
          axis: of the examples in an answer, from the end.

        Returns:
          [..., N, M, …], M at `axis`.
        """
        answers, first, start = [], 0, 0
        for _, group in itertools.groupby(self.members):
            number, family = len(list(group)), self._families[first]
            end = start + number * family.num_numbers
            part = ops.reshape(numbers[:, start:end], (-1, family.num_numbers))
            first, start = first + number, end
            asked = () if values is None else (ops.repeat(values, number, axis=-2),)
            answer = question(family, part, *asked)
            shape = ops.shape(answer)
            place = len(shape) + axis
            answers.append(ops.reshape(answer, (*shape[:place], -1, number, *shape[place + 1 :])))
        return ops.concatenate(answers, axis=axis)

    def _log_mean(self, log_probs, axis: int):
        return ops.logsumexp(log_probs, axis=axis) - math.log(len(self.members))

    def cdf(self, numbers, x):
        return ops.mean(self._ask(lambda f, part, x: f.cdf(part, x), numbers, x), axis=-2)

    def log_prob(self, numbers, x):
        answers = self._ask(lambda f, part, x: f.log_prob(part, x), numbers, x)
        return self._log_mean(answers, axis=-2)

    def joint_log_prob(self, numbers, x):
        answers = self._ask(lambda f, part, x: f.joint_log_prob(part, x), numbers, x, axis=-1)
        return self._log_mean(answers, axis=-1)

    def moments(self, numbers):
        answers = self._ask(lambda f, part: ops.stack(f.moments(part), axis=-1), numbers, axis=-3)
        means, stddevs = answers[..., 0], answers[..., 1]
        mean = ops.mean(means, axis=-2, keepdims=True)
        variance = ops.mean(stddevs**2 + (means - mean) ** 2, axis=-2)
        return ops.squeeze(mean, -2), ops.sqrt(variance)

    def sample(self, numbers, uniforms):
        members = len(self.members)
        samples = self._ask(
            lambda f, part, u: f.sample(part, u[..., : f.num_uniforms]), numbers, uniforms[..., 1:]
        )
        chosen = ops.one_hot(ops.cast(ops.floor(uniforms[..., 0] * members), "int32"), members)
        return ops.sum(samples * ops.cast(chosen, samples.dtype)[..., np.newaxis], axis=-2)
