"""Images against two set-ups of the published recipe: lenstronomy by hand, and the formulae."""

import dataclasses
import warnings

import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from scipy import ndimage
from scipy.special import gamma as gamma_function

from dlens_tf.errors import UserError
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.lenstronomy_engine import LenstronomyEngine, lens_models, smooth_optics
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.scene import Scene, draw
from dlens_tf.simulation.substructure import Halos, PointMasses

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


@pytest.fixture(scope="module", params=["no_sub", "axion", "cdm"])
def lens(name, request):
    return draw(get_recipe(name), request.param, seed=3, index=11)


@pytest.fixture(scope="module")
def model(lens, name):
    return render(get_recipe(name), lens)


def render(recipe, scene):
    """The image of a scene in the first band, [H, W]."""
    return LenstronomyEngine(recipe).render([scene])[0, ..., 0]


def smooth(parameters):
    return Scene("no_sub", parameters, PointMasses.none(), Halos.none())


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


def test_equals_a_direct_lenstronomy_setup(lens, model, name):
    reference = image_model_i(lens) if name == "model_i_legacy" else image_sim_api(lens, name)
    assert peak_error(model, reference) < 1e-7


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


def test_equals_the_formulae(lens, model, name):
    assert peak_error(model, image_by_hand(lens, name)) < 1e-6


@pytest.mark.parametrize("name", ["model_i", "model_ii", "model_iii"])
@pytest.mark.parametrize(("dm_class", "pixel_tolerance"), [("no_sub", 0.01), ("axion", 0.05)])
def test_supersampling_has_converged(name, dm_class, pixel_tolerance):
    """Twice as fine changes the flux by at most 1e-3 and no pixel by more than the tolerance.

    The largest differences are beside beads, where the light is finer than any subpixel.
    """
    recipe = get_recipe(name)
    finer = dataclasses.replace(recipe, supersampling=2 * recipe.supersampling)
    for index in range(3):
        scene = draw(recipe, dm_class, seed=0, index=index)
        image, reference = render(recipe, scene), render(finer, scene)
        np.testing.assert_allclose(image.sum(), reference.sum(), rtol=1e-3)
        assert peak_error(image, reference) < pixel_tolerance


def test_smooth_image_conserves_source_flux_where_nothing_deflects():
    recipe = get_recipe("model_ii")
    parameters = {p.name: p.prior.mean for p in recipe.shared_parameters}
    parameters |= {"theta_E": 1e-9, "source_magnitude": 21.0, "source_R_sersic": 0.2}
    image = render(recipe, smooth(parameters))
    flux = 10 ** (-0.4 * (21.0 - recipe.instrument.magnitude_zero_point))
    # The frame of 6.5" cuts a little light off the profile's wings.
    np.testing.assert_allclose(image.sum(), flux, rtol=5e-3)
    np.testing.assert_allclose(image, image[::-1, ::-1], rtol=1e-9)


def test_axes_are_x_right_y_up():
    recipe = get_recipe("model_ii")
    parameters = {p.name: p.prior.mean for p in recipe.shared_parameters}
    parameters |= {"theta_E": 1e-9, "source_x": 1.01, "source_y": -0.505}
    image = render(recipe, smooth(parameters))
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
    axion = {"log10_m_axion": -23.5, "phi_vortex": 0.4}
    points = recipe.substructure["axion"].draw(axion, None, recipe.plane)
    here = render(recipe, Scene("axion", parameters, points, Halos.none()))
    moved = parameters | {"center_x": 3 * scale, "source_x": 0.1 + 3 * scale}
    points = points.shifted(3 * scale, 0.0)
    there = render(recipe, Scene("axion", moved, points, Halos.none()))
    np.testing.assert_allclose(there[8:-8, 11:-5], here[8:-8, 8:-8], atol=1e-6 * here.max())


