import numpy as np
import pytest

from dlens_tf.inference.pixel_features import NAMES, statistics

RNG = np.random.default_rng(0)


def features(images):
    values = np.asarray(statistics(np.asarray(images, np.float32)))
    return values.reshape(len(images), -1, len(NAMES))


def noise(number=20, side=64, sigma=1.0):
    return sigma * RNG.normal(size=(number, side, side, 1))


def test_noise_is_that_of_second_differences():
    # Σ of the squared coefficients (1, -2, 1)⊗(1, -2, 1) is 36; 0.6745 is a normal's median |x|.
    expected = np.log(0.3 * 6.0 * 0.6745)
    found = features(noise(sigma=0.3))[:, 0]
    np.testing.assert_allclose(found[:, 0], expected, atol=0.15)
    np.testing.assert_allclose(found[:, 1], expected - np.log(2.0), atol=0.3)
    assert abs(found[:, 0].mean() - expected) < 0.03


def test_of_a_large_image_some_pixels_will_do():
    """Every seventh of the border: the same noise, to a few hundredths."""
    found = features(noise(8, side=150, sigma=0.3))[:, 0, 0]
    np.testing.assert_allclose(found, np.log(0.3 * 6.0 * 0.6745), atol=0.1)


def test_smooth_light_is_no_noise():
    axis = np.linspace(-1.0, 1.0, 64)
    light = np.exp(-(axis[:, None] ** 2 + axis**2) / 0.05)[None, ..., None]
    images = noise(sigma=0.01)
    alone, lit = features(images)[:, 0, :2], features(images + light)[:, 0, :2]
    np.testing.assert_allclose(lit, alone, atol=0.02)


def test_correlated_noise_differs_between_scales():
    white = noise()
    smooth = sum(np.roll(white, (i, j), (1, 2)) for i in (0, 1) for j in (0, 1)) / 2.0
    ratio = [features(images)[:, 0, 1] - features(images)[:, 0, 0] for images in (white, smooth)]
    assert (ratio[1] > ratio[0] + 0.5).all()


def test_a_flat_top_is_the_smallest_step():
    images = 10.0 + noise()
    cut = np.minimum(images, 11.0)
    found, flat = features(images)[:, 0, 2], features(cut)[:, 0, 2]
    np.testing.assert_allclose(flat, np.log(1e-3), atol=1e-3)
    for image, value in zip(images, found, strict=True):
        ordered = np.sort(image.ravel())[::-1]
        step = 1.0 - ordered[round(0.005 * 64 * 64) - 1] / ordered[0]
        assert value == pytest.approx(np.log(step + 1e-3), abs=1e-4)


def test_channels_follow_each_other_and_any_image_has_numbers():
    images = np.concatenate([noise(3), noise(3, sigma=5.0)], axis=-1)
    both = features(images)
    for channel in (0, 1):
        alone = features(images[..., [channel]])[:, 0]
        np.testing.assert_allclose(both[:, channel], alone, rtol=1e-5)
    for image in (np.zeros((1, 64, 64, 1)), np.full((1, 9, 12, 1), -3.0)):
        assert np.isfinite(features(image)).all()
