"""The fast engine's formulae against lenstronomy, component by component."""

import numpy as np
import pytest
import tensorflow as tf
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel

from dlens_tf.simulation import halo_poles, kernels
from dlens_tf.simulation.substructure import Line, PointMasses

AXIS = np.linspace(-2.0, 2.0, 41)
X, Y = (grid.ravel() for grid in np.meshgrid(AXIS + 0.013, AXIS - 0.007))


def tensors():
    return tf.constant(X, tf.float32), tf.constant(Y, tf.float32)


def scalars(**values):
    return {name: tf.constant(value, tf.float32) for name, value in values.items()}


@pytest.mark.parametrize("gamma", [1.6, 2.0, 2.4])
@pytest.mark.parametrize(("e1", "e2"), [(0.0, 0.0), (0.1, -0.05), (-0.3, 0.3)])
def test_elliptical_power_law(gamma, e1, e2):
    size, angle = np.hypot(e1, e2), 0.5 * np.arctan2(e2, e1)
    deflection = kernels.elliptical_power_law(
        *tensors(),
        terms=24,
        **scalars(
            theta_E=1.3,
            slope=gamma - 1.0,
            axis_ratio=(1.0 - size) / (1.0 + size),
            cos=np.cos(angle),
            sin=np.sin(angle),
            center_x=0.05,
            center_y=-0.02,
        ),
    )
    kwargs = {"theta_E": 1.3, "gamma": gamma, "e1": e1, "e2": e2}
    kwargs |= {"center_x": 0.05, "center_y": -0.02}
    expected = LensModel(["EPL"]).alpha(X, Y, [kwargs])
    np.testing.assert_allclose(np.stack(deflection), expected, atol=4e-6)


def test_isothermal_lens_is_the_sie():
    size, angle = np.hypot(0.2, 0.1), 0.5 * np.arctan2(0.1, 0.2)
    deflection = kernels.elliptical_power_law(
        *tensors(),
        terms=20,
        slope=kernels.ISOTHERMAL,
        **scalars(
            theta_E=1.1,
            axis_ratio=(1.0 - size) / (1.0 + size),
            cos=np.cos(angle),
            sin=np.sin(angle),
            center_x=0.0,
            center_y=0.0,
        ),
    )
    expected = LensModel(["SIE"]).alpha(X, Y, [{"theta_E": 1.1, "e1": 0.2, "e2": 0.1}])
    np.testing.assert_allclose(np.stack(deflection), expected, atol=4e-6)


def test_shear_and_sheet():
    deflection = kernels.shear(*tensors(), **scalars(gamma1=0.03, gamma2=-0.05))
    deflection += kernels.convergence_sheet(
        *tensors(), **scalars(kappa=-0.02, center_x=0.1, center_y=-0.1)
    )
    expected = LensModel(["SHEAR", "CONVERGENCE"]).alpha(
        X, Y, [{"gamma1": 0.03, "gamma2": -0.05}, {"kappa": -0.02, "ra_0": 0.1, "dec_0": -0.1}]
    )
    np.testing.assert_allclose(np.stack(deflection), expected, atol=1e-6)


@pytest.mark.parametrize("number", [2, 3, 7, 100])
@pytest.mark.parametrize("half_length", [0.03, 3.0])
def test_line_is_the_sum_over_its_masses(number, half_length):
    line = Line(number, half_length, 0.7, 0.02, (0.1, 0.05))
    deflection = kernels.line(
        *tensors(),
        number=number,
        **scalars(
            middle_x=0.1,
            middle_y=0.05,
            cos=np.cos(0.7),
            sin=np.sin(0.7),
            half_length=half_length,
            theta_E_squared=0.02**2,
        ),
    )
    dx, dy = X[:, np.newaxis] - line.x, Y[:, np.newaxis] - line.y
    expected = 0.02**2 * np.stack([dx, dy]) / (dx**2 + dy**2)
    np.testing.assert_allclose(np.stack(deflection), expected.sum(axis=-1), rtol=1e-4, atol=2e-6)


def test_a_pixel_on_a_mass_is_finite():
    deflection = kernels.line(
        tf.zeros(1),
        tf.zeros(1),
        number=3,
        **scalars(
            middle_x=0.0, middle_y=0.0, cos=1.0, sin=0.0, half_length=1.0, theta_E_squared=0.1
        ),
    )
    np.testing.assert_allclose(np.stack(deflection), 0.0, atol=1e-6)


def test_entries_are_summed_in_steps_and_the_rest_is_left_out():
    rng = np.random.default_rng(3)
    masses = PointMasses(*rng.uniform(-2.0, 2.0, (2, 20)), rng.uniform(0.0, 0.1, 20))
    entries = np.zeros((64, halo_poles.ENTRY_SIZE), np.float32)
    entries[:20] = halo_poles.point_entries(masses)
    entries[24:] = np.nan  # never reached: 20 masses take 3 steps of 8
    entries[20:24, -1] = 1.0
    deflection = kernels.entries_sum(*tensors(), tf.constant(entries), tf.constant(3))
    dx, dy = X[:, np.newaxis] - masses.x, Y[:, np.newaxis] - masses.y
    expected = (masses.theta_E**2 * np.stack([dx, dy]) / (dx**2 + dy**2)).sum(axis=-1)
    np.testing.assert_allclose(np.stack(deflection), expected, rtol=1e-3, atol=3e-6)


@pytest.mark.parametrize("n_sersic", [0.7, 1.0, 4.0])
def test_sersic(n_sersic):
    e1, e2, R_sersic = -0.1, 0.2, 0.3
    norm = np.sqrt(1.0 - e1**2 - e2**2) * R_sersic
    # A position at the very centre, where lenstronomy keeps the brightness constant, too.
    x, y = np.append(X, 0.2), np.append(Y, -0.1)
    brightness = kernels.sersic(
        tf.constant(x, tf.float32),
        tf.constant(y, tf.float32),
        **scalars(
            center_x=0.2,
            center_y=-0.1,
            xx=(1.0 - e1) / norm,
            xy=-e2 / norm,
            yy=(1.0 + e1) / norm,
            b_n=1.9992 * n_sersic - 0.3271,
            inverse_n=1.0 / n_sersic,
            floor=(1e-4 / R_sersic) ** 2,
        ),
    )
    kwargs = {"amp": 1.0, "R_sersic": R_sersic, "n_sersic": n_sersic, "e1": e1, "e2": e2}
    kwargs |= {"center_x": 0.2, "center_y": -0.1}
    expected = LightModel(["SERSIC_ELLIPSE"]).surface_brightness(x, y, [kwargs])
    np.testing.assert_allclose(brightness, expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("side", [9, 12])
def test_picture(side):
    pixels = np.zeros((side, side))
    pixels[1:-1, 1:-1] = np.random.default_rng(4).uniform(size=(side - 2, side - 2))
    scale, angle = 0.31, 0.6
    brightness = kernels.picture(
        *tensors(),
        tf.constant(pixels, tf.float32),
        **scalars(
            center_x=0.2, center_y=-0.1, cos=np.cos(angle) / scale, sin=np.sin(angle) / scale
        ),
    )
    kwargs = {"image": pixels, "amp": 1.0, "center_x": 0.2, "center_y": -0.1}
    kwargs |= {"phi_G": angle, "scale": scale}
    expected = LightModel(["INTERPOL"]).surface_brightness(X, Y, [kwargs])
    np.testing.assert_allclose(brightness, expected, atol=2e-5)
    assert np.count_nonzero(expected == 0.0) > 100  # positions beyond the picture, too
