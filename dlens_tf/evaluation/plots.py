"""Figures of an evaluation, drawn with matplotlib's Figure objects.

Nothing here touches pyplot or its global state, so figures can be drawn from any thread and
without a display. Names, units and ranges come from the `Parameter`; colours are Okabe and
Ito's, which the colour-blind can tell apart.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from dlens_tf.evaluation import calibration
from dlens_tf.evaluation.metrics import (
    bin_indices,
    difference_unit,
    quantile_edges,
    residuals,
)
from dlens_tf.parameters import Parameter, ParameterSet

MAX_ERROR_BARS = 400
"""Above this many points error bars would hide each other: points alone are drawn."""
MAX_POINTS = 3000
"""Above this many points a density is drawn."""

BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#777777"
_COLOURS = {"model": BLUE, "linear": ORANGE, "centre": GREY, "limit": "black"}
_DPI = 120


def _figure(width: float = 5.0, height: float = 4.4, **subplots) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(**subplots)
    for axis in np.atleast_1d(axes).flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    return figure, axes


def figure_to_png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _difference_label(parameter: Parameter, quantity: str) -> str:
    unit = difference_unit(parameter)
    return f"{quantity} of ${parameter.symbol}$" + (f" [{unit}]" if unit else "")


def _with_margin(low: float, high: float, share: float = 0.04) -> tuple[float, float]:
    margin = share * (high - low) or 1.0
    return low - margin, high + margin


def _cloud(
    axis: Axes, x: np.ndarray, y: np.ndarray, extent: tuple[float, float, float, float]
) -> None:
    """Points, or a density with a colour bar where there are many."""
    if len(x) > MAX_POINTS:
        # A norm that starts below one example keeps single ones visible on white.
        cells = axis.hexbin(
            x,
            y,
            gridsize=45,
            mincnt=1,
            cmap="Blues",
            norm=LogNorm(vmin=0.3),
            extent=extent,
            linewidths=0.1,
        )
        bar = axis.figure.colorbar(cells, ax=axis, shrink=0.8, pad=0.02, format="%g")
        bar.ax.set_ylim(bottom=1.0)
        bar.ax.minorticks_off()
        bar.set_label("examples per cell", fontsize=9)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    else:
        axis.plot(x, y, ".", color=BLUE, alpha=0.35, markersize=5, markeredgewidth=0)


def _legend_above(axis: Axes, columns: int) -> None:
    """A legend above the axes, where it hides no data."""
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(
        handles,
        labels,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=9,
    )


def scatter_figure(
    truth: np.ndarray, mean: np.ndarray, stddev: np.ndarray | None, parameter: Parameter
) -> Figure:
    """Predicted against true values, with the 1:1 line and the prior range.

    Args:
      truth: [N].
      mean: [N].
      stddev: [N], drawn as error bars where there is room; or None.
      parameter: its symbol, unit and prior label the axes.
    """
    figure, axis = _figure()
    low, high = parameter.prior.support
    with_bars = stddev is not None and len(truth) <= MAX_ERROR_BARS
    reach = stddev if with_bars else 0.0
    bounds = _with_margin(
        min(low, np.min(mean - reach, initial=low)), max(high, np.max(mean + reach, initial=high))
    )
    axis.axhspan(low, high, color="#f0f0f0", zorder=0, label="prior range")
    axis.plot([low, high], [low, high], "-", color="black", linewidth=1, zorder=3, label="1:1")
    if with_bars:
        axis.errorbar(
            truth,
            mean,
            stddev,
            fmt=".",
            color=BLUE,
            alpha=0.45,
            elinewidth=0.8,
            markersize=5,
            markeredgewidth=0,
            label="predicted ± 1σ",
        )
    else:
        _cloud(axis, truth, mean, (*_with_margin(low, high), *bounds))
    axis.set(
        xlim=_with_margin(low, high),
        ylim=bounds,
        xlabel=f"true {parameter.label}",
        ylabel=f"predicted {parameter.label}",
    )
    _legend_above(axis, 3)
    return figure


def residual_figure(truth: np.ndarray, mean: np.ndarray, parameter: Parameter) -> Figure:
    """Predicted minus true against true, with running median and central 68 %.

    Args:
      truth: [N].
      mean: [N].
      parameter: its symbol, unit and prior label the axes.
    """
    figure, axis = _figure()
    error = residuals(parameter, truth, mean)
    low, high = _with_margin(*parameter.prior.support)
    bounds = _with_margin(min(0.0, error.min(initial=0.0)), max(0.0, error.max(initial=0.0)))
    _cloud(axis, truth, error, (low, high, *bounds))
    axis.axhline(0.0, color="black", linewidth=1)
    # At least 20 examples a bin: fewer give no 16 % quantile worth drawing.
    num_bins = min(20, len(truth) // 20)
    if num_bins >= 2:
        edges = quantile_edges(truth, num_bins)
        index = bin_indices(truth, edges)
        groups = [index == i for i in range(len(edges) - 1) if np.any(index == i)]
        middle = [np.median(truth[group]) for group in groups]
        quantiles = np.array([np.quantile(error[group], (0.16, 0.5, 0.84)) for group in groups])
        axis.fill_between(middle, *quantiles[:, [0, 2]].T, color=RED, alpha=0.12, linewidth=0)
        for edge, label in ((0, "central 68 %"), (2, None)):
            axis.plot(middle, quantiles[:, edge], "--", color=RED, linewidth=1.2, label=label)
        axis.plot(middle, quantiles[:, 1], "-", color=RED, linewidth=1.8, label="running median")
        _legend_above(axis, 2)
    axis.set(
        xlim=(low, high),
        ylim=bounds,
        xlabel=f"true {parameter.label}",
        ylabel=_difference_label(parameter, "error"),
    )
    return figure


def _plain_log_axis(axis: Axis, number: str = "{:g}") -> None:
    """A logarithmic axis with plain numbers."""
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: number.format(value)))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _draw_bins(axis: Axes, bins: Sequence[dict], label: str, kind: str) -> list[float]:
    """MAE by bin as horizontal strokes with error bars; returns the values drawn."""
    filled = [b for b in bins if b["metrics"]["mae"]["value"] is not None]
    if not filled:
        return []
    low, high = (np.array([b[key] for b in filled]) for key in ("low", "high"))
    value = np.array([b["metrics"]["mae"]["value"] for b in filled])
    error = None
    if kind != "limit":
        error = np.array([b["metrics"]["mae"]["standard_error"] or 0.0 for b in filled])
    main = kind == "model"
    axis.errorbar(
        0.5 * (low + high),
        value,
        yerr=error,
        xerr=0.5 * (high - low),
        fmt="o" if main else "none",
        color=_COLOURS[kind],
        linewidth=2.2 if main else 1.5,
        markersize=4,
        label=label,
        zorder=3 if main else 2,
    )
    return value.tolist()


def truth_bins_figure(rows: Sequence[tuple[str, str, Sequence[dict]]], parameter: Parameter):
    """MAE by true value, of the model and the baselines, and the exact posterior's expected error.

    Args:
      rows: (kind, label, bins) with kind "model", "linear", "centre" or "limit" and bins as
        `metrics.binned_metrics` gives them.
      parameter: its symbol, unit and prior label the axes.
    """
    figure, axis = _figure(5.6, 4.2)
    values = [v for kind, label, bins in rows for v in _draw_bins(axis, bins, label, kind)]
    _plain_log_axis(axis.yaxis)
    positive = [v for v in values if v > 0.0]
    if positive:
        # A limit published as 0.000 is below what its three decimals show; so is the axis.
        axis.set_ylim(max(0.6 * min(positive), 5e-4 * max(positive)), 1.7 * max(positive))
    axis.set(
        xlim=_with_margin(*parameter.prior.support),
        xlabel=f"true {parameter.label}",
        ylabel=_difference_label(parameter, "MAE"),
    )
    _legend_above(axis, 2)
    return figure


def snr_bins_figure(rows: Sequence[tuple[str, str, Sequence[dict]]], parameter: Parameter):
    """MAE by signal-to-noise of the image; arguments as for `truth_bins_figure`."""
    figure, axis = _figure(5.6, 4.2)
    values = [v for kind, label, bins in rows for v in _draw_bins(axis, bins, label, kind)]
    axis.set(
        ylim=(0.0, 1.15 * max(values, default=1.0)),
        xlabel="signal-to-noise of the image (bins of equal counts)",
        ylabel=_difference_label(parameter, "MAE"),
    )
    _legend_above(axis, 2)
    return figure


def cost_figure(
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    limits: Mapping[str, float],
    targets: ParameterSet,
) -> Figure:
    """Validation error against training images, one panel for each parameter.

    Args:
      curves: (images seen, MAE) by parameter and model.
      limits: the information limit by parameter, where known.
      targets: the parameters; their symbols and units label the axes.
    """
    figure, axes = _figure(5.6 * len(curves), 4.2, ncols=len(curves))
    for axis, (name, rows) in zip(np.atleast_1d(axes), curves.items(), strict=True):
        for model, (images, mae) in rows.items():
            axis.plot(images, mae, marker=".", linewidth=1.2, label=model)
        if name in limits:
            axis.axhline(limits[name], color="black", linestyle="--", label="information limit")
        axis.set(xlabel="training images seen")
        axis.set_ylabel(_difference_label(targets[name], "validation MAE"))
        _plain_log_axis(axis.xaxis, "{:,.0f}")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        _plain_log_axis(axis.yaxis)
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        _legend_above(axis, 2)
    return figure


def _percent(axis: Axes, which: str = "xy") -> None:
    """Percentages on an axis of shares."""
    for name in which:
        getattr(axis, f"{name}axis").set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _state_lines(axis: Axes, x: np.ndarray, curves: Mapping[str, np.ndarray]) -> None:
    """The curve as the model gives it and, if there is one, the recalibrated one."""
    for state, y in curves.items():
        axis.plot(x, y, label=STATES[state], **_state_style(state, len(curves) > 1))


def _state_style(state: str, both: bool) -> dict:
    """Blue for what counts; orange and dashed for what it was before recalibration."""
    before = state == "before" and both
    return {
        "color": ORANGE if before else BLUE,
        "linestyle": "--" if before else "-",
        "linewidth": 1.6 if before else 2.0,
    }


STATES = {"before": "as the network says", "after": "recalibrated"}
"""Posteriors before and after recalibration, in words."""


def coverage_figure(states: Mapping[str, np.ndarray], parameter: Parameter) -> Figure:
    """Shares of truths inside central intervals, and how far they are off, in percentage points.

    Args:
      states: PIT values [N] by "before" and, if recalibrated, "after".
      parameter: whose posterior.
    """
    figure, (left, right) = _figure(8.4, 4.0, ncols=2)
    levels = np.linspace(0.0, 1.0, 101)
    curves = {state: calibration.coverage_curve(pit, levels) for state, pit in states.items()}
    low, high = calibration.ecdf_band(len(next(iter(states.values()))), levels)
    for axis, base, factor in ((left, 0.0, 1.0), (right, levels, 100.0)):
        axis.fill_between(
            levels,
            factor * (low - base),
            factor * (high - base),
            color="#dddddd",
            linewidth=0,
            label="calibrated (95 %)",
        )
        axis.plot(levels, factor * (levels - base), "-", color="black", linewidth=0.8)
        _state_lines(axis, levels, {k: factor * (curve - base) for k, curve in curves.items()})
        axis.set(xlim=(0, 1), xlabel="probability of the central interval")
        axis.set_xticks([0.0, 0.5, 0.68, 0.9])
    left.set(ylim=(0, 1), ylabel=f"truths of ${parameter.symbol}$ inside", aspect="equal")
    left.legend(loc="upper left", frameon=False, fontsize=8)
    _percent(left)
    right.set(ylabel="inside minus expected [percentage points]")
    _percent(right, "x")
    return figure


def pit_figure(states: Mapping[str, np.ndarray], parameter: Parameter) -> Figure:
    """Histogram of PIT values, flat for calibrated posteriors.

    Args:
      states: PIT values [N] by "before" and, if recalibrated, "after".
      parameter: whose posterior.
    """
    figure, axis = _figure(5.0, 4.0)
    num = len(next(iter(states.values())))
    counts = {state: calibration.counts(pit) for state, pit in states.items()}
    _draw_histograms(axis, counts, num)
    axis.set(xlabel=f"posterior probability below the true ${parameter.symbol}$")
    _percent(axis, "x")
    return figure


def _draw_histograms(axis: Axes, counts: Mapping[str, np.ndarray], num: int) -> None:
    """Histograms over [0, 1] relative to a flat one, with the band in which flat ones lie."""
    bins = len(next(iter(counts.values())))
    edges, flat = np.linspace(0.0, 1.0, bins + 1), num / bins
    low, high = calibration.histogram_band(num, bins)
    axis.fill_between(
        [0, 1], low / flat, high / flat, color="#dddddd", lw=0, label="calibrated (95 %)"
    )
    axis.axhline(1.0, color="black", linewidth=0.8)
    for state, values in counts.items():
        style = _state_style(state, len(counts) > 1)
        axis.stairs(values / flat, edges, label=STATES[state], **style)
    axis.set(xlim=(0, 1), ylabel="examples per bin / expected")
    axis.set_ylim(0.0, 1.08 * max(high / flat, *(np.max(v) / flat for v in counts.values())))
    _legend_above(axis, 1 if len(counts) == 1 else 2)


def sbc_figure(states: Mapping[str, np.ndarray], parameter: Parameter) -> Figure:
    """Ranks of the truth among draws of the posterior: histogram, and distribution minus uniform.

    Args:
      states: ranks [N] among `calibration.NUM_SAMPLES` draws, by "before" and "after".
      parameter: whose posterior.
    """
    figure, (left, right) = _figure(8.4, 4.0, ncols=2)
    num = len(next(iter(states.values())))
    possible = calibration.NUM_SAMPLES + 1
    _draw_histograms(left, {k: calibration.rank_counts(rank) for k, rank in states.items()}, num)
    left.set(xlabel=f"rank of the true ${parameter.symbol}$ among {possible - 1} draws")
    left.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * possible:.0f}"))
    levels = np.arange(possible + 1) / possible
    low, high = calibration.ecdf_band(num, levels)
    right.fill_between(levels, low - levels, high - levels, color="#dddddd", linewidth=0)
    right.axhline(0.0, color="black", linewidth=0.8)
    # Rank r is at or below level (r + 1) / 100.
    _state_lines(
        right,
        levels,
        {k: calibration.ecdf((rank + 1) / possible, levels) - levels for k, rank in states.items()},
    )
    right.set(xlim=(0, 1), xlabel="rank / number of ranks", ylabel="distribution minus uniform")
    return figure


def tarp_figure(states: Mapping[str, np.ndarray]) -> Figure:
    """TARP's curve: expected coverage of regions around random points, jointly in all parameters.

    Args:
      states: what `calibration.tarp_fractions` gives [N], by "before" and "after".
    """
    figure, (left, right) = _figure(8.4, 4.0, ncols=2)
    levels = np.linspace(0.0, 1.0, 101)
    curves = {state: calibration.ecdf(values, levels) for state, values in states.items()}
    low, high = calibration.ecdf_band(len(next(iter(states.values()))), levels)
    for axis, base in ((left, 0.0), (right, levels)):
        axis.fill_between(
            levels,
            low - base,
            high - base,
            color="#dddddd",
            linewidth=0,
            label="calibrated (95 %)",
        )
        axis.plot(levels, levels - base, "-", color="black", linewidth=0.8)
        _state_lines(axis, levels, {state: curve - base for state, curve in curves.items()})
        axis.set(xlim=(0, 1), xlabel="credibility level")
        _percent(axis)
    left.set(ylim=(0, 1), ylabel="expected coverage", aspect="equal")
    left.legend(loc="upper left", frameon=False, fontsize=8)
    right.set(ylabel="expected coverage minus level")
    return figure


def densities_figure(
    values: np.ndarray,
    density: np.ndarray,
    quantiles: np.ndarray,
    truth: np.ndarray,
    parameter: Parameter,
) -> Figure:
    """Posterior densities of a few examples with their truth.

    Args:
      values: where the densities are given, ascending [V].
      density: probability per unit [N, V].
      quantiles: at 16, 50 and 84 %, [N, 3].
      truth: [N].
      parameter: its symbol and unit label the axes.
    """
    columns = min(4, len(truth))
    rows = -(-len(truth) // columns)
    figure, axes = _figure(
        2.3 * columns + 0.4, 1.9 * rows + 0.5, nrows=rows, ncols=columns, squeeze=False, sharex=True
    )
    for i, axis in enumerate(axes.flat):
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        if i >= len(truth):
            axis.set_visible(False)
            continue
        low, median, high = quantiles[i]
        inside = (values >= low) & (values <= high)
        axis.fill_between(values, density[i], where=inside, color=BLUE, alpha=0.25, linewidth=0)
        axis.plot(values, density[i], color=BLUE, linewidth=1.5)
        axis.axvline(median, color=BLUE, linewidth=1.0, linestyle=":")
        axis.axvline(truth[i], color=RED, linewidth=1.5)
        axis.set(xlim=_with_margin(*parameter.prior.support, 0.02), ylim=(0.0, None))
        axis.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    figure.supxlabel(parameter.label, fontsize=10)
    handles = [
        Line2D([], [], color=BLUE, label="posterior density"),
        Patch(facecolor=BLUE, alpha=0.25, label="central 68 %"),
        Line2D([], [], color=BLUE, linestyle=":", label="median"),
        Line2D([], [], color=RED, label="truth"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def stretch(image: np.ndarray) -> np.ndarray:
    """asinh stretch of an image [H, W] for display, in [0, 1].

    Linear for the faintest, logarithmic for the bright: the knee lies at a tenth of the 99.5 %
    quantile above the median.
    """
    image = image - np.median(image)
    knee = 0.1 * max(float(np.quantile(image, 0.995)), 1e-30)
    stretched = np.arcsinh(image / knee)
    low, high = np.quantile(stretched, 0.01), stretched.max()
    return np.clip((stretched - low) / max(high - low, 1e-30), 0.0, 1.0)


def image_grid(
    images: np.ndarray,
    titles: Sequence[str],
    columns: int = 4,
    row_labels: Sequence[str] = (),
) -> Figure:
    """Images side by side, north up (row 0 at the bottom), each with an asinh stretch.

    Args:
      images: [N, H, W, C], N at least 1; several channels are shown as their sum.
      titles: N titles; matplotlib's mathtext is allowed.
      columns: images in a row.
      row_labels: a label per row, at its left.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, axes = _figure(
        1.95 * columns + 0.3, 2.25 * rows, nrows=rows, ncols=columns, squeeze=False
    )
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        flux = np.asarray(image, np.float64).sum(axis=-1)
        axis.imshow(stretch(flux), origin="lower", cmap="inferno", vmin=0, vmax=1)
        axis.set_title(title, fontsize=8)
    for axis, label in zip(axes[:, 0], row_labels, strict=False):
        axis.set_ylabel(label, fontsize=10)
    return figure
