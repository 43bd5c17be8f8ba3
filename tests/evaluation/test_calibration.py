import numpy as np
import pytest
import scoringrules
import tarp
import uncertainty_toolbox
from scipy import stats

from dlens_tf.evaluation import calibration
from dlens_tf.evaluation.metrics import COVERAGE
from dlens_tf.parameters import ParameterSet, Uniform

NUM = 3000


def uniforms(num, seed):
    return np.random.default_rng(seed).uniform(size=num)


def test_quadrature_integrates_over_probability():
    levels, weights = calibration.probit_quadrature()
    assert weights.sum() == pytest.approx(1.0)
    for law in (stats.norm(1.0, 2.0), stats.uniform(-1.0, 3.0), stats.beta(0.7, 3.0)):
        values = law.ppf(levels)
        assert weights @ values == pytest.approx(law.mean(), rel=1e-4)
        assert weights @ values**2 == pytest.approx(law.var() + law.mean() ** 2, rel=1e-4)


@pytest.mark.parametrize(
    ("law", "exact"),
    [
        (stats.norm(0.3, 0.2), lambda y: scoringrules.crps_normal(y, 0.3, 0.2)),
        (stats.beta(2.0, 5.0), lambda y: scoringrules.crps_beta(y, 2.0, 5.0)),
        (stats.uniform(0.0, 1.0), lambda y: scoringrules.crps_uniform(y, 0.0, 1.0)),
        (stats.laplace(0.5, 0.1), lambda y: scoringrules.crps_laplace(y, 0.5, 0.1)),
    ],
)
def test_crps_equals_scoringrules(law, exact):
    truth = np.linspace(0.02, 0.98, 49)
    quantiles = np.tile(law.ppf(calibration.LEVELS), (49, 1))
    np.testing.assert_allclose(calibration.crps(truth, quantiles), exact(truth), rtol=3e-3)


def test_crps_of_two_peaks_equals_scoringrules():
    rng = np.random.default_rng(0)
    truth = rng.choice([-1.0, 1.0], 200) + 0.1 * rng.standard_normal(200)
    fine = np.linspace(-3.0, 3.0, 200_001)
    cdf = 0.3 * stats.norm.cdf(fine, -1.0, 0.1) + 0.7 * stats.norm.cdf(fine, 1.0, 0.1)
    quantiles = np.tile(np.interp(calibration.LEVELS, cdf, fine), (200, 1))
    exact = scoringrules.crps_mixnorm(
        truth, np.array([-1.0, 1.0]), np.array([0.1, 0.1]), np.array([0.3, 0.7])
    )
    ours = calibration.crps(truth, quantiles)
    assert ours.mean() == pytest.approx(exact.mean(), rel=0.01)
    np.testing.assert_allclose(ours, exact, atol=0.02)


def test_gaussian_marginals_equal_the_posteriors_and_scipy(problem):
    _, posterior, truth = problem(50, 0, spread=1.4, shift=0.2)
    exact = calibration.marginals(posterior, truth)
    for p in (0, 1):
        mean, stddev = posterior.mean[:, p], posterior.stddev[:, p]
        gaussian = calibration.gaussian_marginals(truth[:, p], mean, stddev)
        for name in ("pit", "log_prob", "width", "variance"):
            np.testing.assert_allclose(getattr(exact[p], name), getattr(gaussian, name), rtol=1e-9)
        np.testing.assert_allclose(exact[p].crps, gaussian.crps, rtol=3e-3)
        np.testing.assert_allclose(
            gaussian.crps, scoringrules.crps_normal(truth[:, p], mean, stddev), rtol=1e-9
        )


def test_coverage_equals_the_uncertainty_toolbox(problem):
    _, posterior, truth = problem(400, 1, spread=0.8)
    pit = posterior.cdf(truth)[:, 0]
    expected, observed = uncertainty_toolbox.get_proportion_lists_vectorized(
        posterior.mean[:, 0], posterior.stddev[:, 0], truth[:, 0], num_bins=41
    )
    np.testing.assert_allclose(expected, calibration.CURVE_LEVELS)
    ours = calibration.coverage_curve(pit)
    np.testing.assert_allclose(ours[:-1], observed[:-1])  # theirs includes no end at 1


