"""Posteriors over the inferred parameters, in physical units.

One interface, whatever the head: a subclass says how its marginals and joint law are computed.
Importing this module needs no TensorFlow; a posterior made of a model's density uses Keras.

Example:
    >>> posterior = Posterior.from_outputs(targets, head.density_config, outputs)
    >>> posterior.median, posterior.interval(0.68)               # [N, P], [N, P, 2]
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dlens_tf.errors import UserError
from dlens_tf.io.catalogues import Column
from dlens_tf.parameters import ParameterSet, float32_supports
from dlens_tf.quantiles import QUANTILE_LEVELS

OOD_THRESHOLD = 1.0
"""Images with a larger `ood_score` are unlike the training images."""
_MANY_GOES = 4
_VALUES_AT_ONCE = 4_000_000  # numbers held at a time; 32 MB in each of a few arrays


def _digits(level: float) -> str:
    """The decimals of a level, at least two: 0.025 is "025", 0.5 is "50"."""
    return f"{level:.3f}"[2:].removesuffix("0")


def checked_levels(levels: Sequence[float]) -> np.ndarray:
    """Quantile levels as float64 [Q].

    Raises:
      UserError: unless they are a list, all between 0 and 1.
    """
    levels = np.asarray(levels, dtype=np.float64)
    if levels.ndim != 1:
        raise UserError(f"quantile levels must be a list, for example [0.5], not {levels.tolist()}")
    if not ((levels > 0.0) & (levels < 1.0)).all():
        raise UserError(f"quantile levels must lie between 0 and 1: {levels.tolist()}")
    return levels


class Posterior:
    """Posteriors of P parameters for each of N images.

    A subclass sets the attributes and computes `quantiles`, `cdf`, `log_prob`, `joint_log_prob`,
    `samples` and `_select`; the rest follows from them.

    Marginal means: of one parameter by itself, over all values of the others.

    Attributes:
      parameters: the P parameters, in order.
      mean: posterior means, float64 [N, P], in each parameter's unit.
      stddev: posterior standard deviations, float64 [N, P], or None for a point estimate.
      ood_score: how unlike the training images each image is, float64 [N], see
        `inference.out_of_distribution`; None if the model does not say.
    """

    parameters: ParameterSet
    mean: np.ndarray
    stddev: np.ndarray | None
    ood_score: np.ndarray | None = None

    @staticmethod
    def from_outputs(
        parameters: ParameterSet, head: Mapping[str, Any], outputs: Mapping[str, np.ndarray]
    ) -> "Posterior":
        """The posterior that a model's outputs tell.

        Args:
          parameters: the P parameters, in the order of the outputs.
          head: the head's `density_config`: {"kind": …, **options}.
          outputs: arrays [N, …] by name, as the head gives them.

        Raises:
          UserError: if the head is unknown, or its outputs are not all there.
        """
        posterior: Posterior
        if head["kind"] == "point":
            posterior = PointPosterior(parameters, outputs["mean"])
        else:
            for name in ("mean", "stddev", "density"):
                if name not in outputs:
                    raise UserError(f"outputs of a {head['kind']} head lack '{name}'")
            posterior = DensityPosterior(parameters, head, outputs)
        if "ood_score" in outputs:
            posterior.ood_score = _checked("ood_score", outputs["ood_score"], (len(posterior),))
        return posterior

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def median(self) -> np.ndarray:
        """Posterior medians, float64 [N, P]."""
        return self.quantiles([0.5])[..., 0]

    def quantiles(self, levels: Sequence[float] = QUANTILE_LEVELS) -> np.ndarray:
        """Marginal quantiles.

        Args:
          levels: Q probabilities, each between 0 and 1.

        Returns:
          float64 [N, P, Q].

        Raises:
          UserError: if the levels are no list or one is out of range, or the model gives point
            estimates.
        """
        raise NotImplementedError

    def interval(self, level: float = 0.68) -> np.ndarray:
        """Equal-tailed credible intervals, low and high end.

        Args:
          level: probability inside, between 0 and 1.

        Returns:
          float64 [N, P, 2].

        Raises:
          UserError: if the level is out of range, or the model gives point estimates.
        """
        return self.quantiles([0.5 - 0.5 * level, 0.5 + 0.5 * level])

    def cdf(self, values: np.ndarray) -> np.ndarray:
        """Marginal probabilities of a smaller value; at the truth, the PIT.

        Args:
          values: parameter values, broadcast to [..., N, P].

        Returns:
          float64 [..., N, P].

        Raises:
          UserError: if the model gives point estimates.
        """
        raise NotImplementedError

    def log_prob(self, values: np.ndarray) -> np.ndarray:
        """Natural logarithms of the marginal densities; -inf outside the prior's support.

        Args:
          values: parameter values, broadcast to [..., N, P].

        Returns:
          float64 [..., N, P], the density per unit of each parameter.

        Raises:
          UserError: if the model gives point estimates.
        """
        raise NotImplementedError

    def joint_log_prob(self, values: np.ndarray) -> np.ndarray:
        """Natural logarithm of the joint density; -inf outside the prior's support.

        Args:
          values: parameter values, broadcast to [..., N, P].

        Returns:
          float64 [..., N], the density per product of the parameters' units.

        Raises:
          UserError: if the model gives point estimates.
        """
        raise NotImplementedError

    def samples(self, num_samples: int, seed: int) -> np.ndarray:
        """Draws from the joint posterior.

        Returns:
          float64 [num_samples, N, P]; the same for the same seed.

        Raises:
          UserError: if `num_samples` is negative, or the model gives point estimates.
        """
        raise NotImplementedError

    def select(self, rows) -> "Posterior":
        """The posteriors of some of the images; `rows` indexes an array's first axis."""
        selected = self._select(rows)
        if self.ood_score is not None:
            selected.ood_score = self.ood_score[rows]
        return selected

    def _select(self, rows) -> "Posterior":
        """`select` without the scores."""
        raise NotImplementedError

    def columns(self) -> list[Column]:
        """Columns for a catalogue, float32 as the models give them.

        For each parameter <name>_mean and, unless it is a point estimate, <name>_stddev and the
        quantiles at `QUANTILE_LEVELS`: <name>_q025, _q16, _q50, _q84, _q975. At last ood_score, if
        there is one.
        """
        mean, quantiles = self.mean.astype(np.float32), None
        if self.stddev is not None:
            low, high = float32_supports(self.parameters.supports).T
            mean = np.clip(mean, low, high)
            quantiles = self.quantiles(QUANTILE_LEVELS).astype(np.float32)
            quantiles = np.clip(quantiles, low[:, np.newaxis], high[:, np.newaxis])
        columns = []
        for p, parameter in enumerate(self.parameters):
            name, unit = parameter.name, parameter.unit
            columns.append(Column(f"{name}_mean", mean[:, p], unit))
            if quantiles is None:
                continue
            # A width on a logarithmic scale is a number of dex, whatever the scale's unit.
            width_unit = "log10" if unit.startswith("log10(") else unit
            width = self.stddev[:, p].astype(np.float32)
            columns.append(Column(f"{name}_stddev", width, width_unit))
            for q, level in enumerate(QUANTILE_LEVELS):
                columns.append(Column(f"{name}_q{_digits(level)}", quantiles[:, p, q], unit))
        if self.ood_score is not None:
            columns.append(Column("ood_score", self.ood_score.astype(np.float32)))
        return columns

    def describe(self, index: int) -> str:
        """One line about an image: each parameter's median with its 68 % interval, and unit.

        "-23.100 (+0.041 -0.038)": the interval is from -23.138 to -23.059. Of a point estimate only
        what it says; with a warning if the image is unlike the training images.
        """
        parts = []
        if self.stddev is not None:
            [quantiles] = self.select([index]).quantiles([0.16, 0.5, 0.84])
        for column, parameter in enumerate(self.parameters):
            if self.stddev is None:
                text = f"{parameter.name} = {self.mean[index, column]:.3f}"
            else:
                low, median, high = quantiles[column]
                text = f"{parameter.name} = {median:.3f} (+{high - median:.3f} -{median - low:.3f})"
            parts.append(f"{text} {parameter.unit}".rstrip())
        if self.ood_score is not None and self.ood_score[index] > OOD_THRESHOLD:
            parts.append(f"unlike the training images (ood_score {self.ood_score[index]:.3g})")
        return ", ".join(parts)