@pytest.mark.parametrize(("name", "ratio"), [("model_ii", 1.0), ("model_ii_legacy", None)])
def test_inverse_magnification(name, ratio):
    """An isothermal sphere: 1 - θ/r; a point mass: 1 - (θ/r)^4, deflections times the ratio."""
    recipe = get_recipe(name)
    ratio = ratio or convention_ratio()
    parameters = {p.name: 0.0 for p in recipe.shared_parameters} | {"theta_E": 1.2}
    radius = np.array([[0.3, 0.7], [1.2, 2.0]])
    x, y = radius * np.cos(0.4), radius * np.sin(0.4)
    engine = LenstronomyEngine(recipe)
    sphere = engine.inverse_magnification(smooth(parameters), x, y)
    np.testing.assert_allclose(sphere, 1 - ratio * 1.2 / radius, atol=1e-5)
    point = PointMasses(np.zeros(1), np.zeros(1), np.array([0.5]))
    scene = Scene("cdm", parameters | {"theta_E": 1e-9}, point, Halos.none())
    lone = engine.inverse_magnification(scene, x, y)
    np.testing.assert_allclose(lone, 1 - ratio**2 * (0.5 / radius) ** 4, rtol=1e-5)


def test_ray_shooting(halo_recipe):
    """An isothermal sphere with shear: β = θ - θ_E θ/|θ| - (γ1 x + γ2 y, γ2 x - γ1 y)."""
    parameters = {p.name: 0.0 for p in get_recipe("model_ii").shared_parameters}
    parameters |= {"theta_E": 1.2, "gamma1": 0.05, "gamma2": -0.02}
    x, y = np.array([[0.5, -1.0, 2.0]]), np.array([[0.3, 0.8, -1.1]])
    radius = np.hypot(x, y)
    beta_x, beta_y = LenstronomyEngine(get_recipe("model_ii")).ray_shooting(
        smooth(parameters), x, y
    )
    np.testing.assert_allclose(beta_x, x - 1.2 * x / radius - (0.05 * x - 0.02 * y), atol=1e-5)
    np.testing.assert_allclose(beta_y, y - 1.2 * y / radius - (-0.02 * x - 0.05 * y), atol=1e-5)


def halos_by_hand(recipe, scene):
    """lenstronomy's models and arguments of a scene with halos, written out."""
    values, halos = scene.parameters, scene.halos
    center = {"center_x": values["center_x"], "center_y": values["center_y"]}
    shape = {name: values[name] for name in ("theta_E", "e1", "e2")}
    kwargs = [
        {**shape, "gamma": values["gamma_epl"], **center},
        {"gamma1": values["gamma1"], "gamma2": values["gamma2"]},
    ]
    models = ["EPL", "SHEAR"]
    for i in range(len(halos)):
        models.append("TNFWC" if halos.r_core[i] else "TNFW")
        kwargs.append(
            {
                "Rs": halos.Rs[i], "alpha_Rs": halos.alpha_Rs[i], "r_trunc": halos.r_trunc[i],
                "center_x": halos.x[i], "center_y": halos.y[i],
            }
        )  # fmt: skip
        if halos.r_core[i]:
            kwargs[-1]["r_core"] = halos.r_core[i]
    models.append("CONVERGENCE")
    kwargs.append({"kappa": halos.kappa_sheet, "ra_0": 0.0, "dec_0": 0.0})
    return models, kwargs


