"""Posteriors over the inferred parameters, in physical units. NumPy and SciPy only."""

from collections.abc import Sequence

import numpy as np
from scipy import special

from dlens_tf.errors import UserError
from dlens_tf.io.catalogues import Column
from dlens_tf.parameters import ParameterSet

QUANTILE_LEVELS = (0.025, 0.16, 0.5, 0.84, 0.975)
"""Levels that served models and catalogues give: the median, and about one and two sigma."""


def _digits(level: float) -> str:
    """The decimals of a level, at least two: 0.025 is "025", 0.5 is "50"."""
    return f"{level:.3f}"[2:].removesuffix("0")


class Posterior:
    """Independent Gaussian marginals of P parameters for each of N images.

    Attributes:
      parameters: the P parameters, in order.
      mean: posterior means, float64 [N, P], in each parameter's unit.
      stddev: posterior standard deviations, float64 [N, P], or None for a point estimate.
    """

    def __init__(
        self, parameters: ParameterSet, mean: np.ndarray, stddev: np.ndarray | None = None
    ):
        self.parameters = parameters
        self.mean = np.asarray(mean, dtype=np.float64)
        self.stddev = None if stddev is None else np.asarray(stddev, dtype=np.float64)
        if self.mean.ndim != 2 or self.mean.shape[1] != len(parameters):
            raise ValueError(f"mean has shape {self.mean.shape}, expected [N, {len(parameters)}]")
        if self.stddev is not None and self.stddev.shape != self.mean.shape:
            raise ValueError(f"stddev has shape {self.stddev.shape}, mean has {self.mean.shape}")
        if self.stddev is not None and not (self.stddev > 0.0).all():
            raise ValueError("standard deviations must be positive")

    def __len__(self) -> int:
        return len(self.mean)

    def _width(self) -> np.ndarray:
        if self.stddev is None:
            raise UserError(
                "this model gives point estimates without an uncertainty; train with a Gaussian "
                "head for quantiles, samples and densities"
            )
        return self.stddev

    def quantiles(self, levels: Sequence[float] = QUANTILE_LEVELS) -> np.ndarray:
        """Marginal quantiles.

        Args:
          levels: Q probabilities, each between 0 and 1.

        Returns:
          float64 [N, P, Q].

        Raises:
          UserError: if a level is out of range, or the model gives point estimates.
        """
        levels = np.asarray(levels, dtype=np.float64)
        if not ((levels > 0.0) & (levels < 1.0)).all():
            raise UserError(f"quantile levels must lie between 0 and 1: {levels.tolist()}")
        width = self._width()[..., np.newaxis]
        return self.mean[..., np.newaxis] + width * special.ndtri(levels)

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

    def samples(self, num_samples: int, seed: int) -> np.ndarray:
        """Draws from the posterior.

        Returns:
          float64 [num_samples, N, P]; the same for the same seed.

        Raises:
          UserError: if the model gives point estimates.
        """
        width = self._width()
        noise = np.random.default_rng(seed).standard_normal((num_samples, *self.mean.shape))
        return self.mean + width * noise

    def log_prob(self, values: np.ndarray) -> np.ndarray:
        """Natural logarithm of the marginal densities.

        The marginals are independent: the sum over the last axis is the joint log-density.

        Args:
          values: parameter values, broadcast to [..., N, P].

        Returns:
          float64 [..., N, P], the density per unit of each parameter.

        Raises:
          UserError: if the model gives point estimates.
        """
        width = self._width()
        residual = (np.asarray(values, dtype=np.float64) - self.mean) / width
        return -0.5 * residual**2 - np.log(width) - 0.5 * np.log(2.0 * np.pi)

    def columns(self) -> list[Column]:
        """Columns for a catalogue, float32 as the models give them.

        For each parameter <name>_mean and, unless it is a point estimate, <name>_stddev and the
        quantiles at `QUANTILE_LEVELS`: <name>_q025, _q16, _q50, _q84, _q975.
        """
        quantiles = None if self.stddev is None else self.quantiles()
        columns = []
        for p, parameter in enumerate(self.parameters):
            name, unit = parameter.name, parameter.unit
            columns.append(Column(f"{name}_mean", self.mean[:, p].astype(np.float32), unit))
            if quantiles is None:
                continue
            # A width on a logarithmic scale is a number of dex, whatever the scale's unit.
            width_unit = "log10" if unit.startswith("log10(") else unit
            width = self.stddev[:, p].astype(np.float32)
            columns.append(Column(f"{name}_stddev", width, width_unit))
            for q, level in enumerate(QUANTILE_LEVELS):
                values = quantiles[:, p, q].astype(np.float32)
                columns.append(Column(f"{name}_q{_digits(level)}", values, unit))
        return columns

    def describe(self, index: int) -> str:
        """One line about an image: each parameter's mean ± standard deviation and unit."""
        parts = []
        for column, parameter in enumerate(self.parameters):
            text = f"{parameter.name} = {self.mean[index, column]:.3f}"
            if self.stddev is not None:
                text += f" ± {self.stddev[index, column]:.3f}"
            parts.append(f"{text} {parameter.unit}".rstrip())
        return ", ".join(parts)
