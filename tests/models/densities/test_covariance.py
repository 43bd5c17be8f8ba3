import numpy as np
import pytest
import tensorflow as tf
from scipy import integrate, special, stats

from dlens_tf.models.densities import CovarianceDensity


@pytest.fixture
def law():
    """Numbers of one law of three parameters; centre and covariance of its probits."""
    raw = np.array([0.3, -0.5, 0.1, -2.0, 0.4, -0.7, 0.8, -0.3, 1.1])
    centre = 4.0 * np.tanh(raw[:3] / 4.0)
    largest = (-stats.norm.ppf(1e-6) - np.abs(centre)) / 3.0
    width = 1e-3 + (largest - 1e-3) * special.expit(raw[3:6])
    bounded = 30.0 * np.tanh(raw[6:] / 30.0)
    rows = np.array([[1.0, 0, 0], [bounded[0], 1.0, 0], [bounded[1], bounded[2], 1.0]])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return raw[np.newaxis], centre, (width[:, None] * rows) @ (width[:, None] * rows).T


def test_density_is_a_multivariate_normal_of_probits(law):
    numbers, centre, covariance = law
    density = CovarianceDensity(3)
    x = np.random.default_rng(0).uniform(0.02, 0.98, (50, 1, 3))
    z = stats.norm.ppf(x)
    jacobian = stats.norm.logpdf(z)
    joint = stats.multivariate_normal(centre, covariance).logpdf(z) - jacobian.sum(-1)[:, 0]
    found = density.joint_log_prob(tf.constant(numbers), tf.constant(x))
    np.testing.assert_allclose(found[:, 0], joint, rtol=1e-6)
    marginal = stats.norm(centre, np.sqrt(np.diag(covariance)))
    np.testing.assert_allclose(density.cdf(tf.constant(numbers), tf.constant(x)), marginal.cdf(z))
    np.testing.assert_allclose(
        density.log_prob(tf.constant(numbers), tf.constant(x)),
        marginal.logpdf(z) - jacobian,
        rtol=1e-6,
    )


def test_samples_have_the_covariance(law):
    numbers, centre, covariance = law
    uniforms = np.random.default_rng(1).random((20_000, 1, 3))
    samples = CovarianceDensity(3).sample(tf.constant(numbers), tf.constant(uniforms)).numpy()
    z = stats.norm.ppf(samples[:, 0])
    np.testing.assert_allclose(z.mean(0), centre, atol=0.06)
    np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.08)


@pytest.mark.parametrize("centre", [-1e4, -3.0, 0.0, 1.5, 1e4])
def test_next_to_nothing_is_lost_at_the_ends(centre):
    """The widest laws, wherever they are, integrate to 1 over what they tell of the support."""
    numbers, density = tf.constant([[centre, 1e4]], tf.float64), CovarianceDensity(1)
    z = np.linspace(*stats.norm.ppf([1e-6, 1.0 - 1e-6]), 20_001)
    x = stats.norm.cdf(z)
    log_prob = density.log_prob(numbers, tf.constant(x[:, None, None])).numpy()[:, 0, 0]
    total = integrate.trapezoid(np.exp(log_prob) * stats.norm.pdf(z), z)
    assert total == pytest.approx(1.0, abs=3e-3)
    below, above = density.cdf(numbers, tf.constant([[[0.0]], [[1.0]]], tf.float64)).numpy().ravel()
    assert 0.0 <= below < 1.5e-3 and 1.0 - 1.5e-3 < above <= 1.0