@pytest.mark.parametrize("dm_class", ["cdm", "sidm"])
def test_power_law_with_halos_equals_a_direct_lenstronomy_setup(halo_recipe, dm_class):
    from lenstronomy.Data.pixel_grid import PixelGrid
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel

    scene = draw(halo_recipe, dm_class, seed=1, index=2)
    # A sheet lenses about its own centre, which is the lens's.
    parameters = scene.parameters | {"center_x": 0.0, "center_y": 0.0}
    scene = dataclasses.replace(scene, parameters=parameters)
    models, kwargs = halos_by_hand(halo_recipe, scene)
    assert lens_models(halo_recipe, scene) == models
    band = halo_recipe.instrument
    corner = -band.pixel_scale * (64 - 1) / 2
    image_model = ImageModel(
        PixelGrid(64, 64, np.diag([band.pixel_scale] * 2), corner, corner),
        PSF(psf_type="GAUSSIAN", fwhm=band.psf_fwhm, pixel_size=band.pixel_scale, truncation=5),
        LensModel(models),
        LightModel(["SERSIC_ELLIPSE"]),
        kwargs_numerics={"supersampling_factor": 4, "supersampling_convolution": True},
    )
    source = {
        "R_sersic": parameters["source_R_sersic"], "n_sersic": parameters["source_n_sersic"],
        "e1": parameters["source_e1"], "e2": parameters["source_e2"],
        "center_x": parameters["source_x"], "center_y": parameters["source_y"],
    }  # fmt: skip
    light = LightModel(["SERSIC_ELLIPSE"])
    flux = 10 ** (-0.4 * (parameters["source_magnitude"] - band.magnitude_zero_point))
    amplitude = flux / light.total_flux([{"amp": 1.0, **source}], norm=True)[0]
    reference = image_model.image(kwargs, [{"amp": amplitude, **source}])
    assert peak_error(render(halo_recipe, scene), reference) < 1e-7
    # The halos are seen: without them it is another image.
    assert peak_error(render(halo_recipe, scene.without_substructure()), reference) > 1e-2


def test_halos_deflect_as_their_masses(halo_recipe):
    """Far outside, a truncated halo is a point mass of its total mass (Baltz et al. 2009, A4)."""
    plane = halo_recipe.plane
    Rs, r_trunc, mass = 0.05, 0.15, 1e10
    tau2 = (r_trunc / Rs) ** 2
    total = (
        tau2
        / (tau2 + 1) ** 2
        * ((tau2 - 1) * np.log(r_trunc / Rs) + r_trunc / Rs * np.pi - tau2 - 1)
    )
    # α(Rs) of an untruncated NFW: 4 ρ Rs³ (1 - ln 2) / Rs in units of mass / (π Σ_crit).
    alpha = mass / total / (np.pi * plane.sigma_crit) * (1 - np.log(2)) / Rs
    halos = Halos(*(np.array([v]) for v in (0.0, 0.0, mass, Rs, alpha, r_trunc, 0.0)))
    parameters = {p.name: 0.0 for p in halo_recipe.shared_parameters}
    parameters |= {"theta_E": 1e-9, "gamma_epl": 2.0}
    scene = Scene("cdm", parameters, PointMasses.none(), halos)
    radius = 200.0
    beta, _ = LenstronomyEngine(halo_recipe).ray_shooting(scene, np.array([radius]), np.zeros(1))
    np.testing.assert_allclose(radius - beta, plane.einstein_radius(mass) ** 2 / radius, rtol=2e-3)


def test_sheet_is_a_uniform_convergence_about_the_lens(halo_recipe):
    scene = draw(halo_recipe, "cdm", seed=1, index=2)
    bare = dataclasses.replace(scene.halos, kappa_sheet=0.0)
    engine = LenstronomyEngine(halo_recipe)
    x, y = np.array([0.4, -1.3]), np.array([1.0, 0.2])
    with_sheet = engine.ray_shooting(scene, x, y)
    without = engine.ray_shooting(dataclasses.replace(scene, halos=bare), x, y)
    center = scene.parameters["center_x"], scene.parameters["center_y"]
    for position, c, got, bare in zip((x, y), center, with_sheet, without, strict=True):
        np.testing.assert_allclose(got - bare, 0.01 * (position - c), atol=1e-12)


