import dataclasses
import json
import math

import numpy as np
import pytest
import scoringrules
from scipy import stats
from sklearn import metrics as sklearn_metrics

from dlens_tf.evaluation import metrics
from dlens_tf.evaluation.calibration import gaussian_marginals
from dlens_tf.parameters import CATALOGUE, ParameterSet, Uniform

MASS = ParameterSet.from_priors({"log10_m_axion": Uniform(-24.0, -22.0)})["log10_m_axion"]
ANGLE = ParameterSet.from_priors({"phi_vortex": Uniform(0.0, math.pi)})["phi_vortex"]


@pytest.fixture
def predictions():
    rng = np.random.default_rng(1)
    truth = rng.uniform(-24.0, -22.0, 2000)
    stddev = rng.uniform(0.1, 0.5, 2000)
    mean = truth + 0.05 + stddev * rng.standard_normal(2000)
    return truth, mean, stddev, gaussian_marginals(truth, mean, stddev)


def value(result, name):
    return result[name]["value"]


def test_values_equal_scikit_learn_and_scipy(predictions):
    truth, mean, stddev, marginals = predictions
    result = metrics.compute_metrics(MASS, truth, mean, marginals)
    expected = {
        "mae": sklearn_metrics.mean_absolute_error(truth, mean),
        "rmse": sklearn_metrics.root_mean_squared_error(truth, mean),
        "r2": sklearn_metrics.r2_score(truth, mean),
        "bias": np.mean(mean - truth),
        "nll": -np.mean(stats.norm.logpdf(truth, mean, stddev)),
        "crps": np.mean(scoringrules.crps_normal(truth, mean, stddev)),
        "width_68": np.mean(np.diff(stats.norm.interval(0.68, mean, stddev), axis=0)),
        "contraction": 1.0 - np.mean(stddev**2) / stats.uniform(-24.0, 2.0).var(),
    }
    for level in (50, 68, 90, 95):
        low, high = stats.norm.interval(level / 100, mean, stddev)
        expected[f"coverage_{level}"] = np.mean((low <= truth) & (truth <= high))
    assert {name: value(result, name) for name in result} == pytest.approx(expected, rel=1e-12)


def test_errors_equal_the_analytic_ones(predictions):
    truth, mean, stddev, marginals = predictions
    error = mean - truth
    result = metrics.compute_metrics(MASS, truth, mean, marginals, resamples=4000)
    root_n = math.sqrt(len(truth))
    rmse = np.sqrt(np.mean(error**2))
    fraction = value(result, "coverage_68")
    expected = {
        "mae": np.std(np.abs(error)) / root_n,
        "bias": np.std(error) / root_n,
        "rmse": np.std(error**2) / root_n / (2.0 * rmse),
        "nll": np.std(-stats.norm.logpdf(truth, mean, stddev)) / root_n,
        "coverage_68": math.sqrt(fraction * (1.0 - fraction)) / root_n,
    }
    measured = {name: result[name]["standard_error"] for name in expected}
    assert measured == pytest.approx(expected, rel=0.06)


def test_errors_equal_scipys_bootstrap():
    rng = np.random.default_rng(2)
    truth = rng.uniform(-24.0, -22.0, 60)
    mean = truth + 0.4 * rng.standard_normal(60)
    reference = stats.bootstrap(
        (truth, mean),
        sklearn_metrics.r2_score,
        paired=True,
        vectorized=False,
        n_resamples=1500,
        method="percentile",
        rng=np.random.default_rng(3),
    )
    result = metrics.compute_metrics(MASS, truth, mean, resamples=4000)
    assert result["r2"]["standard_error"] == pytest.approx(reference.standard_error, rel=0.1)


def test_resampling_is_seeded_and_does_not_depend_on_its_chunks(monkeypatch):
    columns = np.random.default_rng(0).normal(size=(50, 3))
    whole = metrics.resampled_means(columns, 40, seed=5)
    monkeypatch.setattr(metrics, "_CELLS_PER_CHUNK", 170)
    again = metrics.resampled_means(columns, 40, seed=5)
    np.testing.assert_allclose(again, whole, rtol=0, atol=1e-15)
    other = metrics.resampled_means(columns, 40, seed=6)
    assert np.abs(other - whole).max() > 0.01


def test_angles_are_compared_the_shorter_way_round():
    truth, mean = np.array([0.05, 3.1, 1.0]), np.array([3.1, 0.05, 1.2])
    wrapped = math.pi - 3.05
    np.testing.assert_allclose(
        metrics.residuals(ANGLE, truth, mean), [-wrapped, wrapped, 0.2], atol=1e-12
    )
    assert value(metrics.compute_metrics(ANGLE, truth, mean), "r2") is None


