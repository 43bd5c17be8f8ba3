"""Heads: from features to a posterior over the targets, in physical units.

A head owns its loss. Outputs are dicts of float32, whatever the backbone's precision. `PointHead`
gives {"mean"} [N, P]; every other head gives

    mean, stddev   [N, P]      of each parameter by itself
    quantiles      [N, P, Q]   at `QUANTILE_LEVELS`, the median among them
    density        [N, D]      the numbers that, with `density_config`, tell the whole posterior

and puts no probability outside the prior's support. The mathematics is in `models.densities`;
`inference.Posterior` makes anything else of `density`. Losses are computed in units of the prior's
standard deviation, so that targets of any unit weigh alike, and are means over the parameters.

Angles: errors are taken the shorter way round. A density covers one period, from the low to the
high end of the prior, and does not know that these meet: for an angle near there a spline, mixture
or flow can put probability at both ends, a Gaussian can't, and the median says little.

A loss need not be a proper score: beta-NLL is lowest at a deviation that is not the right one. So
the best weights are chosen by a head's `score`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from dlens_tf.errors import choose
from dlens_tf.models.densities import DENSITIES, make_density
from dlens_tf.parameters import ParameterSet, float32_supports
from dlens_tf.quantiles import MEDIAN, QUANTILE_LEVELS

_CRPS_LEVELS = (np.arange(64) + 0.5) / 64


class _Head(keras.layers.Layer):
    """What the heads share: a float32 Dense layer, and the prior's mean and deviation."""

    kind: ClassVar[str]
    """The head's name in `HEADS`."""
    losses_by_name: ClassVar[dict[str, Callable]] = {}
    """Functions of head, truth and outputs; the first is the default."""
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

    @classmethod
    def for_targets(cls, targets: ParameterSet, loss: str, **kwargs) -> "_Head":
        """A head for these parameters.

        Args:
          targets: P parameters with priors.
          loss: one of `losses_by_name`.
          **kwargs: the head's options, and those of any layer.

        Raises:
          UserError: if the loss is unknown or an option out of range.
        """
        return cls(
            prior_mean=targets.means.tolist(),
            prior_std=targets.stds.tolist(),
            loss=loss,
            period=[p.period for p in targets],
            **kwargs,
        )

    @property
    def density_config(self) -> dict[str, Any]:
        """{"kind": …, **options}, JSON-ready: what `Posterior.from_outputs` has to know."""
        return {"kind": self.kind}

    def _make_dense(self, units: int) -> keras.layers.Dense:
        """The layer from features to numbers; at first its answers are next to nothing."""
        kernel_initializer = keras.initializers.RandomNormal(stddev=1e-3)
        return keras.layers.Dense(
            units, kernel_initializer=kernel_initializer, dtype="float32", name="dense"
        )

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, features):
        raise NotImplementedError

    def error(self, truth, outputs):
        """True minus predicted, [N, P] in physical units; angles the shorter way round.

        What is predicted is the median, or the mean of a head without quantiles.
        """
        predicted = outputs["quantiles"][..., MEDIAN] if "quantiles" in outputs else outputs["mean"]
        difference = truth - predicted
        if self.period is None or not any(self.period):
            return difference
        period = np.float32([p or 0.0 for p in self.period])
        turns = ops.round(difference / np.where(period > 0.0, period, np.float32(1.0)))
        return difference - period * turns

    def example_loss(self, truth, outputs):
        """Loss of each example, [N]: `truth` [N, P] in physical units, `outputs` as called."""
        return self.losses_by_name[self.loss](self, truth, outputs)

    def score(self, truth, outputs):
        """What decides on the best weights, [N], lower is better; see `example_loss`."""
        raise NotImplementedError

    def get_config(self):
        return {
            **super().get_config(),
            "prior_mean": self.prior_mean,
            "prior_std": self.prior_std,
            "loss": self.loss,
            "period": self.period,
        }


def _absolute(head, truth, outputs):
    return ops.mean(ops.abs(head.error(truth, outputs) / np.float32(head.prior_std)), axis=-1)


def _huber(head, truth, outputs):
    """Quadratic below 0.1 prior deviations, linear above."""
    size = ops.abs(head.error(truth, outputs) / np.float32(head.prior_std))
    return ops.mean(ops.where(size < 0.1, 5.0 * size**2, size - 0.05), axis=-1)


@keras.saving.register_keras_serializable(package="dlens_tf")
class PointHead(_Head):
    """One number per parameter; no uncertainty. Scored by its loss."""

    kind = "point"
    score_name = "loss"
    losses_by_name: ClassVar = {"mae": _absolute, "huber": _huber}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dense = self._make_dense(len(self.prior_mean))

    def call(self, features):
        standardised = self.dense(features)
        return {"mean": standardised * np.float32(self.prior_std) + np.float32(self.prior_mean)}

    def score(self, truth, outputs):
        return self.example_loss(truth, outputs)

    def compute_output_shape(self, input_shape):
        return {"mean": (input_shape[0], len(self.prior_mean))}


def _nll(head, truth, outputs):
    """Negative logarithm of the joint density, by the number of parameters."""
    log_prob = head.density.joint_log_prob(outputs["density"], head.to_unit(truth))
    return -log_prob / len(head.prior_std) - float(np.mean(np.log(head.relative_std)))


def _beta_nll(head, truth, outputs):
    """NLL weighted by the predicted deviation, so that hard examples keep their gradient.

    No proper score: a value says nothing about how good a prediction is.

    Reference: Seitzer et al. 2022, arXiv:2203.09168, with beta = 0.5.
    """
    log_prob = head.density.log_prob(outputs["density"], head.to_unit(truth))
    weight = ops.stop_gradient(outputs["stddev"] / np.float32(head.prior_std))
    return -ops.mean(weight * (log_prob + np.float32(np.log(head.relative_std))), axis=-1)


