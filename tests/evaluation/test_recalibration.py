import json

import numpy as np
import pytest
from scipy import integrate, special, stats
from sklearn.isotonic import IsotonicRegression

from dlens_tf.errors import UserError
from dlens_tf.evaluation import calibration, recalibration
from dlens_tf.evaluation.metrics import COVERAGE
from dlens_tf.evaluation.recalibration import CalibrationMap, RecalibratedPosterior, Recalibration
from dlens_tf.parameters import ParameterSet, Uniform

METHODS = pytest.mark.parametrize("method", recalibration.METHODS)


def mended(problem, method, num=2000, seed=11, fresh=20_000, **changes):
    """A recalibrated posterior of fresh images, and their truth."""
    parameters, posterior, truth = problem(num, seed, **changes)
    fitted = Recalibration.fit(method, posterior.cdf(truth), parameters)
    _, posterior, truth = problem(fresh, seed + 1, **changes)
    return RecalibratedPosterior(posterior, fitted), truth


def inside(posterior, truth):
    pit = posterior.cdf(truth)
    return np.array([calibration.coverage_curve(u, list(COVERAGE.values())) for u in pit.T])


@METHODS
@pytest.mark.parametrize("spread", [0.6, 1.0, 1.5])
def test_known_miscalibration_is_mended_on_fresh_images(problem, method, spread):
    posterior, truth = mended(problem, method, spread=spread)
    error = inside(posterior, truth) - list(COVERAGE.values())
    before = inside(posterior.base, truth) - list(COVERAGE.values())
    assert np.abs(error).max() < 0.025
    if spread != 1.0:
        assert np.abs(before).max() > 0.1


def test_isotonic_mends_a_bias_which_a_temperature_does_not(problem):
    errors = {}
    for method in recalibration.METHODS:
        posterior, truth = mended(problem, method, shift=0.8)
        errors[method] = np.abs(inside(posterior, truth) - list(COVERAGE.values())).max()
        if method == "isotonic":
            bias = (posterior.quantiles([0.5])[..., 0] - truth).mean(axis=0)
            biased = (posterior.base.quantiles([0.5])[..., 0] - truth).mean(axis=0)
            assert (np.abs(bias) < 0.1 * np.abs(biased)).all()
    assert errors["isotonic"] < 0.025
    assert errors["temperature"] > 0.025


def test_typical_error_of_the_isotonic_map_is_a_percent(problem):
    """Over many calibration splits of 2,000 images, in every interval."""
    rng = np.random.default_rng(0)
    for shape in ((1.0, 1.0), (0.6, 0.6), (2.0, 1.5)):
        law, errors = stats.beta(*shape), []
        for _ in range(50):
            fitted = recalibration.fit_isotonic(law.rvs(2000, random_state=rng))
            for level in COVERAGE.values():
                ends = fitted.invert(np.array([0.5 - 0.5 * level, 0.5 + 0.5 * level]))
                errors.append(np.diff(law.cdf(ends))[0] - level)
        assert np.sqrt(np.mean(np.square(errors))) < 0.012


def test_isotonic_equals_scikit_learns_at_the_knots():
    pit = np.random.default_rng(0).beta(0.7, 0.9, 1500)
    fitted = recalibration.fit_isotonic(pit)
    rank = np.arange(1, 1501) / 1501
    regression = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    knots = slice(4, -4, 4)
    theirs = regression.fit(np.sort(pit), rank).predict(fitted.levels[knots])
    pulled = (1500 * theirs + 20 * fitted.levels[knots]) / 1520
    np.testing.assert_allclose(fitted.calibrated[knots], pulled, atol=1e-12)
    assert len(pulled) == 15 and len(fitted.levels) == 65
    # Between the knots it never strays by more than the images between them.
    everywhere = regression.predict(np.linspace(0.0, 1.0, 500))
    assert np.abs(fitted.apply(np.linspace(0.0, 1.0, 500)) - everywhere).max() < 0.05


