"""Polar images against scipy's interpolation, and what turns and rings look like in them."""

import keras
import numpy as np
import pytest
from scipy import ndimage

from dlens_tf.models import PolarResample


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 33, 33, 2), {"radii": 7, "angles": 12}),
        ((2, 20, 30, 1), {"radii": 5, "angles": 8, "min_radius": 0.3, "max_radius": 0.8}),
        ((1, 16, 16, 3), {"radii": 9, "angles": 16, "max_radius": 1.5, "overlap": 3}),
        ((1, 1, 1, 1), {"radii": 2, "angles": 4}),
    ],
)
def test_samples_are_scipys(shape, options):
    layer, images = PolarResample(**options), _noise(*shape)
    polar = layer(images).numpy()
    assert polar.shape == layer.compute_output_shape(shape)
    positions = layer.positions(*shape[1:3])
    for image, samples in zip(images, polar, strict=True):
        for channel in range(shape[-1]):
            expected = ndimage.map_coordinates(
                image[..., channel], positions, order=1, mode="nearest"
            )
            np.testing.assert_allclose(samples[..., channel], expected, atol=1e-5)


def test_rings_and_rays_are_where_they_are_said_to_be():
    """An image of x and one of y, both in half sides, give back the coordinates."""
    grid = np.linspace(-1.0, 1.0, 41)
    x, y = np.meshgrid(grid, grid)
    image = np.float32(np.stack([x, y], axis=-1))[np.newaxis]
    polar = PolarResample(4, 8, min_radius=0.2, max_radius=1.0)(image).numpy()[0]
    radius = np.array([0.3, 0.5, 0.7, 0.9])[:, np.newaxis]
    angle = 2.0 * np.pi * np.arange(8) / 8
    np.testing.assert_allclose(polar[..., 0], radius * np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(polar[..., 1], radius * np.sin(angle), atol=1e-6)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turned_image_is_shifted(quarters):
    layer, images = PolarResample(8, 16), _noise(2, 24, 24, 2)
    # From +x towards +y, the first axis: against numpy's sense.
    turned = np.rot90(images, -quarters, axes=(1, 2))
    expected = np.roll(layer(images), 4 * quarters, axis=2)
    np.testing.assert_allclose(layer(turned), expected, atol=1e-5)


def test_ring_is_a_row():
    side = np.arange(64) - 31.5
    radius = np.hypot(side[:, np.newaxis], side) / 31.5
    ring = np.float32(np.exp(-0.5 * ((radius - 0.55) / 0.04) ** 2))[np.newaxis, ..., np.newaxis]
    polar = PolarResample(10, 32)(ring).numpy()[0, ..., 0]
    assert polar.mean(axis=1).argmax() == 5  # the row from 0.5 to 0.6
    assert polar[5].std() < 0.03 * polar[5].mean()
    assert polar[[0, 1, 2, 3, 7, 8, 9]].max() < 0.1 * polar[5].min()


def test_overlap_goes_round():
    images = _noise(1, 16, 16, 1)
    plain, wide = PolarResample(4, 8)(images), PolarResample(4, 8, overlap=2)(images)
    expected = np.concatenate([plain[:, :, -2:], plain, plain[:, :, :2]], axis=2)
    np.testing.assert_array_equal(wide, expected)


def test_serialises(assert_serialises):
    picture = keras.Input((20, 18, 2))
    layer = PolarResample(5, 12, min_radius=0.1, max_radius=0.9, overlap=2)
    assert_serialises(keras.Model(picture, layer(picture)), _noise(3, 20, 18, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_radius": 1.0}, "min_radius 1.0 must be at least 0 and below max_radius 1.0"),
        ({"min_radius": -0.1}, "min_radius -0.1"),
        ({"angles": 8, "overlap": 9}, "overlap 9 must lie between 0 and angles 8"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        PolarResample(**options)
