import dataclasses

import numpy as np
import pytest
from scipy import integrate, stats

from dlens_tf.inference.pixel_likelihoods import log_counts_probability, make_likelihood
from dlens_tf.simulation.noise import DEEPLENSE_BACKGROUND_RMS, observe
from dlens_tf.simulation.recipes import get_recipe


def probability_by_quadrature(count: int, mean: float, variance: float) -> float:
    """Of a Poisson count whose rate is a Gaussian cut at zero, by a fine sum over rates."""
    deviation = np.sqrt(variance)
    rates = np.linspace(0.0, max(mean, count) + 12.0 * (deviation + np.sqrt(count + 1.0)), 40_001)
    density = stats.poisson.pmf(count, rates) * stats.norm.pdf(rates, mean, deviation)
    cut = stats.norm.cdf(-mean / deviation) if count == 0 else 0.0
    return integrate.simpson(density, x=rates) + cut


@pytest.mark.parametrize("exposure", [1000.0, 3162.0])
@pytest.mark.parametrize("mean", [0.0, 0.5, 5.0, 50.0, 300.0])
def test_counts_agree_with_quadrature(mean, exposure):
    variance = mean + (DEEPLENSE_BACKGROUND_RMS * exposure) ** 2
    for count in (0, 1, 2, 5, 30, 100, 300):
        expected = np.log(probability_by_quadrature(count, mean, variance))
        if expected < -60.0:
            continue
        [actual] = log_counts_probability(*np.float64([[count], [mean], [variance]]))
        assert actual == pytest.approx(expected, abs=6e-4)


def test_probabilities_of_all_counts_sum_to_one():
    counts = np.arange(400.0)
    for mean, variance in ((0.0, 100.0), (3.0, 400.0), (80.0, 500.0)):
        shape = np.ones(len(counts))
        total = np.exp(log_counts_probability(counts, mean * shape, variance * shape)).sum()
        assert total == pytest.approx(1.0, abs=3e-4)


@pytest.fixture(scope="module")
def model():
    """A noise-free image with bright and dark pixels."""
    rng = np.random.default_rng(3)
    image = np.zeros((12, 12, 1))
    image[3:9, 2:10, 0] = rng.uniform(0.002, 0.3, (6, 8))
    return image


def test_instrument_is_gaussian_with_the_models_variance(model):
    recipe = get_recipe("model_ii_instrument")
    image = observe(model, recipe, np.random.default_rng(0)).image
    likelihood = make_likelihood(image, recipe, model, None)
    band = recipe.instrument
    for scale in (1.0, 1.03):
        deviation = np.sqrt(band.background_rms**2 + scale * model / band.total_exposure_time)
        expected = stats.norm.logpdf(image, scale * model, deviation).sum()
        actual = likelihood((scale * model).ravel()).value
        assert actual - 0.5 * image.size * np.log(2 * np.pi) == pytest.approx(expected)


def _exposure(recipe) -> float | None:
    return 3.2 if recipe.noise == "deeplense_counts" else None


@pytest.mark.parametrize("name", ["model_ii_instrument", "model_i_legacy"])
def test_score_is_the_derivative(model, name):
    recipe = get_recipe(name)
    image = observe(model, recipe, np.random.default_rng(1)).image
    exposure = _exposure(recipe)
    likelihood = make_likelihood(image, recipe, model, exposure)
    flux = model.ravel()[likelihood.pixels]
    direction = flux * np.linspace(0.5, 1.5, len(flux))
    terms = likelihood(flux, exposure)
    step = 1e-4
    high, low = (likelihood(flux + s * direction, exposure).value for s in (step, -step))
    assert terms.score[0] @ direction == pytest.approx((high - low) / (2 * step), rel=2e-3)
    if likelihood.has_exposure:
        high, low = (likelihood(flux, exposure + s).value for s in (step, -step))
        assert terms.score[1].sum() == pytest.approx((high - low) / (2 * step), rel=2e-2)


@pytest.mark.parametrize("name", ["model_ii_instrument", "model_i_legacy"])
def test_information_is_the_scores_variance(model, name):
    recipe = get_recipe(name)
    if name == "model_i_legacy":
        recipe = dataclasses.replace(recipe, exposure_log10=(3.2, 3.2))
    exposure = _exposure(recipe)
    flux = model[model > 0.0].ravel()[:4]
    image = np.repeat(flux, 40_000)[:, None, None]
    noisy = observe(image, recipe, np.random.default_rng(2)).image
    likelihood = make_likelihood(noisy, recipe, image, exposure)
    terms = likelihood(image.ravel(), exposure)
    score = terms.score.reshape(len(terms.score), len(flux), -1)
    measured = np.einsum("vpn,wpn->vwp", score, score) / score.shape[-1]
    expected = terms.information.reshape(*measured.shape, -1)[..., 0]
    np.testing.assert_allclose(expected[0, 0], measured[0, 0], rtol=0.05)
    if likelihood.has_exposure:
        # One exposure time for all pixels: no pixel's own information, but what each adds.
        np.testing.assert_allclose(expected[1, 1], measured[1, 1], rtol=0.05)


def test_dark_pixels_tell_of_the_exposure_time(model):
    recipe = get_recipe("model_i_legacy")
    image = observe(model, recipe, np.random.default_rng(4)).image
    likelihood = make_likelihood(image, recipe, model, 3.2)
    flux = model.ravel()[likelihood.pixels]
    assert len(flux) == np.sum(model > 0.0) < model.size

    def whole(log10_exposure):
        mean = 10.0**log10_exposure * model.ravel()
        variance = mean + (DEEPLENSE_BACKGROUND_RMS * 10.0**log10_exposure) ** 2
        return log_counts_probability(image.ravel(), mean, variance).sum()

    for shift in (-0.03, 0.0, 0.01, 0.04):
        actual = likelihood(flux, 3.2 + shift).value
        assert actual == pytest.approx(whole(3.2 + shift), abs=2e-2)
