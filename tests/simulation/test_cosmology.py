import numpy as np
import pytest
from scipy import constants
from scipy.integrate import quad

from dlens_tf.simulation.cosmology import einstein_radius
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


@pytest.mark.parametrize("redshifts", [(1.0, 0.5), (0.5, 0.5), (0.0, 1.0), (-0.1, 1.0)])
def test_redshifts_must_rise(redshifts):
    with pytest.raises(ValueError, match="redshifts must rise"):
        einstein_radius(1e12, *redshifts, COSMOLOGY)
