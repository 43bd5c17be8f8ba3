"""All figures of an evaluation: which examples and numbers go into which plot."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dlens_tf.evaluation import calibration, metrics, plots
from dlens_tf.evaluation.predictions import Predictions, point_estimate
from dlens_tf.inference.posterior import Posterior

GRID_COLUMNS = 4
NUM_DENSITIES = 8
JOINT = "joint"
"""Takes the place of a parameter's name for figures of all parameters together."""

_LABELS = {"model": "this model", "centre": "prior's centre", "linear": "linear regression"}


def _pick_examples(error: np.ndarray) -> dict[str, np.ndarray]:
    """Positions of the best, the most typical and the worst predicted examples."""
    size = np.abs(error)
    order = np.argsort(size, kind="stable")
    typical = np.argsort(np.abs(size - np.median(size)), kind="stable")
    return {
        "best": order[:GRID_COLUMNS],
        "typical": typical[:GRID_COLUMNS],
        "worst": order[::-1][:GRID_COLUMNS],
    }


def _title(truth: float, mean: float, stddev: float | None) -> str:
    predicted = f"{mean:.3g}" if stddev is None else f"{mean:.2f} ± {stddev:.2f}"
    return f"{predicted}\ntrue {truth:.2f}"


def _mae_by_bins(entry: Mapping[str, Any], key: str) -> list[tuple[str, str, list[dict]]]:
    """Rows for the figures of MAE in bins: kind, label, bins."""
    by_kind = {"model": entry, **entry["baselines"]}
    return [(kind, _LABELS[kind], bins[key]) for kind, bins in by_kind.items()]


def _exact_by_truth(entry: Mapping[str, Any]) -> tuple[str, str, list[dict]]:
    exact = [
        {**b, "metrics": {"mae": {"value": value, "standard_error": None}}}
        for b, value in zip(entry["by_truth"], entry["limit_by_truth"], strict=True)
    ]
    return ("limit", metrics.EXACT_TITLE, exact)


def _densities(posterior: Posterior, truth: np.ndarray, index: int) -> plots.Figure:
    """Of examples whose truths are spread over the range."""
    parameter = list(posterior.parameters)[index]
    order = np.argsort(truth[:, index], kind="stable")
    places = (np.arange(NUM_DENSITIES) + 0.5) / NUM_DENSITIES * len(order)
    rows = order[np.unique(places.astype(int))]
    some = posterior.select(rows)
    low, high = posterior.parameters.supports.T
    values = low + (high - low) * np.linspace(0.0, 1.0, 401)[:, np.newaxis]
    density = np.exp(some.log_prob(values[:, np.newaxis, :]))[..., index].T
    quantiles = some.quantiles([0.16, 0.5, 0.84])[:, index]
    return plots.densities_figure(
        values[:, index], density, quantiles, truth[rows, index], parameter
    )


def draw(
    predictions: Predictions,
    posterior: Posterior,
    judged: Mapping[str, calibration.Judgement],
    entries: Mapping[str, Mapping[str, Any]],
    read_images: Callable[[set[int]], dict[int, np.ndarray]],
) -> dict[str, dict[str, bytes]]:
    """PNG bytes by parameter and plot, and under `JOINT` those of all parameters together.

    Args:
      predictions: of a split.
      posterior: the final one, which may be recalibrated.
      judged: "before" and, if recalibrated, "after"; empty for point estimates.
      entries: of the parameters, as in the JSON.
      read_images: gives the images at some positions of the split.
    """
    targets, estimate = posterior.parameters, point_estimate(posterior)
    picks = {
        p.name: _pick_examples(metrics.residuals(p, predictions.truth[:, i], estimate[:, i]))
        for i, p in enumerate(targets)
    }
    images = read_images({int(i) for rows in picks.values() for row in rows.values() for i in row})
    figures: dict[str, dict[str, bytes]] = {}
    for i, parameter in enumerate(targets):
        truth, predicted = predictions.truth[:, i], estimate[:, i]
        stddev = None if posterior.stddev is None else posterior.stddev[:, i]
        entry = entries[parameter.name]
        drawn = {
            "scatter": plots.scatter_figure(truth, predicted, stddev, parameter),
            "residuals": plots.residual_figure(truth, predicted, parameter),
        }
        rows = _mae_by_bins(entry, "by_truth")
        if entry["limit_by_truth"]:
            rows.append(_exact_by_truth(entry))
        drawn["by_truth"] = plots.truth_bins_figure(rows, parameter)
        if entry["by_snr"]:
            drawn["by_snr"] = plots.snr_bins_figure(_mae_by_bins(entry, "by_snr"), parameter)
        if judged:
            pit = {state: judgement.marginals[i].pit for state, judgement in judged.items()}
            ranks = {state: judgement.ranks[:, i] for state, judgement in judged.items()}
            drawn["pit"] = plots.pit_figure(pit, parameter)
            drawn["calibration"] = plots.coverage_figure(pit, parameter)
            drawn["sbc"] = plots.sbc_figure(ranks, parameter)
            drawn["densities"] = _densities(posterior, predictions.truth, i)
        shown = [j for row in picks[parameter.name].values() for j in row]
        drawn["images"] = plots.image_grid(
            np.stack([images[int(j)] for j in shown]),
            [_title(truth[j], predicted[j], None if stddev is None else stddev[j]) for j in shown],
            columns=len(picks[parameter.name]["best"]),
            row_labels=list(picks[parameter.name]),
        )
        figures[parameter.name] = {k: plots.figure_to_png(f) for k, f in drawn.items()}
    if judged:
        fractions = {state: judgement.fractions for state, judgement in judged.items()}
        figures[JOINT] = {"tarp": plots.figure_to_png(plots.tarp_figure(fractions))}
    return figures
