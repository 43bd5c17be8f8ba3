import dataclasses
import functools
import types

import numpy as np
import pytest
from scipy import special, stats

from dlens_tf.errors import UserError
from dlens_tf.inference import brute_force
from dlens_tf.inference.brute_force import ANGLE, EXPOSURE, TARGET, BruteForce, _Fit
from dlens_tf.inference.cells import ACCURACY
from dlens_tf.inference.pixel_likelihoods import make_likelihood
from dlens_tf.parameters import Derived
from dlens_tf.simulation.noise import observe
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.scene import draw
from dlens_tf.simulation.substructure import Vortex


class LinearModel(BruteForce):
    """An image that is linear in all parameters, whose posterior is a Gaussian."""

    def __init__(self, matrix, prior_std):
        band = types.SimpleNamespace(background_rms=0.3, total_exposure_time=1e12)
        self.recipe = types.SimpleNamespace(
            name="linear", noise="instrument", has_noise=True, bands=[band],
            image_shape=(len(matrix), 1, 1),
        )  # fmt: skip
        self.matrix = matrix
        number = matrix.shape[1] - 2
        self.nuisance = self.rendered = tuple(f"n{i}" for i in range(number))
        self.span = [(-24.0, -22.0), (0.0, np.pi)]
        self.low, self.high = np.full(number, -50.0), np.full(number, 50.0)
        self.reach, self.centers = np.zeros(number), np.full(number, 0.1)
        self.stds = np.full(number, prior_std)
        self.precision = self.stds**-2.0
        self.law = Vortex()

    def render(self, points, values):
        return np.concatenate([points - [-23.0, 1.5], values], axis=1) @ self.matrix.T + 5.0

    def first_cells(self):
        return np.linspace(-24.0, -22.0, 9), [8] * 8


@pytest.fixture
def linear():
    """A model of two other parameters, an image of it and a start."""
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(60, 4)) * [0.6, 0.5, 1.0, 2.0]
    image = matrix @ [0.1, 0.2, 0.3, -0.4] + 5.0 + 0.3 * rng.normal(size=60)
    start = {TARGET: -22.9, ANGLE: 1.7, "n0": 0.0, "n1": 0.0}
    return LinearModel(matrix, 0.5), image.reshape(60, 1, 1), start


def test_what_stopped_short_is_told(linear, monkeypatch):
    model, image, start = linear
    posterior = model.posterior(image, start)
    assert posterior.unconverged == 0.0 and posterior.doubt < ACCURACY
    short = functools.partial(brute_force.integrate, max_points=100)
    monkeypatch.setattr(brute_force, "integrate", short)
    posterior = model.posterior(image, start)
    assert posterior.doubt > ACCURACY and 100 <= len(posterior.cells) < 250
    # A single step from far away tells of a rise, but not whether it is there.
    monkeypatch.setattr(brute_force, "_STEPS", 1)
    posterior = model.posterior(image, start | {"n0": 3.0})
    assert 0.5 < posterior.unconverged <= 1.0 + 1e-9


def test_linear_model_agrees_with_the_analytic_posterior():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(60, 5)) * [0.6, 0.5, 1.0, 2.0, 0.1]
    truth = np.array([0.1, 0.2, 0.3, -0.4, 0.5])
    image = (matrix @ truth + 5.0 + 0.3 * rng.normal(size=60)).reshape(60, 1, 1)
    prior_std = 0.5
    # All parameters together, about (-23, 1.5, 0, 0, 0).
    precision = matrix.T @ matrix / 0.09 + np.diag([0.0, 0.0, *[prior_std**-2.0] * 3])
    right = matrix.T @ (image.ravel() - 5.0) / 0.09 + np.r_[0, 0, np.full(3, 0.1 * prior_std**-2.0)]
    covariance = np.linalg.inv(precision)
    expected = stats.norm(-23.0 + (covariance @ right)[0], np.sqrt(covariance[0, 0]))
    start = {TARGET: -22.9, ANGLE: 1.7, "n0": 0.0, "n1": 0.0, "n2": 0.0}
    marginal = LinearModel(matrix, prior_std).posterior(image, start).marginal
    tolerance = 0.05 * expected.std()
    for level in (0.025, 0.16, 0.5, 0.84, 0.975):
        assert marginal.quantile(level) == pytest.approx(expected.ppf(level), abs=2 * tolerance)
    assert marginal.median == pytest.approx(expected.mean(), abs=tolerance)
    assert marginal.stddev == pytest.approx(expected.std(), rel=0.05)


def small(name: str, **changes):
    """A recipe with a quarter of the pixels, each of four times the area and noise."""
    recipe = get_recipe(name)
    band = dataclasses.replace(recipe.instrument, pixel_scale=2.0 * recipe.instrument.pixel_scale)
    return dataclasses.replace(
        recipe, num_pix=recipe.num_pix // 2, instrument=band, **{"supersampling": 1, **changes}
    )


def observed(exact: BruteForce, truth: dict, seed: int):
    """An image, and where to start from."""
    noisy = observe(exact.render_one(truth), exact.recipe, np.random.default_rng(seed))
    return noisy.image, {**truth, EXPOSURE: np.log10(noisy.exposure_time)}


@pytest.fixture(scope="module")
def legacy():
    return BruteForce(small("model_ii_instrument"))


