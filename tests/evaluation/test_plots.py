import io

import numpy as np
import pytest
from PIL import Image

from dlens_tf.evaluation import metrics, plots
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


def test_calibration_shows_the_coverage_that_was_planted():
    truth, mean, stddev = predictions(4000)
    right = plots.calibration_figure(truth, mean, stddev, MASS).axes[1]
    curve = next(line for line in right.lines if line.get_label() == "examples")
    np.testing.assert_allclose(curve.get_ydata(), curve.get_xdata(), atol=0.03)
    figure = plots.calibration_figure(truth, mean, 0.01 * stddev, MASS)
    assert any("beyond" in text.get_text() for text in figure.axes[0].get_legend().get_texts())
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