def test_no_example_and_one_example_are_honest():
    none = metrics.compute_metrics(MASS, [], [], gaussian_marginals(*np.ones((3, 0))))
    assert all(v == {"value": None, "standard_error": None} for v in none.values())
    point = np.array([[-23.0], [-22.5], [0.25]])
    one = metrics.compute_metrics(MASS, point[0], point[1], gaussian_marginals(*point))
    assert value(one, "mae") == pytest.approx(0.5)
    assert value(one, "r2") is None
    assert all(estimate["standard_error"] is None for estimate in one.values())
    json.dumps([none, one], allow_nan=False)


def test_equal_truths_have_no_r2():
    result = metrics.compute_metrics(MASS, np.full(9, -22.7), np.linspace(-23, -22, 9))
    assert result["r2"] == {"value": None, "standard_error": None}
    assert result["mae"]["standard_error"] > 0.0


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.compute_metrics(MASS, np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="shapes differ"):
        marginals = gaussian_marginals(*np.ones((3, 1)))
        metrics.compute_metrics(MASS, np.zeros(3), np.zeros(3), marginals)


def test_excluded_truth_leaves_no_likelihood_and_the_rest_alone(predictions):
    truth, mean, _, marginals = predictions
    log_prob = marginals.log_prob.copy()
    log_prob[7] = -np.inf
    whole = metrics.compute_metrics(MASS, truth, mean, marginals, resamples=10)
    excluded = dataclasses.replace(marginals, log_prob=log_prob)
    result = metrics.compute_metrics(MASS, truth, mean, excluded, resamples=10)
    assert result.pop("nll") == {"value": None, "standard_error": None}
    assert result == {name: whole[name] for name in result}
    nll = metrics.estimate_mean(-log_prob, resamples=10)
    assert nll == {"value": None, "standard_error": None}


def test_mean_of_values_has_its_analytic_error():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    estimate = metrics.estimate_mean(values, resamples=4000)
    assert estimate["value"] == pytest.approx(values.mean())
    assert estimate["standard_error"] == pytest.approx(values.std() / 20.0, rel=0.06)


def test_bins_sum_to_the_whole(predictions):
    truth, mean, stddev, marginals = predictions
    for by, edges in [
        (truth, metrics.equal_edges(MASS)),
        (stddev, metrics.quantile_edges(stddev)),
    ]:
        bins = metrics.binned_metrics(MASS, truth, mean, marginals, by, edges, resamples=10)
        counts = np.array([b["count"] for b in bins])
        assert counts.sum() == len(truth)
        whole = metrics.compute_metrics(MASS, truth, mean, marginals, resamples=10)
        for name in ("mae", "bias", "nll", "coverage_95"):
            pooled = np.sum(counts * [value(b["metrics"], name) for b in bins]) / len(truth)
            assert pooled == pytest.approx(value(whole, name), rel=1e-9)
        assert bins[0]["low"] == edges[0] and bins[-1]["high"] == edges[-1]


def test_empty_bins_are_kept():
    truth = np.array([-23.9, -23.8])
    bins = metrics.binned_metrics(
        MASS, truth, truth, None, truth, metrics.equal_edges(MASS, 4), resamples=10
    )
    assert [b["count"] for b in bins] == [2, 0, 0, 0]
    assert bins[1]["metrics"]["mae"] == {"value": None, "standard_error": None}


def test_bin_indices_at_and_beyond_the_edges():
    edges = np.array([0.0, 1.0, 2.0])
    values = np.array([-1e-9, 0.0, 0.999, 1.0, 2.0, 2.0 + 1e-9])
    assert metrics.bin_indices(values, edges).tolist() == [0, 0, 0, 1, 1, 1]


def test_quantile_edges_hold_equal_counts_and_survive_repeats():
    values = np.random.default_rng(0).lognormal(size=1000)
    edges = metrics.quantile_edges(values, 4)
    assert np.bincount(metrics.bin_indices(values, edges)).tolist() == [250] * 4
    assert metrics.quantile_edges(np.full(10, 7.0)).tolist() == [7.0, 7.0]
    assert metrics.bin_indices(np.full(3, 7.0), np.array([7.0, 7.0])).tolist() == [0, 0, 0]


def test_ratio_propagates_errors():
    top = {"value": 0.3, "standard_error": 0.03}
    bottom = {"value": 0.1, "standard_error": 0.005}
    rng = np.random.default_rng(0)
    draws = rng.normal(0.3, 0.03, 200_000) / rng.normal(0.1, 0.005, 200_000)
    result = metrics.ratio(top, bottom)
    assert result["value"] == pytest.approx(3.0)
    assert result["standard_error"] == pytest.approx(draws.std(), rel=0.02)
    nothing = {"value": None, "standard_error": None}
    assert metrics.ratio(nothing, bottom) == nothing
    assert metrics.ratio(top, {"value": 0.0, "standard_error": 0.0}) == nothing


def test_difference_unit():
    assert metrics.difference_unit(CATALOGUE["log10_m_axion"]) == "dex"
    assert metrics.difference_unit(CATALOGUE["theta_E"]) == "arcsec"
    assert metrics.difference_unit(CATALOGUE["e1"]) == ""