class PointPosterior(Posterior):
    """Point estimates, which have no width: whatever needs one raises a `UserError`.

    Args:
      parameters: P parameters.
      mean: the estimates, [N, P].
    """

    def __init__(self, parameters: ParameterSet, mean: np.ndarray):
        self.parameters = parameters
        self.mean = _checked("mean", mean, (len(mean), len(parameters)))
        self.stddev = None

    def _refuse(self, *_, **__):
        raise UserError(
            "this model gives point estimates without an uncertainty; train with another --head "
            "for quantiles, samples and densities"
        )

    quantiles = cdf = log_prob = joint_log_prob = samples = _refuse

    def _select(self, rows) -> "PointPosterior":
        return PointPosterior(self.parameters, self.mean[rows])


class DensityPosterior(Posterior):
    """Posteriors of a family of `models.densities`, computed in float64.

    Args:
      parameters: P parameters with priors; each posterior lives on its prior's support.
      head: {"kind": one of `densities.DENSITIES`, **its options}.
      outputs: "mean" and "stddev" [N, P] and "density" [N, D], as the head gives them.

    Raises:
      UserError: if the family is unknown.
    """

    def __init__(
        self,
        parameters: ParameterSet,
        head: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
    ):
        from dlens_tf.models.densities import make_density

        self.parameters = parameters
        self._head = dict(head)
        self._density = make_density(head, len(parameters))
        shape = (len(outputs["mean"]), len(parameters))
        self.mean = _checked("mean", outputs["mean"], shape)
        self.stddev = _checked("stddev", outputs["stddev"], shape)
        if not (self.stddev > 0.0).all():
            raise ValueError("standard deviations must be positive")
        self._numbers = _checked(
            "density", outputs["density"], (shape[0], self._density.num_numbers)
        )
        self._programs: dict[Callable, Callable] = {}  # compiled questions
        self._low, self._high = parameters.supports.T
        self._width = self._high - self._low

    def _to_unit(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values as fractions of the support, [..., N, P], and whether they are inside."""
        values = np.asarray(values, dtype=np.float64)
        values = np.broadcast_to(values, np.broadcast_shapes(values.shape, self.mean.shape))
        x = (values - self._low) / self._width
        return x, (values >= self._low) & (values <= self._high)

    def _ask(self, question: Callable, values: np.ndarray, axis: int) -> np.ndarray:
        """Asks the density some images at a time, so that memory has a bound.

        What takes many goes is compiled first, which takes seconds but then saves minutes.

        Args:
          question: takes numbers [n, D] and values [..., n, K]; returns a tensor.
          values: [..., N, K].
          axis: of the images in the answer.
        """
        from keras import ops

        size = values.size // max(1, len(self)) * self._density.cost
        step = max(1, _VALUES_AT_ONCE // max(1, size + self._density.cost_per_image))
        starts = range(0, max(1, len(self)), step)
        if len(starts) >= _MANY_GOES:
            question = self._programs.setdefault(question, _compiled(question))
        parts = []
        for i in starts:
            rows = (
                np.arange(i, i + step).clip(max=len(self) - 1) if len(starts) > 1 else slice(None)
            )
            asked = (self._numbers[rows], values[..., rows, :])
            answer = question(*map(ops.convert_to_tensor, asked))
            parts.append(ops.convert_to_numpy(answer))
        return np.concatenate(parts, axis=axis).take(range(len(self)), axis=axis)

    def quantiles(self, levels: Sequence[float] = QUANTILE_LEVELS) -> np.ndarray:
        levels = checked_levels(levels)
        u = np.broadcast_to(levels[:, np.newaxis, np.newaxis], (len(levels), *self.mean.shape))
        x = np.moveaxis(self._ask(self._density.icdf, u, axis=-2), 0, -1)
        low, high = self._low[:, np.newaxis], self._high[:, np.newaxis]
        return np.clip(low + self._width[:, np.newaxis] * x, low, high)

    def cdf(self, values: np.ndarray) -> np.ndarray:
        x, _ = self._to_unit(values)
        return self._ask(self._density.cdf, np.clip(x, 0.0, 1.0), axis=-2)

    def log_prob(self, values: np.ndarray) -> np.ndarray:
        x, is_inside = self._to_unit(values)
        log_prob = self._ask(self._density.log_prob, np.clip(x, 0.0, 1.0), axis=-2)
        return np.where(is_inside, log_prob - np.log(self._width), -np.inf)

    def joint_log_prob(self, values: np.ndarray) -> np.ndarray:
        x, is_inside = self._to_unit(values)
        log_prob = self._ask(self._density.joint_log_prob, np.clip(x, 0.0, 1.0), axis=-1)
        return np.where(is_inside.all(axis=-1), log_prob - np.log(self._width).sum(), -np.inf)

    def samples(self, num_samples: int, seed: int) -> np.ndarray:
        if num_samples < 0:
            raise UserError(f"the number of samples is {num_samples}, must not be negative")
        shape = (num_samples, len(self), self._density.num_uniforms)
        uniforms = np.random.default_rng(seed).random(shape)
        x = self._ask(self._density.sample, uniforms, axis=-2)
        return np.clip(self._low + self._width * x, self._low, self._high)

    def _select(self, rows) -> "DensityPosterior":
        outputs = {"mean": self.mean, "stddev": self.stddev, "density": self._numbers}
        outputs = {name: values[rows] for name, values in outputs.items()}
        return DensityPosterior(self.parameters, self._head, outputs)


def _compiled(question: Callable) -> Callable:
    """The same by XLA, where Keras runs on TensorFlow."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return question
    import tensorflow as tf

    return tf.function(question, jit_compile=True)


def _checked(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Values as float64; raises a ValueError unless they have the shape."""
    values = np.asarray(values, dtype=np.float64)
    if values.shape != shape:
        raise ValueError(f"{name} has shape {values.shape}, expected {shape}")
    return values
