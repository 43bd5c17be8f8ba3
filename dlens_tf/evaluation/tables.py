"""Markdown tables of results, for model cards and documents."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dlens_tf.evaluation.metrics import COVERAGE, EXACT_TITLE, TITLES
from dlens_tf.evaluation.plots import STATES
from dlens_tf.evaluation.report import BINNED, UNITLESS, format_estimate, metric_names


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines of a Markdown table."""
    return "\n".join(
        "| " + " | ".join(cells) + " |" if cells else "|" + "---|" * len(header)
        for cells in (header, (), *rows)
    )


def _title(metric: str, unit: str) -> str:
    return TITLES[metric] + (f" [{unit}]" if unit and metric not in UNITLESS else "")


def metrics_table(entry: Mapping[str, Any]) -> str:
    """The table of one parameter: the model, baselines, published numbers, the limit.

    Args:
      entry: of a parameter, from an evaluation's JSON.
    """
    metrics = metric_names(entry["metrics"])
    unit = entry["difference_unit"]
    first, *others = (_title(name, unit) for name in metrics)
    header = ["predictor", first, "MAE / limit", *others]
    rows = []
    for row in entry["rows"]:
        name = row["name"]
        if row["kind"] == "published":
            name = f"{name} (published)"
        first, *others = (format_estimate(row["metrics"].get(m)) for m in metrics)
        cells = [name, first, format_estimate(row["mae_over_limit"]), *others]
        rows.append([f"**{cell}**" for cell in cells[:2]] + cells[2:] if not rows else cells)
    keep = [i for i in range(len(header)) if any(row[i] != "–" for row in rows)]
    return markdown_table([header[i] for i in keep], [[row[i] for i in keep] for row in rows])


def calibration_table(calibration: Mapping[str, Any], unit: str) -> str:
    """How well the posterior means what it says, before and after recalibration.

    Args:
      calibration: of a parameter, from an evaluation's JSON.
      unit: of a difference of two values of the parameter.
    """
    metrics = (*COVERAGE, "crps", "nll")
    header = ["calibration", *(_title(name, unit) for name in metrics), "PIT uniform: p"]
    rows = [
        [
            STATES[state],
            *(format_estimate(values["metrics"][name]) for name in metrics),
            f"{values['pit']['ks']['p_value']:.2g}",
        ]
        for state, values in calibration.items()
        if values
    ]
    return markdown_table(header, rows)


def bins_table(
    bins: Sequence[Mapping[str, Any]],
    title: str,
    unit: str,
    digits: int,
    exact: Sequence[float] | None = None,
) -> str:
    """A model's metrics in bins.

    Args:
      bins: `by_truth` or `by_snr` of an evaluation's JSON.
      title: what they are bins of.
      unit: of a difference of two values of the parameter.
      digits: decimals of the bins' edges.
      exact: the exact posterior's expected error in each bin, `limit_by_truth`.
    """
    metrics = [name for name in BINNED if name in bins[0]["metrics"]]
    header = [title, "images", *(_title(name, unit) for name in metrics)]
    rows = []
    for part in bins:
        edges = f"{part['low']:.{digits}f} … {part['high']:.{digits}f}"
        cells = [format_estimate(part["metrics"][name]) for name in metrics]
        # The error of every cell would make the table hard to read.
        cells = [cells[0], *(cell.partition(" ± ")[0] for cell in cells[1:])]
        rows.append([edges, f"{part['count']:,}", *cells])
    if exact:
        header.append(EXACT_TITLE + (f" [{unit}]" if unit else ""))
        for row, value in zip(rows, exact, strict=True):
            row.append(f"{value:.3f}")
    return markdown_table(header, rows)