def test_ranks_equal_counting_by_hand():
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(99, 40, 2)), rng.normal(size=(40, 2))
    rank = calibration.ranks(samples, truth)
    assert rank.shape == (40, 2) and rank.min() >= 0 and rank.max() <= 99
    for n in range(40):
        for p in range(2):
            assert rank[n, p] == np.searchsorted(np.sort(samples[:, n, p]), truth[n, p])
    counted = calibration.rank_counts(np.arange(100))
    assert counted.tolist() == [5] * 20
    assert calibration.rank_counts(np.array([0, 0, 99])).tolist() == [2, 1]


def test_tarp_equals_the_tarp_package():
    """The same reference points, correlated parameters: the same share of closer draws."""
    rng = np.random.default_rng(0)
    supports = np.array([[-4.0, 4.0], [10.0, 12.0]])
    factor = np.array([[0.5, 0.0], [0.1, 0.05]])
    center = np.array([0.0, 11.0])
    truth = center + rng.standard_normal((300, 2)) @ factor.T
    samples = center + 0.7 * rng.standard_normal((99, 300, 2)) @ factor.T
    fractions = calibration.tarp_fractions(samples, truth, supports, seed=5)
    low, high = supports.T
    references = np.random.default_rng(5).uniform(low, high, truth.shape)

    def scaled(values):
        return (values - low) / (high - low)

    curve, alpha = tarp.get_tarp_coverage(
        scaled(samples), scaled(truth), scaled(references), norm=False, num_alpha_bins=30
    )
    # Theirs counts closer draws over all, ours spreads each rank over its interval.
    closer = np.floor(fractions * 100)
    ours = [np.mean(closer / 99 < a) for a in alpha[1:-1]]
    np.testing.assert_allclose(ours, curve[1:-1], atol=1e-12)
    upper = calibration.describe_joint(fractions)
    assert upper["upper_area"] < -0.02  # draws too narrow
    assert upper["ks"]["p_value"] < 0.05


def test_tarp_sees_a_correlation_that_marginals_do_not():
    rng = np.random.default_rng(0)
    supports = np.array([[-3.0, 3.0], [-3.0, 3.0]])
    covariance = np.array([[1.0, 0.95], [0.95, 1.0]]) * 0.25
    center = rng.uniform(-1.0, 1.0, (NUM, 2))
    truth = center + rng.multivariate_normal([0.0, 0.0], covariance, NUM)
    right = center + rng.multivariate_normal([0.0, 0.0], covariance, (99, NUM))
    wrong = center + 0.5 * rng.standard_normal((99, NUM, 2))
    p_values = {}
    for name, samples in (("right", right), ("wrong", wrong)):
        rank = calibration.ranks(samples, truth)
        for p in (0, 1):
            assert calibration.chi2_test(calibration.rank_counts(rank[:, p]))["p_value"] > 1e-3
        fractions = calibration.tarp_fractions(samples, truth, supports, seed=0)
        p_values[name] = calibration.describe_joint(fractions)["ks"]["p_value"]
    assert p_values["right"] > 0.01 and p_values["wrong"] < 1e-6


def summary(problem, **changes):
    parameters, posterior, truth = problem(NUM, 2, **changes)
    samples = posterior.samples(calibration.NUM_SAMPLES, 0)
    rank = calibration.ranks(samples, truth)
    marginal = calibration.marginals(posterior, truth)[0]
    fractions = calibration.tarp_fractions(samples, truth, parameters.supports, 0)
    described = calibration.describe_marginal(marginal.pit, rank[:, 0])
    return marginal, described, calibration.describe_joint(fractions)


def test_right_posteriors_pass(problem):
    marginal, described, joint = summary(problem)
    for test in (described["pit"]["ks"], described["pit"]["chi2"], described["sbc"]["chi2"]):
        assert test["p_value"] > 0.01
    assert joint["ks"]["p_value"] > 0.01 and abs(joint["upper_area"]) < 0.02
    for level in COVERAGE.values():
        assert calibration.coverage_curve(marginal.pit, [level])[0] == pytest.approx(
            level, abs=0.025
        )


