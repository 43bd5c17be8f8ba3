"""Writing an evaluation: JSON, plots, and one HTML page that needs nothing else.

The page has its images inside it, makes no request, runs no script, and reads on a phone and on
paper. Every text is escaped: names may come from files.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from dlens_tf.evaluation.metrics import (
    COVERAGE,
    EXACT_NOTE,
    EXACT_TITLE,
    MEANINGS,
    TITLES,
    Estimate,
)
from dlens_tf.evaluation.plots import STATES
from dlens_tf.io.files import atomic_write
from dlens_tf.training.run_folder import write_json

UNITLESS = ("r2", "nll", *COVERAGE, "contraction")
COMPARED = ("mae", "rmse", "bias", "r2", "nll", "crps", "coverage_68", "coverage_95")
"""Metrics in tables of predictors."""
BINNED = ("mae", "bias", "nll", "crps", *COVERAGE)
"""Metrics in tables of bins."""
CALIBRATION = (*COVERAGE, "nll", "crps", "width_68", "contraction")
"""Metrics in tables before and after recalibration."""
TESTS = {"ks": ("pit", "ks"), "chi2": ("pit", "chi2"), "sbc": ("sbc", "chi2")}
"""Where the p-values of a parameter's calibration are."""
TEST_TITLES = {"ks": "p (PIT, KS)", "chi2": "p (PIT, χ²)", "sbc": "p (SBC, χ²)"}


def format_estimate(estimate: Estimate | None) -> str:
    """ "0.128 ± 0.004": two digits of the error; "–" where there is no value."""
    if estimate is None or estimate["value"] is None:
        return "–"
    value, error = estimate["value"], estimate["standard_error"]
    if not error:
        return f"{value:.4g}"
    # Two digits of the error where it starts with 1, else one: 0.128 ± 0.004, 1.20 ± 0.013.
    exponent = math.floor(math.log10(error))
    digits = 1 - exponent if error < 2 * 10.0**exponent else -exponent
    if -exponent > 6 or exponent > 5:
        return f"{value:.4g} ± {error:.2g}"
    digits = max(0, digits)
    return f"{value:z.{digits}f} ± {error:.{digits}f}"


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, then renames."""
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz under a temporary name, then renames; never pickles."""
    with atomic_write(path) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def metric_names(metrics: Mapping[str, Estimate], names: Sequence[str] = COMPARED) -> list[str]:
    """Those of the metrics `names` that are present, in the order of tables."""
    return [name for name in TITLES if name in metrics and name in names]


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; those that say nothing below their title are left out."""
    keep = [i for i in range(len(lines[0])) if any(line[i] != "–" for line in lines[1:])]
    widths = {i: max(len(line[i]) for line in lines) for i in keep}
    return "\n".join(
        "  ".join(
            line[i].rjust(widths[i]) if i else line[i].ljust(widths[i]) for i in keep
        ).rstrip()
        for line in lines
    )


def format_p_value(value: float) -> str:
    """Two digits, or that it is small."""
    return f"{value:.2g}" if value >= 1e-4 else "<0.0001"


def calibration_rows(
    states: Mapping[str, Any], metrics: Sequence[str]
) -> list[tuple[str, list[str]]]:
    """Cells of the table of one parameter's calibration: metrics, then p-values, by state."""
    return [
        (
            STATES[state],
            [format_estimate(entry["metrics"][name]) for name in metrics]
            + [format_p_value(entry[key][test]["p_value"]) for key, test in TESTS.values()],
        )
        for state, entry in states.items()
        if entry is not None
    ]


def calibration_table(result: Mapping[str, Any]) -> str:
    """The calibration of each parameter for the terminal; "" for point estimates."""
    blocks = []
    for name, entry in result["parameters"].items():
        if entry["calibration"] is None:
            continue
        unit = f" [{entry['difference_unit']}]" if entry["difference_unit"] else ""
        header = [name + unit, *(TITLES[m] for m in CALIBRATION), *TEST_TITLES.values()]
        rows = calibration_rows(entry["calibration"], CALIBRATION)
        blocks.append(_aligned([header, *([state, *cells] for state, cells in rows)]))
    return "\n\n".join(blocks)


