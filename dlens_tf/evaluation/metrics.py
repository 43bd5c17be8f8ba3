"""Accuracy and calibration of predictions, each number with its bootstrap standard error.

Every metric here is a function of means over examples (of the error, its square, its absolute
value, ...). A bootstrap resample therefore only reweights those means: all resamples are one
product of a matrix of counts with a matrix of columns.

Results are plain dictionaries ready for JSON: `{"mae": {"value": ..., "standard_error": ...}}`,
with None, never NaN, for what is not defined (no example; the error of a single example; R²
without spread in the truth).

Reference: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 6.
"""

import dataclasses

import numpy as np

from dlens_tf.parameters import Parameter

RESAMPLES = 1000
_CELLS_PER_CHUNK = 2_000_000  # of the matrix of counts: 16 MB

TITLES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "bias": "bias",
    "r2": "R²",
    "nll": "NLL",
    "crps": "CRPS",
    "coverage_50": "in 50 %",
    "coverage_68": "in 68 %",
    "coverage_90": "in 90 %",
    "coverage_95": "in 95 %",
    "width_68": "68 % width",
    "contraction": "contraction",
}
"""Column titles, in the order of tables."""

MEANINGS = {
    "mae": "mean absolute error",
    "rmse": "root mean square error",
    "bias": "mean of predicted minus true",
    "r2": "fraction of the variance of the truth that is explained",
    "nll": "mean negative log-likelihood of the truth under the posterior, in nats",
    "crps": "mean continuous ranked probability score",
    "coverage_50": "fraction of truths inside the central 50 % interval",
    "coverage_68": "fraction of truths inside the central 68 % interval",
    "coverage_90": "fraction of truths inside the central 90 % interval",
    "coverage_95": "fraction of truths inside the central 95 % interval",
    "width_68": "mean width of the central 68 % interval: the sharpness",
    "contraction": "1 minus the mean posterior variance over the prior's",
}

COVERAGE = {"coverage_50": 0.50, "coverage_68": 0.68, "coverage_90": 0.90, "coverage_95": 0.95}
"""Probabilities of the central intervals."""

EXACT_TITLE = "exact posterior's expected error"
"""Of what is beside the metrics in bins of the true value, where it is known."""

EXACT_NOTE = "it is no bound within a bin of the true value, only in the mean over the whole prior"

Estimate = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Marginals:
    """What the posteriors of N images say about the truth of one parameter; each is [N].

    Attributes:
      pit: the distribution function at the truth.
      log_prob: natural logarithm of the density there; -inf where the truth is excluded.
      crps: continuous ranked probability score.
      width: of the central 68 % interval.
      variance: of the posterior.
    """

    pit: np.ndarray
    log_prob: np.ndarray
    crps: np.ndarray
    width: np.ndarray
    variance: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Marginals":
        """Those of some images."""
        fields = dataclasses.fields(self)
        return Marginals(**{field.name: getattr(self, field.name)[rows] for field in fields})


def difference_unit(parameter: Parameter) -> str:
    """The unit of a difference of two values: "dex" for logarithms, else the parameter's own."""
    return "dex" if parameter.unit.startswith("log10(") else parameter.unit