def test_colours_equal_a_direct_lenstronomy_setup(colour_recipe):
    """A real galaxy behind a luminous lens in three bands."""
    from lenstronomy.Data.pixel_grid import PixelGrid
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel

    scene = draw(colour_recipe, "no_sub", seed=1, index=2)
    values = scene.parameters
    picture = GalaxyCatalogue.open(None).image(scene.galaxy)
    scale = picture.scale * values["source_scale"]
    center = {"center_x": values["center_x"], "center_y": values["center_y"]}
    shape = {"e1": values["e1"], "e2": values["e2"], **center}
    kwargs_lens = [
        {"theta_E": values["theta_E"], "gamma": values["gamma_epl"], **shape},
        {"gamma1": values["gamma1"], "gamma2": values["gamma2"]},
    ]
    source = {
        "image": picture.pixels.astype(float) / scale**2, "scale": scale,
        "phi_G": values["source_phi"],
        "center_x": values["source_x"], "center_y": values["source_y"],
    }  # fmt: skip
    light = {"R_sersic": values["lens_R_sersic"], "n_sersic": values["lens_n_sersic"], **shape}
    unit = LightModel(["SERSIC_ELLIPSE"]).total_flux([{"amp": 1.0, **light}], norm=True)[0]
    image = LenstronomyEngine(colour_recipe).render([scene])[0]
    assert image.shape == (32, 32, 3)
    for i, (band, source_color, lens_color) in enumerate(
        zip(colour_recipe.bands, (0.0, 0.4, 0.9), (0.0, 0.7, 1.1), strict=True)
    ):
        corner = -band.pixel_scale * 31 / 2
        image_model = ImageModel(
            PixelGrid(32, 32, np.diag([band.pixel_scale] * 2), corner, corner),
            PSF(psf_type="GAUSSIAN", fwhm=band.psf_fwhm, pixel_size=band.pixel_scale, truncation=5),
            LensModel(["EPL", "SHEAR"]),
            LightModel(["INTERPOL"]),
            LightModel(["SERSIC_ELLIPSE"]),
            kwargs_numerics={"supersampling_factor": 2, "supersampling_convolution": True},
        )
        # A colour is the magnitude in the first band minus that in this one.
        flux, lens_flux = (
            10 ** (-0.4 * (values[f"{who}_magnitude"] - color - band.magnitude_zero_point))
            for who, color in (("source", source_color), ("lens", lens_color))
        )
        reference = image_model.image(
            kwargs_lens, [{"amp": flux, **source}], [{"amp": lens_flux / unit, **light}]
        )
        assert peak_error(image[..., i], reference) < 1e-7


def test_galaxy_is_turned_scaled_and_keeps_its_flux(colour_recipe):
    """Where nothing deflects, the image is the galaxy's picture, turned from +x towards +y."""
    galaxies = GalaxyCatalogue.open(None)
    galaxy = int(galaxies.split("train")[0])
    recipe = dataclasses.replace(colour_recipe, num_pix=64, further_bands=())
    picture = galaxies.image(galaxy)
    values = {p.name: 0.0 for p in recipe.shared_parameters} | {
        "theta_E": 1e-9, "gamma_epl": 2.0, "lens_magnitude": 90.0, "lens_R_sersic": 1.0,
        "lens_n_sersic": 1.0, "source_magnitude": 20.0, "source_scale": 0.6, "source_phi": 0.0,
    }  # fmt: skip

    def moments(angle):
        scene = Scene(
            "no_sub", values | {"source_phi": angle}, PointMasses.none(), Halos.none(), galaxy
        )
        image = LenstronomyEngine(recipe).render([scene])[0, ..., 0]
        flux = 10 ** (-0.4 * (20.0 - recipe.instrument.magnitude_zero_point))
        np.testing.assert_allclose(image.sum(), flux, rtol=0.01)
        axis = (np.arange(64) - 31.5) * recipe.instrument.pixel_scale
        return second_moments(image, axis)

    axis = np.arange(picture.pixels.shape[0]) - picture.pixels.shape[0] // 2
    expected = second_moments(picture.pixels.astype(float), axis * picture.scale * 0.6)
    psf = (recipe.instrument.psf_fwhm / 2.3548) ** 2 + recipe.instrument.pixel_scale**2 / 12
    np.testing.assert_allclose(
        moments(0.0) - psf * np.eye(2), expected, atol=0.03 * np.trace(expected)
    )
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    turned = turn @ expected @ turn.T
    np.testing.assert_allclose(
        moments(0.7) - psf * np.eye(2), turned, atol=0.03 * np.trace(expected)
    )
    assert np.abs(turned - expected).max() > 0.1 * np.trace(expected)  # the test can fail