def text_table(result: Mapping[str, Any]) -> str:
    """The compact table of each parameter for the terminal: our model first, then the rest."""
    blocks = []
    for name, entry in result["parameters"].items():
        unit = f" [{entry['difference_unit']}]" if entry["difference_unit"] else ""
        metrics = metric_names(entry["metrics"])
        first, *others = (TITLES[m] for m in metrics)
        lines = [[name + unit, first, f"{first} / limit", *others]]
        for row in entry["rows"]:
            first, *others = (format_estimate(row["metrics"].get(m)) for m in metrics)
            lines.append([row["name"], first, format_estimate(row["mae_over_limit"]), *others])
        blocks.append(_aligned(lines))
    return "\n\n".join(blocks)


def render_html(result: Mapping[str, Any], figures: Mapping[str, Mapping[str, bytes]]) -> str:
    """The report as one HTML page.

    Args:
      result: what `evaluate.evaluate_run` returns.
      figures: PNG bytes by parameter and plot name, see `PLOT_CAPTIONS`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"estimate": format_estimate, "p_value": format_p_value}
    inlined = {
        name: [
            (plot, PLOT_CAPTIONS[plot], base64.b64encode(png).decode("ascii"))
            for plot, png in plots.items()
        ]
        for name, plots in figures.items()
    }
    return environment.get_template("report.html").render(
        result=result,
        figures=inlined,
        titles=TITLES,
        meanings=MEANINGS,
        unitless=UNITLESS,
        metric_names=metric_names,
        binned=BINNED,
        calibration=CALIBRATION,
        calibration_rows=calibration_rows,
        test_titles=TEST_TITLES,
        states=STATES,
        exact_title=EXACT_TITLE,
        exact_note=EXACT_NOTE,
        wide_plots=WIDE_PLOTS,
    )


PLOT_CAPTIONS = {
    "scatter": "Predicted against true values.",
    "residuals": "Error (predicted minus true) against the true value.",
    "by_truth": "Mean absolute error by true value; vertical strokes are standard errors. "
    f"Where the {EXACT_TITLE} is shown: {EXACT_NOTE}.",
    "by_snr": "Mean absolute error by signal-to-noise; vertical strokes are standard errors.",
    "pit": "Probability integral transform: flat if calibrated, a U if over-confident, a hump if "
    "under-confident, sloped if biased.",
    "calibration": "Coverage: share of truths inside central intervals (left), and by how many "
    "percentage points it is off (right).",
    "sbc": "Simulation-based calibration: ranks of the truth among draws of the posterior (left), "
    "and their distribution minus the uniform one (right).",
    "tarp": "TARP: coverage of regions around random points, in all parameters together.",
    "densities": "Posteriors of eight images, from low to high true values.",
    "images": "The best, most typical and worst predicted images, in arcsinh stretch.",
}
"""Plots of a parameter, in the order of the report; "tarp" is of all parameters together."""

WIDE_PLOTS = ("calibration", "sbc", "tarp", "densities", "images")
"""Those that have a row of the page for themselves."""


def write_report(
    folder: Path,
    split: str,
    result: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, bytes]],
    predictions: Mapping[str, np.ndarray],
) -> Path:
    """Writes everything below `folder`; returns the page's path.

    `<split>/predictions.npz`, `<split>/<parameter>_<plot>.png`, `<split>.html` and, last, so that
    it stands only for a whole report, `<split>.json`. An earlier one is removed first.
    """
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.json").unlink(missing_ok=True)
    write_arrays(folder / split / "predictions.npz", predictions)
    for name, plots in figures.items():
        for plot, png in plots.items():
            write_bytes(folder / split / f"{name}_{plot}.png", png)
    page = folder / f"{split}.html"
    write_bytes(page, render_html(result, figures).encode("utf-8"))
    write_json(folder / f"{split}.json", result)
    return page
