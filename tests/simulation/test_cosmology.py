import dataclasses

import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from scipy import constants
from scipy.integrate import quad

from dlens_tf.errors import UserError
from dlens_tf.simulation.cosmology import LensPlane, einstein_radius
from dlens_tf.simulation.recipes import RECIPES

COSMOLOGY = (70.0, 0.3, 0.05)


def comoving_distance(z: float, h0: float, omega_m: float) -> float:
    """Metres, flat universe without radiation, by quadrature."""
    hubble = h0 * 1e3 / (1e6 * constants.parsec)
    integral, _ = quad(lambda t: (omega_m * (1 + t) ** 3 + 1 - omega_m) ** -0.5, 0.0, z)
    return constants.c / hubble * integral


def point_mass_radius(mass: float, distance_ratio: float) -> float:
    """Arcsec, theta_E² = 4GM/c² · distance_ratio."""
    solar_mass_gm = 1.32712440018e20
    return np.degrees(np.sqrt(4 * solar_mass_gm * mass / constants.c**2 * distance_ratio)) * 3600


def angular_ratio(z_lens: float, z_source: float) -> float:
    lens, source = (comoving_distance(z, *COSMOLOGY[:2]) for z in (z_lens, z_source))
    return (source - lens) / lens / source * (1 + z_lens)


def luminosity_ratio(z_lens: float, z_source: float) -> float:
    lens, source = (comoving_distance(z, *COSMOLOGY[:2]) * (1 + z) for z in (z_lens, z_source))
    return (source - lens) / (lens * source)


@pytest.mark.parametrize(
    ("distances", "ratio"), [("angular", angular_ratio), ("luminosity", luminosity_ratio)]
)
def test_against_quadrature(distances, ratio):
    mass = np.array([1e6, 3e10, 1e12])
    # astropy's default universe has no radiation either (T_cmb = 0).
    np.testing.assert_allclose(
        einstein_radius(mass, 0.5, 1.0, COSMOLOGY, distances),
        [point_mass_radius(m, ratio(0.5, 1.0)) for m in mass],
        rtol=2e-5,
    )


@pytest.mark.parametrize(
    ("mass", "distances", "published"),
    [
        (1e12, "luminosity", 1.2815),
        (3e8, "luminosity", 0.02220),
        (3e10, "luminosity", 0.222),
        (1e12, "angular", 1.6645),
        (3e10, "angular", 0.288),
    ],
)
def test_published_values(mass, distances, published):
    digits = len(str(published).split(".")[1])
    value = einstein_radius(mass, 0.5, 1.0, COSMOLOGY, distances)
    np.testing.assert_allclose(value, published, atol=0.51 * 10**-digits)


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.distances == "luminosity"])
def test_legacy_constant_is_the_derived_number(name):
    recipe = RECIPES[name]
    np.testing.assert_allclose(
        recipe.priors["theta_E"].value,
        einstein_radius(1e12, recipe.z_lens, recipe.z_source, recipe.cosmology, "luminosity"),
        rtol=1e-7,
    )


BAD_REDSHIFTS = [(1.0, 0.5), (0.5, 0.5), (0.0, 1.0), (-0.1, 1.0), (0.5, np.inf), (np.nan, 1.0)]


@pytest.mark.parametrize("redshifts", BAD_REDSHIFTS)
def test_redshifts_must_rise(redshifts):
    with pytest.raises(UserError, match="redshifts must rise") as error:
        einstein_radius(1e12, *redshifts, COSMOLOGY)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=f"z_lens {redshifts[0]:g} and z_source {redshifts[1]:g}"):
        LensPlane(*redshifts)
    with pytest.raises(UserError, match="redshifts must rise"):
        dataclasses.replace(RECIPES["model_ii"], z_lens=redshifts[0], z_source=redshifts[1])


def test_negative_masses_are_refused():
    with pytest.raises(UserError, match="masses must not be negative, got -3 solar masses"):
        einstein_radius(np.array([1e6, -3.0]), 0.5, 1.0, COSMOLOGY)
    with pytest.raises(UserError, match="masses must not be negative"):
        LensPlane().einstein_radius(-1.0)
    assert LensPlane().einstein_radius(0.0) == 0.0


PLANES = [LensPlane(), LensPlane(0.25, 1.5, (67.4, 0.315, 0.049))]


@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: f"{plane.z_lens}")
def test_plane_turns_lengths_into_angles(plane):
    h0, omega_m, _ = plane.cosmology
    distance = comoving_distance(plane.z_lens, h0, omega_m) / (1 + plane.z_lens)
    kpc = distance * np.radians(1 / 3600) / (1e3 * constants.parsec)
    np.testing.assert_allclose(plane.kpc_per_arcsec, kpc, rtol=1e-6)


@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: f"{plane.z_lens}")
def test_critical_surface_density(plane):
    """c² / (4πG) D_s / (D_l D_ls), from kg/m² to solar masses per square arcsec."""
    h0, omega_m, omega_b = plane.cosmology
    cosmology = FlatLambdaCDM(H0=h0, Om0=omega_m, Ob0=omega_b)
    lens, source = (
        cosmology.angular_diameter_distance(z).to_value("m") for z in (plane.z_lens, plane.z_source)
    )
    between = source - lens * (1 + plane.z_lens) / (1 + plane.z_source)  # a flat universe
    density = constants.c**2 / (4 * np.pi * constants.G) * source / (lens * between)
    solar_mass = 1.32712440018e20 / constants.G
    expected = density * (lens * np.radians(1 / 3600)) ** 2 / solar_mass
    np.testing.assert_allclose(plane.sigma_crit, expected, rtol=2e-5)


def test_mass_within_the_einstein_radius_has_the_critical_density():
    for plane in (*PLANES, LensPlane(distances="luminosity")):
        within = np.pi * plane.einstein_radius(1e12) ** 2 * plane.sigma_crit
        np.testing.assert_allclose(within, 1e12, rtol=1e-12)


def test_plane_of_a_recipe_is_its_cosmology():
    recipe = RECIPES["model_ii_legacy"]
    plane = recipe.plane
    assert (plane.z_lens, plane.z_source) == (recipe.z_lens, recipe.z_source)
    np.testing.assert_allclose(
        plane.einstein_radius(1e12), recipe.priors["theta_E"].value, rtol=1e-7
    )
