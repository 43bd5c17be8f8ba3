"""Recalibration: a correction of trained posteriors, learnt on a split of its own.

Marginal posteriors F that are miscalibrated in the same way for all images are mended by a
monotone map G of [0, 1]: the recalibrated distribution function is F'(x) = G(F(x)), and its
quantiles are Q'(τ) = Q(G⁻¹(τ)). The map wanted is the distribution function of the PIT values
u = F(truth), for then G(u) is uniform. Two ways to estimate it from a few thousand images:

* "isotonic": the empirical distribution function of the PIT, condensed to a few knots and drawn
  a little towards the identity;
* "temperature": G(u) = Φ(Φ⁻¹(u) / T), one number that widens (T > 1) or narrows every posterior
  about its median; for a Gaussian it is a factor on the deviation.

Each parameter has its own map, stored as a piecewise-linear table whichever way it was made;
dependences between the parameters stay as they are. What G can't mend is a miscalibration that
differs between images and cancels on average: look at the bins.

References: Kuleshov et al. 2018, arXiv:1807.00263; Guo et al. 2017, arXiv:1706.04599.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import interpolate, special

from dlens_tf.errors import UserError, choose
from dlens_tf.evaluation.calibration import LEVELS, WEIGHTS
from dlens_tf.inference.posterior import Posterior, checked_levels
from dlens_tf.io.files import file_checksum
from dlens_tf.parameters import ParameterSet
from dlens_tf.quantiles import QUANTILE_LEVELS
from dlens_tf.training.run_folder import RunFolder

METHODS = ("isotonic", "temperature")
MIN_IMAGES = 200
"""Fewer say too little about the tails."""

FORMAT_VERSION = 1
_KNOTS = np.array([0.01, 0.025, 0.05, *np.linspace(0.1, 0.9, 9), 0.95, 0.975, 0.99])
"""Shares of PIT values at which the empirical distribution function is kept."""
_STEPS = 4
"""Pieces of the table between two of these, so that densities have no jumps worth the name."""
_PSEUDO_IMAGES = 20
"""Perfectly calibrated images that are added in thought: they keep the map strictly monotone."""
_MIN_STEP = 1e-6  # between knots; float32 tells them apart up to 1 - 6e-8
_PROBIT_KNOTS = np.linspace(-5.0, 5.0, 51)


@dataclasses.dataclass(frozen=True)
class CalibrationMap:
    """A strictly monotone, piecewise-linear map G of [0, 1] onto itself.

    Attributes:
      method: one of `METHODS`.
      levels: knots, float64 [K], ascending from 0 to 1.
      calibrated: G there, float64 [K], ascending from 0 to 1.
    """

    method: str
    levels: np.ndarray
    calibrated: np.ndarray

    def __post_init__(self):
        for name in ("levels", "calibrated"):
            values = np.asarray(getattr(self, name), np.float64)
            object.__setattr__(self, name, values)
            if values.ndim != 1 or values[0] != 0.0 or values[-1] != 1.0:
                raise ValueError(f"{name} don't go from 0 to 1: {values}")
            if not (np.diff(values) > 0.0).all():
                raise ValueError(f"{name} don't ascend: {values}")
        if self.levels.shape != self.calibrated.shape:
            raise ValueError(f"{self.levels.shape} levels, {self.calibrated.shape} calibrated")

    @classmethod
    def identity(cls) -> "CalibrationMap":
        """The map that changes nothing."""
        return cls("isotonic", np.array([0.0, 1.0]), np.array([0.0, 1.0]))

    def apply(self, probability: np.ndarray) -> np.ndarray:
        """G, from what the model says to what it means; any shape."""
        return np.interp(probability, self.levels, self.calibrated)

    def invert(self, probability: np.ndarray) -> np.ndarray:
        """G⁻¹; any shape."""
        return np.interp(probability, self.calibrated, self.levels)

    def slope(self, probability: np.ndarray) -> np.ndarray:
        """dG/du, the factor on the density; any shape. At a knot, that to its right."""
        slopes = np.diff(self.calibrated) / np.diff(self.levels)
        index = np.searchsorted(self.levels, probability, side="right") - 1
        return slopes[np.clip(index, 0, len(slopes) - 1)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: "method", "levels", "calibrated"."""
        return {
            "method": self.method,
            "levels": self.levels.tolist(),
            "calibrated": self.calibrated.tolist(),
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "CalibrationMap":
        """The inverse of `to_dict`."""
        return cls(config["method"], config["levels"], config["calibrated"])


def fit_isotonic(pit: np.ndarray) -> CalibrationMap:
    """The empirical distribution function of PIT values [N] as a short monotone table.

    Knots lie at the data's own quantiles, so that there are many where the values crowd. At each
    knot G is the share of values at or below it among N images and 20 more that are imagined to be
    calibrated perfectly; in the tails there are no knots with fewer than ten images beyond.
    Between knots it follows a monotone cubic.

    References: Kuleshov et al. 2018, arXiv:1807.00263, algorithm 1; Fritsch & Butland 1984, SIAM J.
    Sci. Stat. Comput. 5, 300 (monotone cubics).
    """
    num = len(pit)
    shares = _KNOTS[np.minimum(_KNOTS, 1.0 - _KNOTS) * num >= 10.0 - 1e-9]
    levels = np.unique(np.quantile(pit, shares, method="inverted_cdf"))
    levels = levels[(levels >= _MIN_STEP) & (levels <= 1.0 - _MIN_STEP)]
    kept = [0.0]
    for level in levels:
        if level - kept[-1] >= _MIN_STEP:
            kept.append(float(level))
    levels = np.array([*kept, 1.0])
    # N + 1 rather than N: the expected share of new values below the i-th of N is i / (N + 1).
    share = np.searchsorted(np.sort(pit), levels, side="right") / (num + 1)
    weight = _PSEUDO_IMAGES / (num + _PSEUDO_IMAGES)
    calibrated = weight * levels + (1.0 - weight) * share
    calibrated[[0, -1]] = 0.0, 1.0
    smooth = interpolate.PchipInterpolator(levels, calibrated)
    places = np.arange(_STEPS * (len(levels) - 1) + 1) / _STEPS
    levels = np.interp(places, np.arange(len(levels)), levels)
    calibrated = smooth(levels)
    calibrated[[0, -1]] = 0.0, 1.0  # but for rounding they are
    return CalibrationMap("isotonic", levels, calibrated)


def fit_temperature(pit: np.ndarray) -> CalibrationMap:
    """The temperature T that makes Φ⁻¹(PIT) / T most likely to be unit normal: its rms.

    A truth beyond five deviations, where float32 no longer tells a PIT value from 0 or 1, counts as
    one at five.

    Args:
      pit: [N].
    """
    z = np.clip(special.ndtri(pit), _PROBIT_KNOTS[0], _PROBIT_KNOTS[-1])
    temperature = np.sqrt(np.mean(z**2))
    levels, calibrated = (special.ndtr(z) for z in (_PROBIT_KNOTS, _PROBIT_KNOTS / temperature))
    # Where a tail is stretched beyond what numbers resolve, knots coincide.
    inside = (calibrated > 1e-12) & (calibrated < 1.0 - 1e-12)
    ends = ([0.0], [1.0])
    return CalibrationMap(
        "temperature",
        np.concatenate([ends[0], levels[inside], ends[1]]),
        np.concatenate([ends[0], calibrated[inside], ends[1]]),
    )


_FITS = {"isotonic": fit_isotonic, "temperature": fit_temperature}


@dataclasses.dataclass(frozen=True)
class Recalibration:
    """The maps of all parameters, and what they were learnt from.

    Attributes:
      maps: by name of the parameter.
      source: JSON-ready: whatever tells where the maps come from.
    """

    maps: Mapping[str, CalibrationMap]
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        method: str,
        pit: np.ndarray,
        parameters: ParameterSet,
        source: Mapping[str, Any] | None = None,
    ) -> "Recalibration":
        """Learns the maps from PIT values.

        Args:
          method: one of `METHODS`.
          pit: of images that neither training nor test has, float [N, P].
          parameters: the P parameters.
          source: to be kept with the maps.

        Raises:
          UserError: if the method is unknown or there are fewer than `MIN_IMAGES`.
        """
        fit = _FITS[choose("recalibration", method, METHODS)]
        if len(pit) < MIN_IMAGES:
            raise UserError(
                f"recalibration needs at least {MIN_IMAGES} images, not {len(pit)}; 2,000 are good"
            )
        maps = {p.name: fit(pit[:, i]) for i, p in enumerate(parameters)}
        return cls(maps, {"num_examples": len(pit), **(source or {})})

    @property
    def method(self) -> str:
        """How the maps were made, one of `METHODS`."""
        return next(iter(self.maps.values())).method

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the inverse of `from_dict`."""
        return {
            "format_version": FORMAT_VERSION,
            **self.source,
            "parameters": {name: table.to_dict() for name, table in self.maps.items()},
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Recalibration":
        """The inverse of `to_dict`.

        Raises:
          ValueError, KeyError, TypeError: if it is no such description.
        """
        if config["format_version"] != FORMAT_VERSION:
            raise ValueError(f"unknown format {config['format_version']}")
        source = {k: v for k, v in config.items() if k not in ("format_version", "parameters")}
        maps = {k: CalibrationMap.from_dict(v) for k, v in config["parameters"].items()}
        return cls(maps, source)

    @classmethod
    def read(cls, path: Path, parameters: ParameterSet) -> "Recalibration":
        """Reads a recalibration.json.

        Raises:
          UserError: if the file is damaged, or of other parameters.
        """
        try:
            recalibration = cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{path} is damaged; fit it again with --recalibrate") from error
        if list(recalibration.maps) != parameters.names:
            raise UserError(
                f"{path} is for {', '.join(recalibration.maps)}, the model infers "
                f"{', '.join(parameters.names)}; fit it again with --recalibrate"
            )
        return recalibration


def read_recalibration(run: RunFolder) -> Recalibration | None:
    """The recalibration of a run's model; None if it has none.

    Raises:
      UserError: if the file is damaged, or was fitted to another model of the run.
    """
    path = run.recalibration_path
    if not path.is_file():
        return None
    recalibration = Recalibration.read(path, run.targets)
    if recalibration.source.get("model_sha256") != file_checksum(run.model_path):
        raise UserError(
            f"{path} was fitted to another model than {run.model_path}; fit it again with "
            "--recalibrate, or remove it"
        )
    return recalibration


def _looked_up(probability: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Quantiles [..., N, P] at a probability each, from those at `LEVELS` [N, P, len(LEVELS)]."""
    result = np.empty(probability.shape)
    for i, p in np.ndindex(quantiles.shape[:2]):
        result[..., i, p] = np.interp(probability[..., i, p], LEVELS, quantiles[i, p])
    return result