def residuals(parameter: Parameter, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Predicted minus true, float64; for angles the shorter way round, in ±period/2."""
    difference = np.asarray(predicted, np.float64) - np.asarray(truth, np.float64)
    if parameter.period is None:
        return difference
    half = 0.5 * parameter.period
    return (difference + half) % parameter.period - half


_POINT = ("mae", "rmse", "bias", "r2")
_NUM_POINT_COLUMNS = 5


def _columns(
    parameter: Parameter, truth: np.ndarray, predicted: np.ndarray, marginals: Marginals | None
) -> np.ndarray:
    """Per-example quantities [N, 5] or [N, 13] whose means determine every metric."""
    error = residuals(parameter, truth, predicted)
    # Centred, so that the variance below does not cancel away for values far from zero.
    centred = truth - truth.mean() if len(truth) else truth
    columns = [np.abs(error), error, error**2, centred, centred**2]
    if marginals is not None:
        columns += [-marginals.log_prob, marginals.crps]
        columns += [np.abs(2.0 * marginals.pit - 1.0) <= level for level in COVERAGE.values()]
        columns += [marginals.width, 1.0 - marginals.variance / parameter.prior.std**2]
    return np.stack(columns, axis=-1).astype(np.float64)


def _from_means(parameter: Parameter, means: np.ndarray, spread: float) -> dict[str, np.ndarray]:
    """Metrics [...] from means of columns [..., K]; NaN where R² is not defined."""
    mae, bias, square, first, second = np.moveaxis(means[..., :_NUM_POINT_COLUMNS], -1, 0)
    variance = second - first**2
    # A resample that repeats one example has no variance but for rounding.
    defined = (variance > 1e-12 * spread) & (parameter.period is None)
    explained = 1.0 - square / np.where(defined, variance, 1.0)
    values = {
        "mae": mae,
        "rmse": np.sqrt(square),
        "bias": bias,
        "r2": np.where(defined, explained, np.nan),
    }
    if means.shape[-1] > _NUM_POINT_COLUMNS:
        names = [name for name in TITLES if name not in _POINT]
        further = np.moveaxis(means[..., _NUM_POINT_COLUMNS:], -1, 0)
        values.update(zip(names, further, strict=True))
    return values


def resampled_means(columns: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of the columns over bootstrap resamples of the rows.

    Args:
      columns: float64 [N, K], N at least 1.
      resamples: how many samples of N rows to draw with replacement.
      seed: of the draws.

    Returns:
      float64 [resamples, K].
    """
    rng = np.random.default_rng(seed)
    num = len(columns)
    means = np.empty((resamples, columns.shape[1]))
    chunk = max(1, _CELLS_PER_CHUNK // num)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        picks = rng.integers(num, size=(size, num)) + num * np.arange(size)[:, None]
        counts = np.bincount(picks.ravel(), minlength=size * num).reshape(size, num)
        means[start : start + size] = counts.astype(np.float64) @ columns / num
    return means


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def compute_metrics(
    parameter: Parameter,
    truth: np.ndarray,
    predicted: np.ndarray,
    marginals: Marginals | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Metrics of one parameter, with bootstrap standard errors over examples.

    Args:
      parameter: what is predicted; angles are compared the shorter way round and have no R².
      truth: [N].
      predicted: point estimate [N].
      marginals: what the posteriors say; None for point predictions.
      resamples: bootstrap resamples.
      seed: of the resampling; the same seed resamples the same examples, so that two models
        compare in pairs.

    Returns:
      "mae", "rmse", "bias", "r2" and, with `marginals`, the others of `TITLES`: each
      `{"value", "standard_error"}`, None where not defined. The NLL is not if a truth is excluded.
    """
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    shape = None if marginals is None else marginals.pit.shape
    if truth.ndim != 1 or predicted.shape != truth.shape or shape not in (None, truth.shape):
        raise ValueError(f"shapes differ: {truth.shape}, {predicted.shape}, {shape}")
    names = list(_POINT if marginals is None else TITLES)
    if not len(truth):
        return {name: {"value": None, "standard_error": None} for name in names}
    columns = _columns(parameter, truth, predicted, marginals)
    # A column with an infinity would spread NaN over the others.
    columns[:, ~np.isfinite(columns).all(axis=0)] = np.nan
    spread = columns[:, 4].max()
    values = _from_means(parameter, columns.mean(axis=0), spread)
    if len(truth) > 1:
        means = resampled_means(columns, resamples, seed)
        errors = {k: v.std(ddof=1) for k, v in _from_means(parameter, means, spread).items()}
    else:
        errors = dict.fromkeys(names, np.nan)
    return {
        name: {"value": _number(values[name]), "standard_error": _number(errors[name])}
        for name in names
    }


def estimate_mean(values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of values [N] with its bootstrap standard error; None where not finite."""
    value, error = float(np.mean(values)), np.nan
    if np.isfinite(value) and len(values) > 1:
        error = resampled_means(values[:, np.newaxis], resamples, seed).std(ddof=1)
    return {"value": _number(value), "standard_error": _number(error)}


def equal_edges(parameter: Parameter, num_bins: int = 8) -> np.ndarray:
    """Edges of equal bins over the prior range, float64 [num_bins + 1]."""
    return np.linspace(*parameter.prior.support, num_bins + 1)


def quantile_edges(values: np.ndarray, num_bins: int = 5) -> np.ndarray:
    """Edges of bins that hold equally many values; fewer bins where values repeat.

    Returns:
      float64 [B + 1] with 1 ≤ B ≤ num_bins; equal values give one bin without width.
    """
    values = np.asarray(values, np.float64)
    edges = np.unique(np.quantile(values, np.linspace(0.0, 1.0, num_bins + 1)))
    return edges if len(edges) > 1 else np.repeat(edges, 2)


def bin_indices(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin of each value, int [N]: low ≤ value < high.

    The outer bins take the values at and, for the sake of float32 rounding, beyond their edges.
    """
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)


def binned_metrics(
    parameter: Parameter,
    truth: np.ndarray,
    predicted: np.ndarray,
    marginals: Marginals | None,
    by: np.ndarray,
    edges: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict]:
    """Metrics in bins of another quantity. R² is left out: it is not comparable between bins.

    Args:
      parameter: as in `compute_metrics`, like `truth`, `predicted`, `marginals`, `resamples` and
        `seed`.
      truth: [N].
      predicted: [N].
      marginals: of N, or None.
      by: the quantity to bin by [N].
      edges: edges of the bins in `by`, ascending [B + 1].
      resamples: bootstrap resamples, within each bin.
      seed: of the resampling.

    Returns:
      B dictionaries "low", "high", "count", "metrics".
    """
    index = bin_indices(by, edges)
    bins = []
    for i in range(len(edges) - 1):
        inside = index == i
        metrics = compute_metrics(
            parameter,
            truth[inside],
            predicted[inside],
            None if marginals is None else marginals[inside],
            resamples=resamples,
            seed=seed,
        )
        del metrics["r2"]
        bins.append(
            {
                "low": float(edges[i]),
                "high": float(edges[i + 1]),
                "count": int(inside.sum()),
                "metrics": metrics,
            }
        )
    return bins


def ratio(numerator: Estimate, denominator: Estimate) -> Estimate:
    """The quotient of two independent estimates, with its standard error to first order."""
    top, bottom = numerator["value"], denominator["value"]
    if top is None or not bottom:
        return {"value": None, "standard_error": None}
    errors = numerator["standard_error"], denominator["standard_error"]
    error = None
    if None not in errors:
        error = float(np.hypot(errors[0], top / bottom * errors[1]) / bottom)
    return {"value": top / bottom, "standard_error": error}
