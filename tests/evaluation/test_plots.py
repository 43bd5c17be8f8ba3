import io

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dlens_tf.evaluation import calibration, metrics, plots
from dlens_tf.parameters import ParameterSet, Uniform

MASS = ParameterSet.from_priors({"log10_m_axion": Uniform(-24.0, -22.0)})["log10_m_axion"]


def predictions(num):
    rng = np.random.default_rng(0)
    truth = rng.uniform(-24.0, -22.0, num)
    return truth, truth + 0.2 * rng.standard_normal(num), np.full(num, 0.2)


def drawn(figure):
    """The figure as an array; also checks that it is a PNG that others can read."""
    return np.asarray(Image.open(io.BytesIO(plots.figure_to_png(figure))).convert("RGB"))


@pytest.mark.parametrize("num", [1, 30, 500, plots.MAX_POINTS + 1])
@pytest.mark.parametrize("with_stddev", [True, False])
def test_scatter_and_residuals_of_any_number(num, with_stddev):
    truth, mean, stddev = predictions(num)
    figure = plots.scatter_figure(truth, mean, stddev if with_stddev else None, MASS)
    axis = figure.axes[0]
    assert MASS.label in axis.get_xlabel() and MASS.label in axis.get_ylabel()
    assert axis.get_ylim()[0] <= mean.min() and mean.max() <= axis.get_ylim()[1]
    assert drawn(figure).std() > 0
    residual = plots.residual_figure(truth, mean, MASS)
    assert "dex" in residual.axes[0].get_ylabel()
    assert drawn(residual).std() > 0


def test_residual_median_follows_a_planted_bias():
    truth = np.linspace(-24.0, -22.0, 2000)
    axis = plots.residual_figure(truth, truth + 0.3, MASS).axes[0]
    median = next(line for line in axis.lines if line.get_label() == "running median")
    np.testing.assert_allclose(median.get_ydata(), 0.3)


def test_bins_with_empty_ones_and_a_limit_of_zero():
    truth, mean, _ = predictions(40)
    edges = metrics.equal_edges(MASS)
    low = truth < -22.5
    bins = metrics.binned_metrics(MASS, truth[low], mean[low], None, truth[low], edges)
    limit = [{**b, "metrics": {"mae": {"value": 0.0, "standard_error": None}}} for b in bins]
    rows = [("model", "this model", bins), ("limit", "information limit", limit)]
    figure = plots.truth_bins_figure(rows, MASS)
    assert figure.axes[0].get_ylim()[0] > 0.0
    drawn(figure)
    drawn(plots.snr_bins_figure(rows[:1], MASS))
    drawn(plots.snr_bins_figure([("model", "this model", bins[-1:])], MASS))


def line(axis, label):
    return next(line for line in axis.lines if line.get_label() == label)


def test_coverage_shows_what_was_planted():
    z = np.random.default_rng(0).standard_normal(4000)
    right = stats.norm.cdf(z)
    figure = plots.coverage_figure({"before": right}, MASS)
    curve = line(figure.axes[0], plots.STATES["before"])
    np.testing.assert_allclose(curve.get_ydata(), curve.get_xdata(), atol=0.03)
    # Deviations that are half of what they should be: 68 % intervals hold 38 % of the truths.
    figure = plots.coverage_figure({"before": stats.norm.cdf(2.0 * z), "after": right}, MASS)
    off = line(figure.axes[1], plots.STATES["before"])
    expected = 2.0 * stats.norm.cdf(0.5 * stats.norm.ppf(0.84)) - 1.0
    at_68 = np.interp(0.68, off.get_xdata(), off.get_ydata())
    assert at_68 == pytest.approx(100.0 * (expected - 0.68), abs=3.0)
    after = line(figure.axes[1], plots.STATES["after"]).get_ydata()
    assert np.abs(after).max() < 3.0
    drawn(figure)


@pytest.mark.parametrize("states", [["before"], ["before", "after"]])
@pytest.mark.parametrize("num", [1, 300])
def test_histograms_and_tarp_of_any_number(states, num):
    rng = np.random.default_rng(0)
    pit = {state: rng.uniform(size=num) for state in states}
    ranks = {state: rng.integers(calibration.NUM_SAMPLES + 1, size=num) for state in states}
    histogram = plots.pit_figure(pit, MASS)
    labels = [text.get_text() for text in histogram.axes[0].get_legend().get_texts()]
    assert labels == ["calibrated (95 %)", *(plots.STATES[state] for state in states)]
    for figure in (histogram, plots.sbc_figure(ranks, MASS), plots.tarp_figure(pit)):
        assert drawn(figure).std() > 0


def test_distribution_of_ranks_is_flat_for_all_ranks_once():
    ranks = np.arange(calibration.NUM_SAMPLES + 1)
    right = plots.sbc_figure({"before": ranks}, MASS).axes[1]
    curve = line(right, plots.STATES["before"])
    np.testing.assert_allclose(curve.get_ydata(), 0.0, atol=1e-12)


@pytest.mark.parametrize("num", [1, 3, 8])
def test_densities_show_each_truth(num):
    values = np.linspace(-24.0, -22.0, 101)
    truth = np.linspace(-23.5, -22.5, num)
    density = stats.norm.pdf(values, truth[:, np.newaxis], 0.2)
    quantiles = truth[:, np.newaxis] + 0.2 * stats.norm.ppf([0.16, 0.5, 0.84])
    figure = plots.densities_figure(values, density, quantiles, truth, MASS)
    panels = [axis for axis in figure.axes if axis.get_visible()]
    for axis, value in zip(panels, truth, strict=True):
        assert any(
            line.get_xdata()[0] == value for line in axis.lines if line.get_color() == plots.RED
        )
    drawn(figure)


@pytest.mark.parametrize("num", [1, 3, 9])
def test_image_grid_shows_every_image_once(num):
    images = np.random.default_rng(0).normal(size=(num, 12, 12, 1))
    figure = plots.image_grid(images, [f"lens {i}" for i in range(num)])
    shown = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in shown] == [f"lens {i}" for i in range(num)]
    drawn(figure)


def test_stretch_is_monotonic_and_finite():
    image = np.linspace(0.0, 100.0, 400).reshape(20, 20)
    stretched = plots.stretch(image)
    assert (np.diff(stretched.ravel()) >= 0.0).all()
    assert (stretched.min(), stretched.max()) == (0.0, 1.0)
    assert np.isfinite(plots.stretch(np.zeros((5, 5)))).all()


def test_no_global_figure_is_made():
    import sys

    plots.scatter_figure(*predictions(5), MASS)
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_same_figure_gives_the_same_bytes():
    images = np.ones((1, 8, 8, 1))
    first, second = (plots.figure_to_png(plots.image_grid(images, ["a"])) for _ in range(2))
    assert first == second
