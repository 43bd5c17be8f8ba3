import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from dlens_tf.serving.signatures import add_quantiles


def test_quantiles_are_those_of_a_normal_law():
    mean = tf.constant([[-22.5, 1.2], [-23.0, 1.5]])
    stddev = tf.constant([[0.1, 0.01], [0.4, 0.2]])
    quantiles = add_quantiles({"mean": mean, "stddev": stddev})["quantiles"].numpy()
    law = stats.norm(mean.numpy()[..., None], stddev.numpy()[..., None])
    expected = law.ppf([0.025, 0.16, 0.5, 0.84, 0.975])
    np.testing.assert_allclose(quantiles, expected, rtol=1e-6)
    assert quantiles.dtype == np.float32


@pytest.mark.parametrize("extra", [{}, {"features": tf.zeros([2, 9])}])
def test_point_estimates_have_a_mean_only(extra):
    mean = tf.zeros([2, 2])
    assert list(add_quantiles({"mean": mean, **extra})) == ["mean"]
