"""Images against two set-ups of the published recipe: lenstronomy by hand, and the formulae."""

import dataclasses
import warnings

import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from scipy import ndimage
from scipy.special import gamma as gamma_function

from dlens_tf.simulation import lenstronomy_engine, recipes
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.simulator import simulate
from dlens_tf.simulation.substructure import PointMasses, vortex_points

THETA_E = 1.28149060
# pixels, arcsec per pixel, PSF FWHM, PSF cut in sigma, zero point
PIXELS = {
    "model_i_legacy": (150, 0.05, 0.087, 3.0, None),
    "model_ii_legacy": (64, 0.101, 0.16, 5.0, 24.0),
    "model_iii_legacy": (64, 0.08, 0.08, 5.0, 25.96),
}
SOURCE = {"R_sersic": 0.25, "n_sersic": 1.0, "e1": -0.1, "e2": 0.1}
LEGACY = list(PIXELS)


@pytest.fixture(scope="module", params=LEGACY)
def name(request):
    return request.param


@pytest.fixture(scope="module", params=recipes.CLASSES)
def lens(name, request):
    return simulate(get_recipe(name), request.param, seed=3, index=11)


def peak_error(image, reference):
    return np.max(np.abs(image - reference)) / np.max(reference)


def lenstronomy_lens(lens):
    masses = zip(lens.points.theta_E, lens.points.x, lens.points.y, strict=True)
    return ["SIE", "SHEAR"] + ["POINT_MASS"] * len(lens.points), [
        {"theta_E": THETA_E, "e1": 0.1, "e2": 0.0, "center_x": 0.0, "center_y": 0.0},
        {"gamma1": 0.05, "gamma2": 0.0},
        *({"theta_E": t, "center_x": x, "center_y": y} for t, x, y in masses),
    ]


def source_position(lens):
    return {"center_x": lens.parameters["source_x"], "center_y": lens.parameters["source_y"]}


def image_model_i(lens):
    """`simple_sim` of the published script: PixelGrid, PSF and ImageModel."""
    from lenstronomy.Data.pixel_grid import PixelGrid
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel

    corner = -0.05 * (150 - 1) / 2
    grid = PixelGrid(150, 150, np.diag([0.05, 0.05]), corner, corner)
    psf = PSF(psf_type="GAUSSIAN", fwhm=0.087, pixel_size=0.05, truncation=3)
    models, kwargs_lens = lenstronomy_lens(lens)
    image_model = ImageModel(
        grid, psf, LensModel(models), LightModel(["SERSIC_ELLIPSE"]),
        kwargs_numerics={"supersampling_factor": 1},
    )  # fmt: skip
    return image_model.image(kwargs_lens, [{"amp": 20.0, **SOURCE, **source_position(lens)}])


