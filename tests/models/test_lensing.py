import numpy as np
import pytest
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from scipy import integrate

from dlens_tf.models import lensing


@pytest.fixture
def positions():
    rng = np.random.default_rng(0)
    return rng.uniform(-2.0, 2.0, (2, 1, 200)).astype(np.float32)


def test_deflections_are_lenstronomys(positions):
    x, y = positions
    lens = {"theta_E": 1.3, "e1": 0.15, "e2": -0.2, "center_x": 0.05, "center_y": -0.1}
    ours = lensing.isothermal(x, y, **lens)
    theirs = LensModel(["SIE"]).alpha(x[0], y[0], [lens])
    np.testing.assert_allclose(np.array(ours)[:, 0], theirs, atol=2e-5)

    ours = lensing.shear(x, y, gamma1=0.04, gamma2=-0.02)
    theirs = LensModel(["SHEAR"]).alpha(x[0], y[0], [{"gamma1": 0.04, "gamma2": -0.02}])
    np.testing.assert_allclose(np.array(ours)[:, 0], theirs, atol=1e-6)

    point = {"theta_E": 0.3, "center_x": 0.05, "center_y": -0.1}
    far = np.hypot(x[0] - 0.05, y[0] + 0.1) > 0.3  # the softening is felt inside
    ours = np.array(lensing.point_mass(x, y, **point))[:, 0, far]
    theirs = LensModel(["POINT_MASS"]).alpha(x[0, far], y[0, far], [point])
    np.testing.assert_allclose(ours, theirs, atol=5e-4)


@pytest.mark.parametrize("size", [0.0, 1e-4, 1e-2])
def test_nearly_round_lenses_have_no_rounding_error(positions, size):
    x, y = positions
    round_lens = {"theta_E": 1.0, "e1": size, "e2": -size, "center_x": 0.0, "center_y": 0.0}
    ours = np.array(lensing.isothermal(x, y, **round_lens))[:, 0]
    theirs = LensModel(["SIE"]).alpha(x[0], y[0], [round_lens])
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


SOURCE = {
    "source_x": 0.1,
    "source_y": -0.05,
    "source_R_sersic": 0.3,
    "source_n_sersic": 1.4,
    "source_e1": 0.1,
    "source_e2": -0.15,
}


def test_source_is_lenstronomys(positions):
    x, y = positions
    source = {name: np.float32([[value]]) for name, value in SOURCE.items()}
    brightness = np.array(lensing.sersic(x, y, **source)[0])[0]
    theirs = LightModel(["SERSIC_ELLIPSE"]).surface_brightness(
        x[0],
        y[0],
        [
            {
                "amp": 1.0,
                "R_sersic": 0.3,
                "n_sersic": 1.4,
                "e1": 0.1,
                "e2": -0.15,
                "center_x": 0.1,
                "center_y": -0.05,
            }
        ],
    )
    np.testing.assert_allclose(brightness, theirs, rtol=2e-4)


def test_gradient_is_that_of_the_brightness(positions):
    x, y = positions.astype(np.float64)
    source = {name: np.float64([[value]]) for name, value in SOURCE.items()}
    _, by_x, by_y = (np.array(part) for part in lensing.sersic(x, y, **source))
    step = 1e-5
    rise = lensing.sersic(x + step, y, **source)[0] - lensing.sersic(x - step, y, **source)[0]
    np.testing.assert_allclose(by_x, np.array(rise) / (2 * step), rtol=1e-4, atol=1e-6)
    rise = lensing.sersic(x, y + step, **source)[0] - lensing.sersic(x, y - step, **source)[0]
    np.testing.assert_allclose(by_y, np.array(rise) / (2 * step), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n_sersic", [0.5, 1.0, 1.7, 4.0])
def test_flux_is_the_integral_of_the_brightness(n_sersic):
    source = {**dict.fromkeys(SOURCE, 0.0), "source_R_sersic": 0.4, "source_n_sersic": n_sersic}
    source = {name: np.float64([[value]]) for name, value in source.items()}

    def ring(log_radius):
        radius = np.exp(log_radius)
        brightness = lensing.sersic(np.float64([[radius]]), np.float64([[0.0]]), **source)[0]
        return 2.0 * np.pi * radius**2 * float(brightness[0, 0])

    flux, _ = integrate.quad(ring, np.log(1e-3), np.log(60.0), limit=200)
    log_flux = lensing.sersic_log_flux(source["source_R_sersic"], source["source_n_sersic"])
    assert float(log_flux[0, 0]) == pytest.approx(np.log(flux), abs=1e-3)
