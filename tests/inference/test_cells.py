import numpy as np
import pytest
from scipy import stats

from dlens_tf.inference.brute_force import Marginal
from dlens_tf.inference.cells import ACCURACY, integrate

EDGES = np.linspace(-24.0, -22.0, 13)
SPAN = (0.0, np.pi)


class Density:
    """A known density that counts how often it is asked."""

    def __init__(self, log_density):
        self._log_density = log_density
        self.points = 0

    def __call__(self, points, payloads, lowest):
        self.points += len(points)
        assert payloads.shape == (len(points), 1)
        return self._log_density(points), payloads


def cells_of(log_density, **kwargs):
    density = Density(log_density)
    cells = integrate(density, EDGES, [10] * 12, SPAN, np.zeros(1), **kwargs)
    np.testing.assert_allclose(np.prod(cells.width, axis=1).sum(), 2.0 * np.pi)
    return cells, density.points


def gaussian(mean, deviations, correlation):
    covariance = np.diag(np.square(deviations))
    covariance[0, 1] = covariance[1, 0] = correlation * np.prod(deviations)
    return stats.multivariate_normal(mean, covariance).logpdf


@pytest.mark.parametrize("correlation", [0.0, 0.8])
@pytest.mark.parametrize("deviations", [(0.1, 0.3), (0.02, 0.1), (0.01, 0.02)])
def test_integral_and_quantiles_of_a_gaussian(deviations, correlation):
    mean = (-23.123, 1.7)
    cells, points = cells_of(gaussian(mean, deviations, correlation))
    assert points < 1600
    assert (cells.doubt(cells.log_total()).sum() < ACCURACY) == (points < 1500)
    assert np.logaddexp.reduce(cells.log_mass()) == pytest.approx(0.0, abs=0.02)
    marginal, exact = Marginal(cells), stats.norm(mean[0], deviations[0])
    tolerance = 0.03 * deviations[0]
    for level in (0.025, 0.16, 0.5, 0.84, 0.975):
        assert marginal.quantile(level) == pytest.approx(exact.ppf(level), abs=2 * tolerance)
    assert marginal.median == pytest.approx(mean[0], abs=tolerance)
    assert marginal.stddev == pytest.approx(deviations[0], rel=0.03)
    assert marginal.expected_error == pytest.approx(deviations[0] * np.sqrt(2 / np.pi), rel=0.03)
    assert marginal.cdf(mean[0] + deviations[0]) == pytest.approx(stats.norm.cdf(1.0), abs=0.01)


def test_exponential_density_against_an_edge():
    rate = 5.0

    def log_density(points):
        return -rate * (points[:, 0] + 24.0)

    cells, _ = cells_of(log_density)
    total = np.pi * (1.0 - np.exp(-2.0 * rate)) / rate
    assert np.logaddexp.reduce(cells.log_mass()) == pytest.approx(np.log(total), abs=2e-3)
    expected = np.log(2.0 / (1.0 + np.exp(-2.0 * rate))) / rate
    assert Marginal(cells).median == pytest.approx(-24.0 + expected, abs=2e-3)


def test_flat_density_needs_no_division():
    cells, points = cells_of(lambda points: np.zeros(len(points)))
    assert points == len(cells) == 120
    marginal = Marginal(cells)
    assert marginal.median == pytest.approx(-23.0)
    assert marginal.expected_error == pytest.approx(0.5, abs=0.005)


def test_a_hint_leads_to_a_peak_too_narrow_to_be_seen():
    mean = (-23.712, 0.777)
    peak = gaussian(mean, (1e-4, 2e-4), 0.3)

    def log_density(points):
        return np.logaddexp(peak(points), -30.0)

    blind, _ = cells_of(log_density)
    assert Marginal(blind).stddev > 0.5
    hint = (np.array(mean), float(peak(mean)))
    cells, _ = cells_of(log_density, hint=hint)
    marginal = Marginal(cells)
    assert marginal.median == pytest.approx(mean[0], abs=2e-5)
    assert marginal.stddev == pytest.approx(1e-4, rel=0.15)


def test_stops_after_so_many_points():
    rough = np.random.default_rng(0)
    cells, points = cells_of(lambda points: 30.0 * rough.normal(size=len(points)), max_points=400)
    assert 400 <= points < 480
    assert len(cells) == points
    # It can be told of the cells that these were too few.
    assert cells.doubt(cells.log_total()).sum() > ACCURACY
