"""Splines against the published formulae, one value at a time, and shapes that they must reach."""

import numpy as np
import pytest
import tensorflow as tf

from dlens_tf.models.densities import SplineDensity
from dlens_tf.models.densities.spline import make_spline, spline_cdf_log_prob, spline_icdf


def published(u, widths, heights, derivatives):
    """x and dx/du by equations 4 and 5 of Durkan et al. 2019, for one spline on [0, 1]."""
    knots_u = np.concatenate([[0.0], np.cumsum(widths)])
    knots_x = np.concatenate([[0.0], np.cumsum(heights)])
    k = min(int(np.searchsorted(knots_u, u, side="right")) - 1, len(widths) - 1)
    slope, xi = heights[k] / widths[k], (u - knots_u[k]) / widths[k]
    d0, d1 = derivatives[k], derivatives[k + 1]
    below = slope + (d1 + d0 - 2 * slope) * xi * (1 - xi)
    x = knots_x[k] + heights[k] * (slope * xi**2 + d0 * xi * (1 - xi)) / below
    dx = slope**2 * (d1 * xi**2 + 2 * slope * xi * (1 - xi) + d0 * (1 - xi) ** 2) / below**2
    return x, dx


def test_equals_the_published_formulae():
    raw = np.random.default_rng(0).normal(size=(1, 3 * 5 + 1))
    spline = make_spline(tf.constant(raw))
    widths, heights = (np.diff(knots.numpy()[0]) for knots in (spline.u, spline.x))
    slopes = heights / widths
    left, right = np.append(slopes[0], slopes), np.append(slopes, slopes[-1])
    # The density at a knot is the mean of its neighbours' times a factor of its own.
    derivatives = np.exp(3 * np.tanh(raw[0, 10:] / 3)) / (0.5 / left + 0.5 / right)
    u = np.linspace(0.0, 1.0, 101)
    expected = np.array([published(v, widths, heights, derivatives) for v in u])
    x = spline_icdf(spline, tf.constant(u)).numpy()
    np.testing.assert_allclose(x, expected[:, 0], atol=1e-12)
    cdf, log_prob = spline_cdf_log_prob(spline, tf.constant(x))
    np.testing.assert_allclose(cdf, u, atol=1e-12)
    np.testing.assert_allclose(log_prob, -np.log(expected[:, 1]), atol=1e-9)


def test_zeros_tell_the_uniform_law():
    density = SplineDensity(2, bins=7)
    numbers = tf.zeros((1, density.num_numbers))
    x = tf.random.stateless_uniform((20, 1, 2), (0, 1))
    np.testing.assert_allclose(density.cdf(numbers, x), x, atol=1e-6)
    np.testing.assert_allclose(density.log_prob(numbers, x), 0.0, atol=1e-5)
    mean, stddev = density.moments(numbers)
    np.testing.assert_allclose(mean, 0.5, atol=1e-6)
    np.testing.assert_allclose(stddev, 12**-0.5, rtol=1e-5)


def narrow(place: float, width: float, bins: int = 24) -> np.ndarray:
    """Numbers of a spline that puts all but 1/1000 evenly within place ± width / 2."""
    heights = np.full(bins, width / (bins - 2))
    heights[0], heights[-1] = place - width / 2, 1.0 - place - width / 2
    widths = np.full(bins, 0.999 / (bins - 2))
    widths[[0, -1]] = 5e-4
    # The least size of a bin, 1e-4 in u and 1e-5 in x, comes on top of its share of the rest.
    return np.concatenate([np.log(widths - 1e-4), np.log(heights - 1e-5), np.zeros(bins + 1)])


@pytest.mark.parametrize("width", [1e-2, 1e-3])
@pytest.mark.parametrize("place", [0.013, 0.5, 0.987])
def test_narrow_laws_in_float32(place, width):
    density = SplineDensity(1)
    numbers = tf.constant(narrow(place, width)[np.newaxis], tf.float32)
    quantiles = density.quantiles(numbers, [0.025, 0.5, 0.975]).numpy()[0, 0]
    np.testing.assert_allclose(
        quantiles, place + width * np.array([-0.475, 0, 0.475]), atol=0.08 * width
    )
    u = tf.reshape(tf.linspace(0.01, 0.99, 99), (-1, 1, 1))
    x = density.icdf(numbers, u)
    np.testing.assert_allclose(density.cdf(numbers, x), u, atol=1e-3)
    inside = density.log_prob(numbers, tf.constant(np.full((1, 1, 1), place, np.float32)))
    np.testing.assert_allclose(inside, -np.log(width), atol=0.1)
    # A truth that was held for impossible costs much, but not everything.
    outside = density.log_prob(numbers, tf.constant([[[0.25]], [[0.0]], [[1.0]]]))
    assert (outside.numpy() > -15.0).all()