def test_temperature_is_the_most_likely_one():
    z = 1.7 * np.random.default_rng(0).standard_normal(1000)
    fitted = recalibration.fit_temperature(special.ndtr(z))
    best = np.sqrt(np.mean(z**2))
    likelihoods = [stats.norm.logpdf(z, scale=t).sum() for t in (0.98 * best, best, 1.02 * best)]
    assert np.argmax(likelihoods) == 1
    u = np.linspace(0.001, 0.999, 99)
    np.testing.assert_allclose(
        fitted.apply(u), special.ndtr(special.ndtri(u) / best), rtol=2e-2, atol=2e-3
    )


@pytest.mark.parametrize(
    "pit",
    [
        np.zeros(300),
        np.ones(300),
        np.repeat([0.0, 0.5, 1.0], 100),
        np.full(300, 0.3),
        np.linspace(0.4999999, 0.5000001, 300),
        np.random.default_rng(0).beta(1e-3, 1e-3, 300),
    ],
    ids=["zeros", "ones", "three", "equal", "crowded", "ends"],
)
@METHODS
def test_any_values_give_a_strictly_monotone_map(method, pit):
    fitted = Recalibration.fit(method, pit[:, np.newaxis], one_parameter()).maps["theta_E"]
    assert (np.diff(fitted.levels) > 0.0).all() and (np.diff(fitted.calibrated) > 0.0).all()
    u = np.linspace(0.0, 1.0, 101)
    np.testing.assert_allclose(fitted.apply(fitted.invert(u)), u, atol=1e-9)
    assert (fitted.apply(np.array([0.0, 1.0])) == [0.0, 1.0]).all()
    assert (fitted.slope(u) > 0.0).all()
    # What is written is what is read.
    assert CalibrationMap.from_dict(json.loads(json.dumps(fitted.to_dict()))).to_dict() == (
        fitted.to_dict()
    )


def one_parameter():
    return ParameterSet.from_priors({"theta_E": Uniform(-10.0, 10.0)})


@METHODS
def test_everything_agrees_with_everything(problem, method):
    """Density, distribution function, quantiles, moments and draws are those of one law."""
    posterior, _ = mended(problem, method, fresh=4, spread=0.6, shift=0.3)
    levels = np.array([0.02, 0.2, 0.5, 0.77, 0.98])
    quantiles = posterior.quantiles(levels)
    assert quantiles.shape == (4, 2, 5)
    for q, level in enumerate(levels):
        np.testing.assert_allclose(posterior.cdf(quantiles[..., q]), level, atol=1e-9)
    x = np.linspace(-25.0, 25.0, 200_001)
    grid = np.broadcast_to(x[:, np.newaxis, np.newaxis], (len(x), 4, 2))
    density = np.exp(posterior.log_prob(grid))
    np.testing.assert_allclose(integrate.trapezoid(density, x, axis=0), 1.0, atol=1e-3)
    mean = integrate.trapezoid(density * grid, x, axis=0)
    stddev = np.sqrt(integrate.trapezoid(density * (grid - mean) ** 2, x, axis=0))
    np.testing.assert_allclose(posterior.mean, mean, atol=0.01 * stddev.max())
    np.testing.assert_allclose(posterior.stddev, stddev, rtol=0.01)
    draws = posterior.samples(4000, seed=3)
    assert draws.shape == (4000, 4, 2)
    np.testing.assert_array_equal(draws, posterior.samples(4000, seed=3))
    pit = np.stack([posterior.cdf(draw) for draw in draws])
    for n, p in np.ndindex(4, 2):
        assert stats.kstest(pit[:, n, p], "uniform").pvalue > 1e-3


def test_identity_changes_nothing(problem):
    parameters, base, truth = problem(6, 0)
    same = RecalibratedPosterior(
        base, Recalibration({name: CalibrationMap.identity() for name in parameters.names})
    )
    np.testing.assert_allclose(same.quantiles([0.1, 0.9]), base.quantiles([0.1, 0.9]))
    np.testing.assert_allclose(same.cdf(truth), base.cdf(truth))
    np.testing.assert_allclose(same.log_prob(truth), base.log_prob(truth))
    np.testing.assert_allclose(same.joint_log_prob(truth), base.joint_log_prob(truth), atol=1e-3)
    np.testing.assert_allclose(same.mean, base.mean, atol=1e-3)
    np.testing.assert_allclose(same.stddev, base.stddev, rtol=1e-3)
    np.testing.assert_allclose(same.samples(5, 1), base.samples(5, 1), atol=2e-3)
    assert len(same) == 6


