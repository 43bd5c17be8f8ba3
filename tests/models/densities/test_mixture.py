import numpy as np
import tensorflow as tf
from scipy import special, stats

from dlens_tf.models.densities import MixtureDensity


def test_equals_a_sum_of_truncated_normals():
    raw = np.random.default_rng(0).normal(size=(1, 3 * (1 + 2 * 2)))
    weights = special.softmax(raw[0, :3])
    mode = special.expit(raw[0, 3:9].reshape(3, 2))
    width = 3e-4 + (2.0 - 3e-4) * special.expit(raw[0, 9:].reshape(3, 2))
    law = stats.truncnorm(-mode / width, (1.0 - mode) / width, mode, width)
    x = np.random.default_rng(1).random((40, 1, 2))
    density, numbers = MixtureDensity(2, components=3), tf.constant(raw)
    cdf = np.einsum("c,mcp->mp", weights, law.cdf(x))
    np.testing.assert_allclose(density.cdf(numbers, tf.constant(x))[:, 0], cdf, rtol=1e-9)
    pdf = np.einsum("c,mcp->mp", weights, law.pdf(x))
    log_prob = density.log_prob(numbers, tf.constant(x))
    np.testing.assert_allclose(log_prob[:, 0], np.log(pdf), rtol=1e-6, atol=1e-9)
    joint = np.log(law.pdf(x).prod(axis=-1) @ weights)
    found = density.joint_log_prob(numbers, tf.constant(x))
    np.testing.assert_allclose(found[:, 0], joint, rtol=1e-6, atol=1e-9)


def test_components_start_apart_and_in_no_common_order():
    density = MixtureDensity(3, components=8)
    modes = special.expit(density.initial_numbers()[8:32].reshape(8, 3))
    for p in range(3):
        np.testing.assert_allclose(np.sort(modes[:, p]), (np.arange(8) + 0.5) / 8)
    assert (np.abs(np.corrcoef(modes.T) - np.eye(3)) < 0.9).all()