def test_legacy_posterior_agrees_with_a_dense_grid(legacy):
    truth = draw(legacy.recipe, "axion", 0, 1).parameters | {TARGET: -22.7}
    image, start = observed(legacy, truth, 0)
    posterior = legacy.posterior(image, start)
    best = posterior.cells.payload[np.argmax(posterior.cells.value)]
    likelihood = make_likelihood(image, legacy.recipe, image, None)
    masses, angles = np.linspace(-24, -22, 33)[1::2], np.linspace(0, np.pi, 13)[1::2]
    reach = 6e-3
    nodes = reach * np.linspace(-1.0, 1.0, 9)
    mesh = np.stack(np.meshgrid(masses, angles, nodes, nodes, indexing="ij"), axis=-1)
    flat = mesh.reshape(-1, 4)
    images = legacy.render(flat[:, :2], best + flat[:, 2:]).astype(np.float64)
    values = np.array([likelihood(model).value for model in images]).reshape(mesh.shape[:-1])
    by_mass = special.logsumexp(values, axis=(1, 2, 3))
    edges = np.linspace(-24, -22, 17)
    expected = np.cumsum(np.exp(by_mass - special.logsumexp(by_mass)))
    actual = np.array([posterior.marginal.cdf(edge) for edge in edges[1:]])
    np.testing.assert_allclose(actual, expected, atol=0.03)


def test_start_does_not_matter(legacy):
    truth = draw(legacy.recipe, "axion", 0, 2).parameters | {TARGET: -22.5}
    image, start = observed(legacy, truth, 1)
    first = legacy.posterior(image, start).marginal
    other = {**start, TARGET: -22.9, ANGLE: 1.0, "source_x": start["source_x"] + 0.005}
    second = legacy.posterior(image, other).marginal
    for level in (0.1, 0.5, 0.9):
        assert second.quantile(level) == pytest.approx(first.quantile(level), abs=0.02)


@pytest.mark.slow
def test_laplace_agrees_with_importance_sampling():
    exact = BruteForce(small("model_ii", supersampling=2))
    truth = draw(exact.recipe, "axion", 0, 3).parameters | {TARGET: -22.9}
    image, start = observed(exact, truth, 2)
    fit = _Fit(exact, image, start)
    points = np.array([[truth[TARGET] + s, truth[ANGLE]] for s in (-0.1, 0.0, 0.3)])
    values, optima = fit(points, np.repeat(fit.best[None], 3, axis=0), -np.inf)
    rng = np.random.default_rng(0)
    sampled = []
    for point, optimum in zip(points, optima, strict=True):
        jacobian = fit._jacobian(point, optimum)
        model = exact.render(point[None], optimum[None])[0]
        hessian = fit._hessian(fit._terms(model, optimum), jacobian)
        proposal = stats.multivariate_t(optimum, np.linalg.inv(hessian), df=8)
        draws = proposal.rvs(3000, random_state=rng)
        inside = np.all((draws > exact.low) & (draws < exact.high), axis=1)
        draws, log_proposal = draws[inside], proposal.logpdf(draws)[inside]
        models = exact.render(np.repeat(point[None], len(draws), axis=0), draws)
        log_posterior = [
            fit._terms(model, draw).value + fit._log_prior(draw)
            for model, draw in zip(models, draws, strict=True)
        ]
        weights = np.array(log_posterior) - log_proposal
        effective = np.exp(2 * special.logsumexp(weights) - special.logsumexp(2 * weights))
        assert effective > 100
        # The Laplace value leaves out the Gaussian's powers of 2π, which cancel below.
        sampled.append(special.logsumexp(weights) - np.log(3000))
    # A posterior is no exact Gaussian: 0.35 was seen. The differences themselves are 2 and more.
    np.testing.assert_allclose(np.diff(values), np.diff(sampled), atol=0.6)


@pytest.mark.slow
def test_ranks_of_truths_are_uniform(legacy):
    ranks = []
    for index in range(40):
        truth = draw(legacy.recipe, "axion", 7, index).parameters
        image, start = observed(legacy, truth, index)
        ranks.append(legacy.posterior(image, start).marginal.cdf(truth[TARGET]))
    assert stats.kstest(ranks, "uniform").pvalue > 1e-3


def test_count_recipes_infer_the_exposure_time_too():
    recipe = small("model_i_legacy", exposure_log10=(3.2, 3.25))
    exact = BruteForce(recipe)
    assert exact.nuisance == ("source_x", "source_y", EXPOSURE)
    truth = draw(recipe, "axion", 0, 0).parameters | {TARGET: -23.7}
    image, start = observed(exact, truth, 3)
    marginal = exact.posterior(image, start).marginal
    assert abs(marginal.median - truth[TARGET]) < 5.0 * marginal.stddev < 0.3
    with pytest.raises(UserError, match="lacks log10_exposure"):
        exact.posterior(image, truth)


def test_what_it_cannot_do_is_refused(legacy):
    for name, message in (
        ("model_iii_legacy", "has no noise: its information limit is 0"),
        ("cdm", "recipe cdm has no vortex"),
        ("model_iv", "recipe model_iv has no vortex"),
    ):
        with pytest.raises(UserError, match=message):
            BruteForce(get_recipe(name))
    odd = get_recipe("model_ii_instrument")
    odd = dataclasses.replace(odd, priors={**odd.priors, "e1": Derived(0.0, 0.1, -0.3, 0.3)})
    with pytest.raises(UserError, match="has a Derived prior for e1"):
        BruteForce(odd)
    with pytest.raises(UserError, match=r"an image of shape \(8, 8, 1\) is not of recipe"):
        legacy.posterior(np.zeros((8, 8, 1)), dict.fromkeys((TARGET, ANGLE, *legacy.nuisance), 0.0))