def test_joint_density_of_independent_marginals_is_their_product(problem):
    posterior, truth = mended(problem, "temperature", fresh=30, spread=0.7)
    np.testing.assert_allclose(
        posterior.joint_log_prob(truth), posterior.log_prob(truth).sum(axis=-1), atol=0.02
    )


def test_joint_density_keeps_the_copula(scipy_posterior):
    """Against a Gaussian copula with the new marginals, written out."""
    covariance = np.array([[1.0, 0.8], [0.8, 1.0]])

    class Correlated(scipy_posterior):
        def joint_log_prob(self, values):
            return np.atleast_1d(stats.multivariate_normal(cov=covariance).logpdf(values))

    parameters = ParameterSet.from_priors(
        {"theta_E": Uniform(-10.0, 10.0), "gamma1": Uniform(-10.0, 10.0)}
    )
    law = stats.norm(np.zeros(1), np.ones(1))
    wider = recalibration.fit_temperature(
        special.ndtr(1.5 * special.ndtri(np.arange(0.5, 2000) / 2000))
    )
    posterior = RecalibratedPosterior(
        Correlated(parameters, [law, law]), Recalibration(dict.fromkeys(parameters.names, wider))
    )
    expected = stats.multivariate_normal(cov=1.5**2 * covariance)
    points = expected.rvs(300, random_state=0)
    error = [posterior.joint_log_prob(point[np.newaxis])[0] for point in points]
    error -= expected.logpdf(points)
    # The map's slope is constant between knots.
    assert np.abs(error).max() < 0.4 and abs(error.mean()) < 0.01
    assert np.sqrt(np.mean(error**2)) < 0.1


def test_file_survives_and_damage_is_one_line(tmp_path):
    path, parameters = tmp_path / "recalibration.json", one_parameter()
    pit = np.random.default_rng(0).uniform(size=(400, 1))
    fitted = Recalibration.fit("isotonic", pit, parameters, {"split": "calibration"})
    path.write_text(json.dumps(fitted.to_dict(), allow_nan=False))
    read = Recalibration.read(path, parameters)
    assert read.to_dict() == fitted.to_dict()
    assert read.source == {"num_examples": 400, "split": "calibration"}
    assert read.method == "isotonic"
    others = ParameterSet.from_priors({"gamma1": Uniform(0.0, 1.0)})
    with pytest.raises(UserError, match="is for theta_E, the model infers gamma1; fit it again"):
        Recalibration.read(path, others)
    good = fitted.to_dict()
    for damaged in ("", "[]", "{}", '{"format_version": 9}', json.dumps(good | {"parameters": 3})):
        path.write_text(damaged)
        with pytest.raises(UserError, match="is damaged; fit it again with --recalibrate"):
            Recalibration.read(path, parameters)
    descending = good | {
        "parameters": {
            "theta_E": {
                "method": "isotonic",
                "levels": [0, 0.5, 0.4, 1],
                "calibrated": [0, 0.3, 0.6, 1],
            }
        }
    }
    path.write_text(json.dumps(descending))
    with pytest.raises(UserError, match="is damaged"):
        Recalibration.read(path, parameters)


def test_levels_are_checked_as_they_were_asked(problem):
    posterior, _ = mended(problem, "isotonic", fresh=3)
    with pytest.raises(UserError, match=r"must lie between 0 and 1: \[1\.5\]"):
        posterior.quantiles([1.5])
    with pytest.raises(UserError, match=r"must be a list, for example \[0\.5\], not 0\.5"):
        posterior.quantiles(0.5)


def test_bad_requests():
    pit, parameters = np.full((199, 1), 0.5), one_parameter()
    with pytest.raises(UserError, match="at least 200 images, not 199; 2,000 are good"):
        Recalibration.fit("isotonic", pit, parameters)
    with pytest.raises(UserError, match="unknown recalibration 'platt'; valid: isotonic, temper"):
        Recalibration.fit("platt", pit, parameters)
