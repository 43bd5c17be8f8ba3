import numpy as np
import pytest
import tensorflow as tf

from dlens_tf.models.densities import FlowDensity, SplineDensity

DENSITY = FlowDensity(3, bins=5, hidden=4)
NUMBERS = DENSITY.initial_numbers() + 0.7 * np.random.default_rng(0).normal(
    size=(2, DENSITY.num_numbers)
)


def test_first_parameter_has_an_exact_spline():
    spline = SplineDensity(1, bins=5)
    own = tf.constant(NUMBERS[:, : spline.num_numbers])
    x = tf.constant(np.random.default_rng(1).random((20, 2, 3)))
    for name in ("cdf", "log_prob", "icdf"):
        expected = getattr(spline, name)(own, x[..., :1])
        found = getattr(DENSITY, name)(tf.constant(NUMBERS), x)
        np.testing.assert_allclose(found[..., :1], expected, rtol=1e-12)


def test_density_is_that_of_the_samples_map():
    """The joint density is one over the Jacobian determinant of the map from u to samples."""
    numbers = tf.constant(NUMBERS)
    uniforms = tf.constant(np.random.default_rng(2).uniform(0.05, 0.95, (10, 2, 3)))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(uniforms)
        samples = DENSITY.sample(numbers, uniforms)
        parts = [tf.reduce_sum(samples[..., p]) for p in range(3)]
    jacobian = np.stack([tape.gradient(part, uniforms) for part in parts], axis=-2)
    assert (np.triu(jacobian, 1) == 0.0).all()  # each depends on those before it only
    assert (np.abs(jacobian[..., 2, 0]) > 1e-3).any()
    expected = -np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(DENSITY.joint_log_prob(numbers, samples), expected, atol=1e-8)


def test_marginals_are_those_of_many_samples():
    numbers = tf.constant(NUMBERS)
    uniforms = np.random.default_rng(3).random((20_000, 2, 3))
    samples = DENSITY.sample(numbers, tf.constant(uniforms)).numpy()
    levels = [0.025, 0.16, 0.5, 0.84, 0.975]
    quantiles = DENSITY.quantiles(numbers, levels).numpy()
    share = (samples[..., np.newaxis] < quantiles).mean(axis=0)
    np.testing.assert_allclose(share, np.broadcast_to(levels, share.shape), atol=0.015)
    mean, stddev = DENSITY.moments(numbers)
    np.testing.assert_allclose(mean, samples.mean(0), atol=0.01)
    np.testing.assert_allclose(stddev, samples.std(0), rtol=0.03)


@pytest.mark.parametrize("log2_points", [3, 8, 10])
def test_points_are_middles_of_cells_along_each_axis(log2_points):
    number = 2**log2_points
    for _, points in DENSITY._conditionals(tf.constant(NUMBERS), log2_points):
        sorted_points = np.sort(np.reshape(points, (number, -1)), axis=0)
        middles = (np.arange(number)[:, np.newaxis] + 0.5) / number
        np.testing.assert_allclose(
            sorted_points, np.broadcast_to(middles, sorted_points.shape), atol=1e-12
        )
