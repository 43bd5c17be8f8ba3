"""Accuracy and calibration of predictions, each number with its bootstrap standard error.

Every metric here is a function of means over examples (of the error, its square, its absolute
value, ...). A bootstrap resample therefore only reweights those means: all resamples are one
product of a matrix of counts with a matrix of columns.

Results are plain dictionaries ready for JSON: `{"mae": {"value": ..., "standard_error": ...}}`,
with None, never NaN, for what is not defined (no example; the error of a single example; R²
without spread in the truth).

Reference: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 6.
"""

import statistics

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
    "coverage_68": "in 68 %",
    "coverage_95": "in 95 %",
}
"""Column titles, in the order of tables."""

MEANINGS = {
    "mae": "mean absolute error",
    "rmse": "root mean square error",
    "bias": "mean of predicted minus true",
    "r2": "fraction of the variance of the truth that is explained",
    "nll": "mean negative log-likelihood of the truth under the predicted Gaussian, in nats",
    "coverage_68": "fraction of truths inside the central 68 % interval",
    "coverage_95": "fraction of truths inside the central 95 % interval",
}

_HALF_WIDTH = {level: statistics.NormalDist().inv_cdf(0.5 + level / 200.0) for level in (68, 95)}
"""Half-width of the central interval of this percentage, in standard deviations."""

Estimate = dict[str, float | None]


def difference_unit(parameter: Parameter) -> str:
    """The unit of a difference of two values: "dex" for logarithms, else the parameter's own."""
    return "dex" if parameter.unit.startswith("log10(") else parameter.unit


def residuals(parameter: Parameter, truth: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Predicted minus true, float64; for angles the shorter way round, in ±period/2."""
    difference = np.asarray(mean, np.float64) - np.asarray(truth, np.float64)
    if parameter.period is None:
        return difference
    half = 0.5 * parameter.period
    return (difference + half) % parameter.period - half


def _columns(
    parameter: Parameter, truth: np.ndarray, mean: np.ndarray, stddev: np.ndarray | None
) -> np.ndarray:
    """Per-example quantities [N, 5] or [N, 8] whose means determine every metric."""
    error = residuals(parameter, truth, mean)
    # Centred, so that the variance below does not cancel away for values far from zero.
    centred = truth - truth.mean() if len(truth) else truth
    columns = [np.abs(error), error, error**2, centred, centred**2]
    if stddev is not None:
        z = error / stddev
        columns += [0.5 * z**2 + np.log(stddev) + 0.5 * np.log(2.0 * np.pi)]
        columns += [np.abs(z) <= half_width for half_width in _HALF_WIDTH.values()]
    return np.stack(columns, axis=-1).astype(np.float64)


def _from_means(parameter: Parameter, means: np.ndarray, spread: float) -> dict[str, np.ndarray]:
    """Metrics [...] from means of columns [..., K]; NaN where R² is not defined."""
    mae, bias, square, first, second = np.moveaxis(means[..., :5], -1, 0)
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
    if means.shape[-1] > 5:
        names = ("nll", "coverage_68", "coverage_95")
        values.update(zip(names, np.moveaxis(means[..., 5:], -1, 0), strict=True))
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
    mean: np.ndarray,
    stddev: np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Metrics of one parameter, with bootstrap standard errors over examples.

    Args:
      parameter: what is predicted; angles are compared the shorter way round and have no R².
      truth: [N].
      mean: predicted value [N].
      stddev: predicted standard deviation [N], positive; None for point predictions.
      resamples: bootstrap resamples.
      seed: of the resampling; the same seed resamples the same examples, so that two models
        compare in pairs.

    Returns:
      "mae", "rmse", "bias", "r2" and, with `stddev`, "nll", "coverage_68", "coverage_95": each
      `{"value", "standard_error"}`, None where not defined.
    """
    truth, mean = np.asarray(truth, np.float64), np.asarray(mean, np.float64)
    stddev = None if stddev is None else np.asarray(stddev, np.float64)
    if truth.ndim != 1 or mean.shape != truth.shape or np.shape(stddev) not in ((), truth.shape):
        raise ValueError(f"shapes differ: {truth.shape}, {mean.shape}, {np.shape(stddev)}")
    names = list(TITLES) if stddev is not None else ["mae", "rmse", "bias", "r2"]
    if not len(truth):
        return {name: {"value": None, "standard_error": None} for name in names}
    columns = _columns(parameter, truth, mean, stddev)
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
    mean: np.ndarray,
    stddev: np.ndarray | None,
    by: np.ndarray,
    edges: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict]:
    """Metrics in bins of another quantity. R² is left out: it is not comparable between bins.

    Args:
      parameter: as in `compute_metrics`, like `truth`, `mean`, `stddev`, `resamples`, `seed`.
      truth: [N].
      mean: [N].
      stddev: [N] or None.
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
            mean[inside],
            None if stddev is None else stddev[inside],
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
