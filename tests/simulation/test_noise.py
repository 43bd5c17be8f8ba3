import dataclasses

import numpy as np
import pytest
from scipy import stats

from dlens_tf.simulation.noise import deeplense_counts_variance, moments, observe
from dlens_tf.simulation.recipes import RECIPES, get_recipe

SIDE = 400


def observe_flat(recipe, flux, seed=0):
    """An image of one constant flux, so that its pixels are draws from one law."""
    return observe(np.full((SIDE, SIDE, 1), flux), recipe, np.random.default_rng(seed))


def assert_moments(values, mean, variance):
    """Sample mean and variance within four standard errors of theirs."""
    num = values.size
    kurtosis = stats.kurtosis(values, axis=None, fisher=False)
    np.testing.assert_allclose(values.mean(), mean, atol=4 * np.sqrt(variance / num))
    np.testing.assert_allclose(
        values.var(), variance, rtol=4 * np.sqrt((kurtosis - 1) / num), atol=1e-300
    )


@pytest.fixture
def counts_recipe():
    return dataclasses.replace(get_recipe("model_i_legacy"), exposure_log10=(3.2, 3.2))


@pytest.mark.parametrize("flux", [0.0, 0.002, 0.02, 0.5])
def test_model_i_counts(counts_recipe, flux):
    """λ = t(I + N(0, I/t) + N(0, 0.01²)), then Poisson of max(λ, 0): here by its own simulation."""
    time = 10**3.2
    observed = observe_flat(counts_recipe, flux)
    assert observed.exposure_time == pytest.approx(time)
    rng = np.random.default_rng(99)
    size = 2_000_000
    rate = time * (flux + rng.normal(0.0, np.sqrt(flux / time), size) + rng.normal(0.0, 0.01, size))
    reference = rng.poisson(np.where(rate > 0, rate, 0.0))
    assert_moments(observed.image, reference.mean(), reference.var())
    mean, variance = moments(np.array(flux), counts_recipe, time)
    assert_moments(reference.astype(float), mean, variance)


def test_half_of_model_i_dark_pixels_are_zero(counts_recipe):
    observed = observe_flat(counts_recipe, 0.0)
    sigma = 0.01 * observed.exposure_time
    # P(0) = 1/2 + ∫_0^∞ N(λ; 0, σ²) e^-λ dλ = 1/2 + e^{σ²/2} Φ(-σ)
    expected = 0.5 + np.exp(sigma**2 / 2) * stats.norm.sf(sigma)
    zeros = np.mean(observed.image == 0)
    np.testing.assert_allclose(zeros, expected, atol=4 * 0.5 / SIDE)
    assert np.all(observed.image == np.round(observed.image))


def test_model_i_bright_pixels_have_the_documented_variance(counts_recipe):
    flux = 2.0
    observed = observe_flat(counts_recipe, flux)
    time = observed.exposure_time
    variance = 2 * time * flux + (0.01 * time) ** 2
    np.testing.assert_allclose(deeplense_counts_variance(np.array(flux), time), variance)
    assert_moments(observed.image, time * flux, variance)


def test_model_i_exposures_are_log_uniform():
    recipe = get_recipe("model_i_legacy")
    flux = np.zeros((2, 2, 1))
    times = [
        observe(flux, recipe, np.random.default_rng(seed)).exposure_time for seed in range(400)
    ]
    assert stats.kstest(np.log10(times), stats.uniform(3.0, 0.5).cdf).pvalue > 0.01


@pytest.mark.parametrize("name", ["model_ii_instrument", "model_ii", "model_i"])
@pytest.mark.parametrize("flux", [0.0, 0.05, 4.0])
def test_instrument_noise(name, flux):
    recipe = get_recipe(name)
    instrument = recipe.instrument
    time = instrument.exposure_time * instrument.num_exposures
    sky = 10 ** (-0.4 * (instrument.sky_brightness - instrument.magnitude_zero_point))
    electrons = (
        flux * time
        + sky * instrument.pixel_scale**2 * time
        + instrument.num_exposures * instrument.read_noise**2
    )
    observed = observe_flat(recipe, flux)
    assert_moments(observed.image, flux, electrons / time**2)
    assert observed.exposure_time == time
    mean, variance = moments(np.full(1, flux), recipe, time)
    np.testing.assert_allclose([mean[0], variance[0]], [flux, electrons / time**2], rtol=1e-10)
    # Gaussian, and no pixel's noise knows of its neighbour's.
    noise = (observed.image - flux) * time / np.sqrt(electrons)
    assert stats.kstest(noise.ravel(), stats.norm.cdf).pvalue > 0.01
    assert abs(np.mean(noise[:, 1:] * noise[:, :-1])) < 4 / SIDE


def test_snr_is_that_of_the_matched_filter():
    recipe = get_recipe("model_ii_instrument")
    model = np.zeros((64, 64, 1))
    model[20:30, 20:30] = 0.5
    observed = observe(model, recipe, np.random.default_rng(0))
    background = observed.background_rms**2
    expected = np.sqrt(100 * 0.5**2 / (background + 0.5 / 2260.0))
    np.testing.assert_allclose(observed.snr, expected)


def test_published_models_ii_and_iii_are_doubled_and_noise_free():
    model = np.random.default_rng(0).uniform(size=(64, 64, 1))
    for name in ("model_ii_legacy", "model_iii_legacy"):
        recipe = get_recipe(name)
        first, second = (observe(model, recipe, np.random.default_rng(s)) for s in (0, 1))
        np.testing.assert_array_equal(first.image, 2 * model)
        np.testing.assert_array_equal(first.image, second.image)
        assert first.snr is None and first.background_rms == 0.0
        mean, variance = moments(model, recipe, first.exposure_time)
        np.testing.assert_array_equal(mean, first.image)
        np.testing.assert_array_equal(variance, 0.0)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_same_generator_same_noise(recipe):
    model = np.full((8, 8, len(recipe.bands)), 0.1)
    first, second = (observe(model, recipe, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
