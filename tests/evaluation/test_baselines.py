import numpy as np
import pytest
from sklearn.linear_model import Ridge

from dlens_tf.evaluation import baselines
from dlens_tf.parameters import Normal, ParameterSet, Uniform
from dlens_tf.simulation.recipes import get_recipe

TARGETS = ParameterSet.from_priors({"log10_m_axion": Uniform(-24.0, -22.0), "e1": Normal(0, 0.1)})


@pytest.fixture
def planted():
    """Statistics of very different scales and two parameters linear in them."""
    rng = np.random.default_rng(0)
    statistics = rng.normal(size=(600, 4)) * [1.0, 1e6, 1e-6, 1.0] + [0.0, 5e6, 0.0, 1.0]
    standard = (statistics - [0.0, 5e6, 0.0, 1.0]) / [1.0, 1e6, 1e-6, 1.0]
    truth = standard @ [[0.1, 0.0], [0.05, 0.03], [-0.1, 0.0], [0.0, 0.02]] + [-23.0, 0.01]
    return statistics, truth


def test_planted_relation_is_recovered(planted):
    statistics, truth = planted
    fit = baselines.fit_linear(statistics[:500], truth[:500], TARGETS, ridge=1e-9)
    mean, stddev = fit.predict(statistics[500:])
    np.testing.assert_allclose(mean, truth[500:], atol=1e-6)
    assert stddev.shape == mean.shape and (stddev > 0.0).all()
    assert fit.num_images == 500


def test_equals_scikit_learns_ridge(planted):
    statistics, truth = planted
    truth = truth + np.random.default_rng(1).normal(size=truth.shape) * [0.05, 0.01]
    fit = baselines.fit_linear(statistics, truth, TARGETS, ridge=0.1)
    standard = (statistics - statistics.mean(axis=0)) / statistics.std(axis=0)
    reference = Ridge(alpha=0.1 * len(statistics)).fit(standard, truth)
    np.testing.assert_allclose(fit.predict(statistics)[0], reference.predict(standard), rtol=1e-8)
    np.testing.assert_allclose(
        fit.residual_std, np.std(truth - reference.predict(standard), axis=0), rtol=1e-6
    )


def test_constant_and_repeated_statistics_are_harmless(planted):
    statistics, truth = planted
    padded = np.concatenate(
        [statistics, np.full((600, 1), 0.1), np.zeros((600, 1)), statistics], axis=1
    )
    mean, stddev = baselines.fit_linear(padded, truth, TARGETS).predict(padded)
    assert np.isfinite(mean).all() and np.isfinite(stddev).all()
    assert np.abs(mean - truth).max() < 0.01


def test_fewer_images_than_statistics(planted):
    statistics, truth = planted
    fit = baselines.fit_linear(statistics[:2], truth[:2], TARGETS)
    assert np.isfinite(fit.predict(statistics)[0]).all()


def test_predictions_keep_to_the_prior(planted):
    statistics, truth = planted
    mean, _ = baselines.fit_linear(statistics, truth, TARGETS).predict(statistics * 1e3)
    low, high = TARGETS.supports.T
    assert ((mean >= low) & (mean <= high)).all()
    assert (mean == high).any()


def test_centre_is_the_priors():
    mean, stddev = baselines.predict_centre(TARGETS, 3)
    np.testing.assert_allclose(mean, [[-23.0, 0.0]] * 3)
    np.testing.assert_allclose(stddev, [[2.0 / np.sqrt(12.0), 0.1]] * 3)


def test_published_numbers_and_limit_come_from_the_recipe():
    recipe = get_recipe("model_i_legacy")
    results = baselines.published_results(recipe, "log10_m_axion")
    assert (results[0].model, results[0].mae) == ("XResNet18Hybrid", 0.2737)
    assert [r.mae for r in results] == sorted(r.mae for r in results)
    assert baselines.information_limit(recipe, "log10_m_axion").mae == 0.189
    for other in ((recipe, "source_x"), (None, "log10_m_axion")):
        assert baselines.published_results(*other) == []
        assert baselines.information_limit(*other) is None