def second_moments(image, axis):
    """Covariance of position, x first, weighted by flux."""
    x, y = np.meshgrid(axis, axis)
    weight = image / image.sum()
    x, y = x - (weight * x).sum(), y - (weight * y).sum()
    return np.array([[(weight * a * b).sum() for b in (x, y)] for a in (x, y)])


@pytest.mark.parametrize("galaxy", [False, True])
def test_source_brightness_integrates_to_the_magnitude(colour_recipe, galaxy):
    recipe = colour_recipe if galaxy else get_recipe("model_ii")
    scene = draw(recipe, "no_sub", 1, 2)
    axis = np.linspace(-4.0, 4.0, 801)
    x, y = np.meshgrid(axis, axis)
    light = LenstronomyEngine(recipe).source_brightness(scene, x, y)
    assert light.shape == (801, 801, len(recipe.bands))
    values = scene.parameters
    for i, band in enumerate(recipe.bands):
        color = values[f"source_color_{i + 1}"] if i else 0.0
        flux = 10 ** (-0.4 * (values["source_magnitude"] - color - band.magnitude_zero_point))
        np.testing.assert_allclose(light[..., i].sum() * 0.01**2, flux, rtol=0.01)
    weight = light[..., 0] / light[..., 0].sum()
    centroid = [(weight * x).sum(), (weight * y).sum()]
    np.testing.assert_allclose(centroid, [values["source_x"], values["source_y"]], atol=0.01)


def test_scenes_do_not_leak_into_each_other(colour_recipe):
    """A galaxy's picture is not kept for the next scene, nor in the next engine."""
    scenes = [draw(colour_recipe, "cdm", 0, index) for index in range(8)]
    assert len({scene.galaxy for scene in scenes}) > 1
    together = LenstronomyEngine(colour_recipe).render(scenes)
    for scene, image in zip(reversed(scenes), together[::-1], strict=True):
        alone = LenstronomyEngine(colour_recipe).render([scene])[0]
        np.testing.assert_array_equal(alone, image)


def test_smooth_optics_makes_the_smooth_image():
    """Sersic light at the unlensed positions, convolved by the separable PSF."""
    recipe = get_recipe("model_ii_instrument")
    scene = draw(recipe, "no_sub", 3, 0)
    optics = smooth_optics(recipe)
    dx = optics.beta_x - scene.parameters["source_x"]
    dy = optics.beta_y - scene.parameters["source_y"]
    modulus = np.hypot(0.1, 0.1)
    q, angle = (1 - modulus) / (1 + modulus), np.arctan2(0.1, -0.1) / 2
    major = dx * np.cos(angle) + dy * np.sin(angle)
    minor = dy * np.cos(angle) - dx * np.sin(angle)
    radius = np.sqrt(q * major**2 + minor**2 / q)
    light = optics.amplitude * np.exp(-(1.9992 - 0.3271) * (radius / 0.25 - 1))
    for axis in (0, 1):
        light = ndimage.convolve1d(light, optics.psf, axis=axis, mode="nearest")
    assert peak_error(light, render(recipe, scene)) < 1e-6


def test_missing_galaxies_are_an_error(colour_recipe, tmp_path):
    with pytest.raises(UserError, match="has no real_galaxy_catalog"):
        LenstronomyEngine(colour_recipe, GalaxyCatalogue.open(tmp_path))
