import numpy as np
import pytest

from dlens_tf.evaluation.summaries import NAMES, summarise


def gaussian(x0=0.0, y0=0.0, sx=0.2, sy=0.2, size=64):
    """An elliptical Gaussian of peak 1 with centre and widths in half sides of the image."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, size)] * 2)
    return np.exp(-0.5 * ((x - x0) / sx) ** 2 - 0.5 * ((y - y0) / sy) ** 2)


def statistics(image):
    return dict(zip(NAMES, summarise(image[np.newaxis, :, :, np.newaxis])[0], strict=True))


def test_gaussian_has_its_closed_form_moments():
    result = statistics(gaussian(0.1, -0.05, 0.15, 0.1))
    pixel = 2.0 / 63.0
    assert result["flux"] == pytest.approx(2 * np.pi * 0.15 * 0.1 / pixel**2, rel=1e-3)
    assert result["peak"] == pytest.approx(1.0, abs=0.03)
    assert result["centroid_x"] == pytest.approx(0.1, abs=1e-3)
    assert result["centroid_y"] == pytest.approx(-0.05, abs=1e-3)
    assert result["size"] == pytest.approx(np.hypot(0.15, 0.1), rel=0.01)
    expected = (0.15**2 - 0.1**2) / (0.15**2 + 0.1**2)
    assert result["ellipticity_1"] == pytest.approx(expected, abs=0.01)
    assert result["ellipticity_2"] == pytest.approx(0.0, abs=1e-4)


def test_background_and_its_noise_are_measured():
    rng = np.random.default_rng(0)
    result = statistics(5.0 + 0.1 * rng.standard_normal((64, 64)) + 30.0 * gaussian())
    assert result["background"] == pytest.approx(5.0, abs=0.01)
    assert result["background_rms"] == pytest.approx(0.1, rel=0.05)
    assert np.sinh(result["log_peak_to_noise"]) == pytest.approx(300.0, rel=0.08)


def test_quarter_turn_flips_the_signs_of_m2_and_keeps_the_rest():
    image = gaussian(0.0, 0.0, 0.3, 0.15)
    before, after = statistics(image), statistics(np.rot90(image))
    for name in ("ellipticity_1", "multipole_2_cos"):
        assert before[name] > 0.1
        assert after[name] == pytest.approx(-before[name], rel=1e-9)
    for name in ("size", "flux", "multipole_2", "multipole_4", "multipole_4_cos", "roughness"):
        assert after[name] == pytest.approx(before[name], rel=1e-9)


def test_asymmetry_vanishes_under_the_half_turn_only():
    assert statistics(gaussian())["asymmetry"] == pytest.approx(0.0, abs=1e-12)
    assert statistics(gaussian(0.3))["asymmetry"] > 0.5


def test_annuli_share_the_light_of_a_ring():
    x, y = np.meshgrid(*[np.linspace(-1, 1, 64)] * 2)
    ring = np.exp(-0.5 * ((np.hypot(x, y) - 0.42) / 0.02) ** 2)
    result = statistics(ring)
    shares = [result[f"annulus_{i}"] for i in range(6)]
    assert np.argmax(shares) == 2 and sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize("image", [np.zeros((32, 32)), np.full((32, 32), 3.0)])
def test_featureless_images_are_finite(image):
    assert np.isfinite(list(statistics(image).values())).all()


def test_batch_and_channels_are_independent():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 20, 24, 2)).astype(np.float32)
    result = summarise(images)
    assert result.shape == (3, 2 * len(NAMES)) and result.dtype == np.float64
    np.testing.assert_allclose(result[1, len(NAMES) :], summarise(images[1:2, :, :, 1:])[0])


def test_shape_error_prints_the_shape():
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        summarise(np.zeros((8, 8)))