class RecalibratedPosterior(Posterior):
    """A posterior whose marginals go through maps; the interface of `Posterior`.

    Quantiles, distribution functions and marginal densities are exact. Moments are integrals over
    quantiles, and draws and joint densities move values by the map from old to new marginals, both
    on a grid of 201 probabilities.

    Args:
      base: the posterior as the model gives it.
      recalibration: maps of its parameters.
    """

    def __init__(self, base: Posterior, recalibration: Recalibration):
        self.base = base
        self.recalibration = recalibration
        self.parameters = base.parameters
        self.ood_score = base.ood_score
        self._maps = [recalibration.maps[p.name] for p in base.parameters]

    @functools.cached_property
    def _grid(self) -> np.ndarray:
        """Quantiles at `LEVELS`."""
        return self.quantiles(LEVELS)

    @functools.cached_property
    def mean(self) -> np.ndarray:
        return self._grid @ WEIGHTS

    @functools.cached_property
    def stddev(self) -> np.ndarray:
        return np.sqrt((self._grid - self.mean[..., np.newaxis]) ** 2 @ WEIGHTS)

    def __len__(self) -> int:
        return len(self.base)

    def _mapped(self, name: str, probability: np.ndarray) -> np.ndarray:
        """A function of the maps, parameter by parameter: [..., P] to [..., P]."""
        columns = [getattr(m, name)(probability[..., p]) for p, m in enumerate(self._maps)]
        return np.stack(columns, axis=-1)

    def quantiles(self, levels: Sequence[float] = QUANTILE_LEVELS) -> np.ndarray:
        levels = checked_levels(levels)
        return np.stack(
            [self.base.quantiles(m.invert(levels))[:, p] for p, m in enumerate(self._maps)], axis=1
        )

    def cdf(self, values: np.ndarray) -> np.ndarray:
        return self._mapped("apply", self.base.cdf(values))

    def log_prob(self, values: np.ndarray) -> np.ndarray:
        slope = self._mapped("slope", self.base.cdf(values))
        return self.base.log_prob(values) + np.log(slope)

    def joint_log_prob(self, values: np.ndarray) -> np.ndarray:
        """The joint density, with the copula of the base: [..., N]."""
        moved = _looked_up(self.cdf(values), self.base.quantiles(LEVELS))
        marginal = self.log_prob(values) - self.base.log_prob(moved)
        return self.base.joint_log_prob(moved) + marginal.sum(axis=-1)

    def samples(self, num_samples: int, seed: int) -> np.ndarray:
        draws = self.base.samples(num_samples, seed)
        return _looked_up(self.base.cdf(draws), self._grid)

    def _select(self, rows) -> "RecalibratedPosterior":
        return RecalibratedPosterior(self.base.select(rows), self.recalibration)