@pytest.mark.parametrize(("spread", "direction"), [(0.6, -1), (1.6, 1)])
def test_wrong_widths_fail_in_their_direction(problem, spread, direction):
    marginal, described, joint = summary(problem, spread=spread)
    for test in (described["pit"]["ks"], described["pit"]["chi2"], described["sbc"]["chi2"]):
        assert test["p_value"] < 1e-6
    inside = calibration.coverage_curve(marginal.pit, [0.68])[0]
    assert direction * (inside - 0.68) > 0.1
    histogram = np.array(described["pit"]["counts"])
    ends, middle = histogram[[0, -1]].mean(), histogram[8:12].mean()
    assert direction * (middle - ends) > 50  # a hump if under-confident, else a U
    assert direction * joint["upper_area"] > 0.02
    expected = stats.norm.cdf(spread * stats.norm.ppf(0.84)) * 2.0 - 1.0
    assert inside == pytest.approx(expected, abs=0.03)


def test_bias_slopes_the_histogram(problem):
    """Posteriors that lie too high have the truth at low PIT."""
    _, described, _ = summary(problem, shift=0.5)
    for key in ("pit", "sbc"):
        histogram = np.array(described[key]["counts"])
        assert histogram[:10].sum() > 1.3 * histogram[10:].sum()
        assert described[key]["chi2"]["p_value"] < 1e-6


@pytest.mark.parametrize("num", [60, 2000])
def test_bands_hold_uniform_values_19_times_in_20(num):
    rng = np.random.default_rng(7)
    low, high = calibration.histogram_band(num, 20)
    histograms = rng.multinomial(num, np.full(20, 0.05), 3000)
    inside = ((histograms >= low) & (histograms <= high)).all(axis=1).mean()
    # Bounds of all bins are equal whole numbers, so it can be a little more.
    assert 0.94 <= inside <= 0.985
    bounds = calibration.ecdf_band(num)
    curves = np.array([calibration.ecdf(rng.uniform(size=num)) for _ in range(3000)])
    inside = ((curves >= bounds[0] - 1e-12) & (curves <= bounds[1] + 1e-12)).all(axis=1).mean()
    assert 0.94 <= inside <= 0.965
    assert (bounds[0] <= calibration.CURVE_LEVELS).all()
    assert (bounds[1] >= calibration.CURVE_LEVELS).all()


def test_band_of_two_levels_is_the_binomial_interval():
    low, high = calibration.ecdf_band(500, np.array([0.0, 0.3, 1.0]))
    expected = stats.binom.interval(0.95, 500, 0.3)
    assert (500 * low[1], 500 * high[1]) == pytest.approx(expected, abs=1.5)


@pytest.mark.parametrize(("num", "bins"), [(1, 2), (10, 2), (49, 5), (60, 10), (100, 20)])
def test_bins_hold_five_each_where_they_can(num, bins):
    assert calibration.num_bins(num) == bins
    assert calibration.counts(uniforms(num, 0)).sum() == num


def test_one_example_is_no_error():
    described = calibration.describe_marginal(np.array([1.0]), np.array([99]))
    assert described["pit"]["counts"] == described["sbc"]["counts"] == [0, 1]


def test_same_seed_same_points(problem):
    parameters = ParameterSet.from_priors({"theta_E": Uniform(0.0, 1.0)})
    samples, truth = np.random.default_rng(0).uniform(size=(99, 5, 1)), np.full((5, 1), 0.5)
    first, again, other = (
        calibration.tarp_fractions(samples, truth, parameters.supports, seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_points_of_tarp_are_independent_of_the_draws(scipy_posterior, monkeypatch):
    """Of the flat posterior, calibrated here, the draws are uniform over the prior as they are."""
    monkeypatch.setattr(calibration, "NUM_SAMPLES", 9)  # of which one would weigh much
    names, shape = ("theta_E", "gamma1"), (400, 2)
    parameters = ParameterSet.from_priors(dict.fromkeys(names, Uniform(0.0, 1.0)))
    posterior = scipy_posterior(parameters, [stats.uniform(np.zeros(400), np.ones(400))] * 2)
    p_values = []
    for seed in range(40):
        truth = np.random.default_rng([seed, 2]).uniform(size=shape)
        fractions = calibration.judge(posterior, truth, seed).fractions
        p_values.append(calibration.ks_test(fractions)["p_value"])
    assert np.mean(np.array(p_values) < 0.1) < 0.3
    assert calibration.ks_test(np.array(p_values))["p_value"] > 1e-3