def _crps(head, truth, outputs):
    """Continuous ranked probability score: twice the mean pinball loss of 64 quantiles.

    A proper score of those quantiles, in the unit of the error; it says nothing of the tails
    beyond them.

    Reference: Gneiting & Raftery 2007, doi:10.1198/016214506000001437, section 4.2.
    """
    quantiles = head.density.quantiles(outputs["density"], _CRPS_LEVELS)
    below = head.to_unit(truth)[..., np.newaxis] - quantiles
    levels = np.float32(_CRPS_LEVELS)
    pinball = ops.mean(ops.maximum(levels * below, (levels - 1.0) * below), axis=-1)
    return ops.mean(2.0 * pinball / np.float32(head.relative_std), axis=-1)


class DensityHead(_Head):
    """A posterior of a family of `models.densities`.

    Scored by the negative log-likelihood, a proper score, whatever the loss.

    Args:
      prior_mean, prior_std: of each parameter.
      support: lowest and highest value of each parameter.
      loss: one of `losses_by_name`.
      period: of angles, None for other parameters.
      **kwargs: options of the family, and those of any layer.

    Attributes:
      density: the family.
      relative_std: the prior's standard deviations as fractions of its support.
    """

    score_name = "nll"
    losses_by_name: ClassVar = {"nll": _nll}

    def __init__(
        self,
        prior_mean: Sequence[float],
        prior_std: Sequence[float],
        support: Sequence[Sequence[float]],
        loss: str,
        period: Sequence[float | None] | None = None,
        **kwargs,
    ):
        names = DENSITIES[self.kind].options
        options = {name: kwargs.pop(name) for name in names if name in kwargs}
        super().__init__(prior_mean, prior_std, loss, period, **kwargs)
        self.support = [list(ends) for ends in support]
        self._low, self._high = self.ends.T
        self.relative_std = np.array(self.prior_std) / np.ptp(self.support, axis=1)
        self.density = make_density({"kind": self.kind, **options}, len(self.support))
        self.dense = self._make_dense(self.density.num_numbers)

    @classmethod
    def for_targets(cls, targets: ParameterSet, loss: str, **kwargs) -> "DensityHead":
        return super().for_targets(targets, loss, support=targets.supports.tolist(), **kwargs)

    @property
    def density_config(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.density.get_config()}

    @property
    def ends(self) -> np.ndarray:
        """The support's ends, float32 [P, 2], inside of it by less than rounding."""
        return float32_supports(self.support)

    def to_unit(self, values):
        """Physical values [..., P] as fractions of the support; ends met but for rounding."""
        return (ops.cast(values, "float32") - self._low) / (self._high - self._low)

    def call(self, features):
        return self.answers(self.dense(features) + np.float32(self.density.initial_numbers()))

    def answers(self, numbers) -> dict[str, Any]:
        """The head's outputs for the density's numbers [N, D]."""
        mean, stddev = self.density.moments(numbers)
        quantiles = self.density.quantiles(numbers, QUANTILE_LEVELS)
        low, high = self._low[:, np.newaxis], self._high[:, np.newaxis]
        # Clipped for rounding alone: the density has the same support.
        return {
            "mean": ops.clip(self._low + (self._high - self._low) * mean, self._low, self._high),
            "stddev": (self._high - self._low) * stddev,
            "quantiles": ops.clip(low + (high - low) * quantiles, low, high),
            "density": numbers,
        }

    def score(self, truth, outputs):
        return _nll(self, truth, outputs)

    def compute_output_shape(self, input_shape):
        shape = (input_shape[0], len(self.support))
        return {
            "mean": shape,
            "stddev": shape,
            "quantiles": (*shape, len(QUANTILE_LEVELS)),
            "density": (input_shape[0], self.density.num_numbers),
        }

    def get_config(self):
        return {**super().get_config(), "support": self.support, **self.density.get_config()}


@keras.saving.register_keras_serializable(package="dlens_tf")
class GaussianHead(DensityHead):
    """Independent normal posteriors, cut at the ends of the prior's support."""

    kind = "gaussian"
    losses_by_name: ClassVar = {"nll": _nll, "beta_nll": _beta_nll}


@keras.saving.register_keras_serializable(package="dlens_tf")
class CovarianceHead(DensityHead):
    """One normal posterior of full covariance, over the probits of places in the support."""

    kind = "covariance"


@keras.saving.register_keras_serializable(package="dlens_tf")
class MixtureHead(DensityHead):
    """A mixture of joint posteriors; option: `components`, see `densities.MixtureDensity`."""

    kind = "mixture"


@keras.saving.register_keras_serializable(package="dlens_tf")
class SplineHead(DensityHead):
    """Independent posteriors of any shape: flat, skewed, narrow, with several peaks.

    Option: `bins`, see `densities.SplineDensity`.
    """

    kind = "spline"
    losses_by_name: ClassVar = {"nll": _nll, "crps": _crps}


@keras.saving.register_keras_serializable(package="dlens_tf")
class FlowHead(DensityHead):
    """A joint posterior of any shape; options: `bins`, `hidden`, see `densities.FlowDensity`."""

    kind = "flow"


HEADS: Mapping[str, type[_Head]] = {
    head.kind: head
    for head in (PointHead, GaussianHead, CovarianceHead, MixtureHead, SplineHead, FlowHead)
}