def image_sim_api(lens, name):
    """Models II and III of the published script: SimAPI with z_source_convention 2.5."""
    from lenstronomy.SimulationAPI.sim_api import SimAPI

    num_pix, scale, fwhm, _, zero_point = PIXELS[name]
    models, kwargs_lens = lenstronomy_lens(lens)
    band = {
        "pixel_scale": scale, "seeing": fwhm, "psf_type": "GAUSSIAN",
        "magnitude_zero_point": zero_point, "sky_brightness": 22.0, "exposure_time": 1.0,
        "num_exposures": 1, "read_noise": 1.0, "ccd_gain": 1.0,
    }  # fmt: skip
    model = {
        "lens_model_list": models, "lens_redshift_list": [0.5] * len(models),
        "source_light_model_list": ["SERSIC_ELLIPSE"], "source_redshift_list": [1.0],
        "cosmo": FlatLambdaCDM(H0=69.7, Om0=0.2814, Ob0=0.0464),
        "z_source_convention": 2.5, "z_source": 1.0,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Cosmology is provided")
        sim = SimAPI(num_pix, band, model)
    source = {"magnitude": 20.0, **SOURCE, **source_position(lens)}
    _, amplitudes, _ = sim.magnitude2amplitude(kwargs_source_mag=[source])
    image_model = sim.image_model_class({"supersampling_factor": 1})
    return image_model.image(kwargs_lens, amplitudes)


def test_equals_a_direct_lenstronomy_setup(lens, name):
    reference = image_model_i(lens) if name == "model_i_legacy" else image_sim_api(lens, name)
    assert peak_error(lens.model, reference) < 1e-7


def sie_deflection(x, y, theta_E, e1):
    """Kormann et al. 1994, with the product-averaged Einstein radius; axes along x and y."""
    q = (1 - e1) / (1 + e1)
    psi = np.sqrt(q**2 * x**2 + y**2)
    root = np.sqrt(1 - q**2)
    factor = theta_E * np.sqrt(q) / root
    return factor * np.arctan(root * x / psi), factor * np.arctanh(root * y / psi)


def image_by_hand(lens, name):
    """Deflections, Sersic light and Gaussian PSF from their formulae."""
    num_pix, scale, fwhm, cut, zero_point = PIXELS[name]
    axis = (np.arange(num_pix) - (num_pix - 1) / 2) * scale
    x, y = np.meshgrid(axis, axis)
    alpha_x, alpha_y = sie_deflection(x, y, THETA_E, 0.1)
    alpha_x, alpha_y = alpha_x + 0.05 * x, alpha_y - 0.05 * y
    for t, px, py in zip(lens.points.theta_E, lens.points.x, lens.points.y, strict=True):
        square = (x - px) ** 2 + (y - py) ** 2
        alpha_x += t**2 * (x - px) / square
        alpha_y += t**2 * (y - py) / square
    ratio = 1.0 if zero_point is None else convention_ratio()
    beta_x = x - ratio * alpha_x - lens.parameters["source_x"]
    beta_y = y - ratio * alpha_y - lens.parameters["source_y"]

    modulus = np.hypot(0.1, 0.1)
    q, angle = (1 - modulus) / (1 + modulus), np.arctan2(0.1, -0.1) / 2
    major = beta_x * np.cos(angle) + beta_y * np.sin(angle)
    minor = beta_y * np.cos(angle) - beta_x * np.sin(angle)
    radius = np.sqrt(q * major**2 + minor**2 / q)
    b = 1.9992 - 0.3271  # the linear fit of b_n at n = 1
    if zero_point is None:
        amplitude = 20.0
    else:
        flux = 10 ** (-0.4 * (20.0 - zero_point))
        amplitude = flux / (2 * np.pi * 0.25**2 * np.exp(b) * b**-2 * gamma_function(2.0))
    light = amplitude * np.exp(-b * (radius / 0.25 - 1)) * scale**2

    sigma = fwhm / (2 * np.sqrt(2 * np.log(2))) / scale
    reach = int(cut * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    return ndimage.convolve1d(
        ndimage.convolve1d(light, kernel, axis=0, mode="nearest"), kernel, axis=1, mode="nearest"
    )


def convention_ratio():
    """(D_ls / D_s at z_s = 1) / (D_ls / D_s at 2.5), lens at 0.5."""
    cosmology = FlatLambdaCDM(H0=69.7, Om0=0.2814)

    def efficiency(z):  # (D_s - D_l) / D_s of comoving distances in a flat universe
        return 1 - float(cosmology.comoving_distance(0.5) / cosmology.comoving_distance(z))

    return efficiency(1.0) / efficiency(2.5)


def test_convention_ratio_is_the_published_one():
    np.testing.assert_allclose(convention_ratio(), 0.634, atol=5e-4)


def test_equals_the_formulae(lens, name):
    assert peak_error(lens.model, image_by_hand(lens, name)) < 1e-6


@pytest.mark.parametrize("name", ["model_i", "model_ii", "model_iii"])
@pytest.mark.parametrize(("dm_class", "pixel_tolerance"), [("no_sub", 0.01), ("axion", 0.05)])
def test_supersampling_has_converged(name, dm_class, pixel_tolerance):
    """Twice as fine changes the flux by at most 1e-3 and no pixel by more than the tolerance.

    The largest differences are beside beads, where the light is finer than any subpixel.
    """
    recipe = get_recipe(name)
    finer = dataclasses.replace(recipe, supersampling=2 * recipe.supersampling)
    for index in range(3):
        lens = simulate(recipe, dm_class, seed=0, index=index)
        reference = lenstronomy_engine.render(finer, lens.parameters, lens.points)
        np.testing.assert_allclose(lens.model.sum(), reference.sum(), rtol=1e-3)
        assert peak_error(lens.model, reference) < pixel_tolerance


def test_smooth_image_conserves_source_flux_where_nothing_deflects():
    recipe = get_recipe("model_ii")
    parameters = {p.name: p.prior.mean for p in recipe.shared_parameters}
    parameters |= {"theta_E": 1e-9, "source_magnitude": 21.0, "source_R_sersic": 0.2}
    image = lenstronomy_engine.render(recipe, parameters, PointMasses.none())
    flux = 10 ** (-0.4 * (21.0 - recipe.instrument.magnitude_zero_point))
    # The frame of 6.5" cuts a little light off the profile's wings.
    np.testing.assert_allclose(image.sum(), flux, rtol=5e-3)
    np.testing.assert_allclose(image, image[::-1, ::-1], rtol=1e-9)


def test_axes_are_x_right_y_up():
    recipe = get_recipe("model_ii")
    parameters = {p.name: p.prior.mean for p in recipe.shared_parameters}
    parameters |= {"theta_E": 1e-9, "source_x": 1.01, "source_y": -0.505}
    image = lenstronomy_engine.render(recipe, parameters, PointMasses.none())
    row, column = ndimage.center_of_mass(image)
    scale = recipe.instrument.pixel_scale
    np.testing.assert_allclose((column - 31.5) * scale, 1.01, atol=0.02)
    np.testing.assert_allclose((row - 31.5) * scale, -0.505, atol=0.02)


def test_vortex_follows_the_lens_centre():
    """Moving lens and source by whole pixels moves the image."""
    recipe = get_recipe("model_ii")
    scale = recipe.instrument.pixel_scale
    parameters = {p.name: p.prior.mean for p in recipe.shared_parameters}
    parameters |= {"e1": 0.1, "source_x": 0.1, "gamma1": 0.0}
    points = vortex_points(recipe.vortex, -23.5, 0.4, recipe)
    here = lenstronomy_engine.render(recipe, parameters, points)
    moved = {"center_x": 3 * scale, "source_x": 0.1 + 3 * scale}
    there = lenstronomy_engine.render(recipe, parameters | moved, points.shifted(3 * scale, 0.0))
    np.testing.assert_allclose(there[8:-8, 11:-5], here[8:-8, 8:-8], atol=1e-6 * here.max())


@pytest.mark.parametrize(("name", "ratio"), [("model_ii", 1.0), ("model_ii_legacy", None)])
def test_inverse_magnification(name, ratio):
    """An isothermal sphere: 1 - θ/r; a point mass: 1 - (θ/r)^4, deflections times the ratio."""
    recipe = get_recipe(name)
    ratio = ratio or convention_ratio()
    parameters = {p.name: 0.0 for p in recipe.shared_parameters} | {"theta_E": 1.2}
    radius = np.array([[0.3, 0.7], [1.2, 2.0]])
    x, y = radius * np.cos(0.4), radius * np.sin(0.4)
    sphere = lenstronomy_engine.inverse_magnification(recipe, parameters, PointMasses.none(), x, y)
    np.testing.assert_allclose(sphere, 1 - ratio * 1.2 / radius, atol=1e-5)
    point = PointMasses(np.zeros(1), np.zeros(1), np.array([0.5]))
    lone = lenstronomy_engine.inverse_magnification(
        recipe, parameters | {"theta_E": 1e-9}, point, x, y
    )
    np.testing.assert_allclose(lone, 1 - ratio**2 * (0.5 / radius) ** 4, rtol=1e-5)
