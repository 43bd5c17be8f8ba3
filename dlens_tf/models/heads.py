"""Heads: from features to a posterior over the targets, in physical units.

A head owns its loss. Outputs are dicts of float32, whatever the backbone's precision:
`PointHead` gives {"mean"}, `GaussianHead` gives {"mean", "stddev"}, each [N, P].
Losses are computed in units of the prior's standard deviation, so that targets of any unit
weigh alike; angles differ by the shorter way round.

A loss need not be a proper score: beta-NLL is lowest at a deviation that is not the right one. So
the best weights are chosen by a head's `score`.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from dlens_tf.errors import choose
from dlens_tf.parameters import ParameterSet


class _Head(keras.layers.Layer):
    """What the heads share: a float32 Dense layer and the prior's mean and deviation."""

    outputs_per_parameter = 1
    losses_by_name: ClassVar[dict[str, Callable]] = {}
    score_name: ClassVar[str]
    """What the score is called in logs."""

    def __init__(
        self,
        prior_mean: Sequence[float],
        prior_std: Sequence[float],
        loss: str,
        period: Sequence[float | None] | None = None,
        **kwargs,
    ):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.prior_mean = list(prior_mean)
        self.prior_std = list(prior_std)
        self.loss = choose(f"loss of {type(self).__name__}", loss, self.losses_by_name)
        self.period = None if period is None else list(period)
        self.dense = keras.layers.Dense(
            self.outputs_per_parameter * len(self.prior_mean),
            kernel_initializer=keras.initializers.RandomNormal(stddev=1e-3),
            dtype="float32",
            name="dense",
        )

    @classmethod
    def for_targets(cls, targets: ParameterSet, loss: str, **kwargs) -> "_Head":
        """A head for these parameters."""
        period = [p.period for p in targets]
        return cls(targets.means.tolist(), targets.stds.tolist(), loss, period, **kwargs)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, features):
        raise NotImplementedError

    def error(self, truth, outputs):
        """True minus predicted, [N, P] in physical units; angles the shorter way round."""
        difference = truth - outputs["mean"]
        if self.period is None or not any(self.period):
            return difference
        period = np.float32([p or 0.0 for p in self.period])
        turns = ops.round(difference / np.where(period > 0.0, period, np.float32(1.0)))
        return difference - period * turns

    def example_loss(self, truth, outputs):
        """Loss of each example, [N]: `truth` [N, P] in physical units, `outputs` as called."""
        return self._mean_loss(self.losses_by_name[self.loss], truth, outputs)

    def score(self, truth, outputs):
        """What decides on the best weights, [N], lower is better; see `example_loss`."""
        return self.example_loss(truth, outputs)

    def _mean_loss(self, loss: Callable, truth, outputs):
        error = self.error(truth, outputs) / np.float32(self.prior_std)
        return ops.mean(loss(error, self._relative_std(outputs)), axis=-1)

    def _relative_std(self, outputs):
        return None

    def get_config(self):
        return {
            **super().get_config(),
            "prior_mean": self.prior_mean,
            "prior_std": self.prior_std,
            "loss": self.loss,
            "period": self.period,
        }


def _absolute(error, std):
    del std
    return ops.abs(error)


def _huber(error, std):
    """Quadratic below 0.1 prior deviations, linear above."""
    del std
    size = ops.abs(error)
    return ops.where(size < 0.1, 5.0 * size**2, size - 0.05)


def _nll(error, std):
    """Gaussian negative log-likelihood."""
    return 0.5 * (error / std) ** 2 + ops.log(std) + 0.5 * math.log(2.0 * math.pi)


def _beta_nll(error, std):
    """NLL weighted by the predicted deviation, so that hard examples keep their gradient.

    No proper score: a value says nothing about how good a prediction is.

    Reference: Seitzer et al. 2022, arXiv:2203.09168, with beta = 0.5.
    """
    return ops.stop_gradient(std) * _nll(error, std)


@keras.saving.register_keras_serializable(package="dlens_tf")
class PointHead(_Head):
    """One number per parameter; no uncertainty. Scored by its loss."""

    score_name = "loss"
    losses_by_name: ClassVar = {"mae": _absolute, "huber": _huber}

    def call(self, features):
        standardised = self.dense(features)
        return {"mean": standardised * np.float32(self.prior_std) + np.float32(self.prior_mean)}

    def compute_output_shape(self, input_shape):
        return {"mean": (input_shape[0], len(self.prior_mean))}


@keras.saving.register_keras_serializable(package="dlens_tf")
class GaussianHead(_Head):
    """Independent Gaussian posteriors: mean and standard deviation of each parameter.

    Scored by the negative log-likelihood, a proper score, whatever the loss.
    """

    score_name = "nll"
    outputs_per_parameter = 2
    losses_by_name: ClassVar = {"nll": _nll, "beta_nll": _beta_nll}
    MIN_STD = 1e-3
    """Floor of the predicted deviation, in prior deviations: keeps the likelihood finite."""

    def call(self, features):
        location, scale = ops.split(self.dense(features), 2, axis=-1)
        # softplus(0.54) = 1: the untrained head answers with the prior.
        relative_std = ops.softplus(scale + 0.5413) + self.MIN_STD
        prior_std = np.float32(self.prior_std)
        return {
            "mean": location * prior_std + np.float32(self.prior_mean),
            "stddev": relative_std * prior_std,
        }

    def score(self, truth, outputs):
        return self._mean_loss(_nll, truth, outputs)

    def _relative_std(self, outputs):
        return outputs["stddev"] / np.float32(self.prior_std)

    def compute_output_shape(self, input_shape):
        shape = (input_shape[0], len(self.prior_mean))
        return {"mean": shape, "stddev": shape}


HEADS = {"point": PointHead, "gaussian": GaussianHead}
