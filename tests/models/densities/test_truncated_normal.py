import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from dlens_tf.models.densities import truncated_normal

MODE = np.array([0.0, 0.02, 0.5, 0.9, 1.0, 0.5])
WIDTH = np.array([0.1, 0.3, 0.004, 0.05, 2.0, 2.0])
LAW = stats.truncnorm(-MODE / WIDTH, (1.0 - MODE) / WIDTH, MODE, WIDTH)
X = np.linspace(0.0, 1.0, 41)[:, np.newaxis]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 2e-5)])
def test_equals_scipy(dtype, tolerance):
    mode, width, x = (tf.constant(v, dtype) for v in (MODE, WIDTH, X))
    cdf = truncated_normal.cdf(mode, width, x)
    np.testing.assert_allclose(cdf, LAW.cdf(X), atol=tolerance)
    log_prob = truncated_normal.log_prob(mode, width, x)
    np.testing.assert_allclose(log_prob, LAW.logpdf(X), rtol=tolerance, atol=tolerance)
    u = X[1:-1]
    icdf = truncated_normal.icdf(mode, width, tf.constant(u, dtype))
    np.testing.assert_allclose(icdf, LAW.ppf(u), atol=tolerance)
    mean, stddev = truncated_normal.moments(mode, width)
    np.testing.assert_allclose(mean, LAW.mean(), rtol=10 * tolerance)
    np.testing.assert_allclose(stddev, LAW.std(), rtol=10 * tolerance)


def test_any_numbers_give_a_law():
    raw = tf.constant([-1e6, -30.0, 0.0, 30.0, 1e6])
    mode, width = truncated_normal.mode_and_width(raw[:, tf.newaxis], raw)
    assert ((mode.numpy() >= 0.0) & (mode.numpy() <= 1.0)).all()
    assert ((width.numpy() >= 3e-4) & (width.numpy() <= 2.0)).all()
    mean, stddev = truncated_normal.moments(mode, width)
    assert ((mean.numpy() >= 0.0) & (mean.numpy() <= 1.0)).all()
    assert (stddev.numpy() > 1e-4).all()
