"""From mass to Einstein radius, right and as DeepLense did it."""

import dataclasses
import functools

import numpy as np

from dlens_tf.errors import UserError

ARCSEC_PER_RADIAN = {"angular": 206264.80624709636, "luminosity": 206265.0}
"""By kind of distance: DeepLenseSim rounds it."""


def check_redshifts(z_lens: float, z_source: float) -> None:
    """Raises a `UserError` unless 0 < z_lens < z_source."""
    if not 0.0 < z_lens < z_source < np.inf:
        raise UserError(
            f"redshifts must rise from the observer over the lens to the source, got z_lens "
            f"{z_lens:g} and z_source {z_source:g}: swap or mend them"
        )


@functools.cache
def flat_lambda_cdm(h0: float, omega_m: float, omega_b: float):
    """A cached `astropy.cosmology.FlatLambdaCDM`."""
    from astropy.cosmology import FlatLambdaCDM

    return FlatLambdaCDM(H0=h0, Om0=omega_m, Ob0=omega_b)


def distance_ratio(z_lens: float, z_source: float, parameters: tuple[float, float, float]) -> float:
    """D_ls / D_s, on which reduced deflection angles depend, in a flat universe."""
    check_redshifts(z_lens, z_source)
    cosmology = flat_lambda_cdm(*parameters)
    # In a flat universe comoving distances add up.
    return 1.0 - float(cosmology.comoving_distance(z_lens) / cosmology.comoving_distance(z_source))


@functools.cache
def _point_mass_scale(
    z_lens: float, z_source: float, parameters: tuple[float, float, float], distances: str
) -> float:
    """Einstein radius of one solar mass, arcsec."""
    from astropy import constants, units

    check_redshifts(z_lens, z_source)
    cosmology = flat_lambda_cdm(*parameters)
    if distances == "angular":
        d_lens = cosmology.angular_diameter_distance(z_lens)
        d_source = cosmology.angular_diameter_distance(z_source)
        comoving = cosmology.comoving_distance(z_source) - cosmology.comoving_distance(z_lens)
        d_between = comoving / (1.0 + z_source)  # in a flat universe
    else:
        d_lens = cosmology.luminosity_distance(z_lens)
        d_source = cosmology.luminosity_distance(z_source)
        d_between = d_source - d_lens
    square = 4 * constants.G * units.M_sun / constants.c**2 * d_between / (d_lens * d_source)
    return float(np.sqrt(square.to(units.dimensionless_unscaled))) * ARCSEC_PER_RADIAN[distances]


def einstein_radius(
    mass: np.ndarray | float,
    z_lens: float,
    z_source: float,
    cosmology: tuple[float, float, float],
    distances: str = "angular",
) -> np.ndarray:
    """Einstein radius of a point mass, theta_E² = 4GM/c² D_ls / (D_l D_s).

    Args:
      mass: solar masses, any shape.
      z_lens: redshift of the mass.
      z_source: redshift of the source, larger than `z_lens`.
      cosmology: (H0, Omega_m, Omega_b) of a flat universe.
      distances: "angular" for angular-diameter distances (right); "luminosity" for the
        luminosity distances, with D_ls = D_s - D_l, that DeepLenseSim uses (theta_E 0.77 times
        too small at z 0.5 and 1).

    Returns:
      theta_E in arcsec, the shape of `mass`.

    Raises:
      UserError: if the redshifts do not rise from the observer to the source, or a mass is
        negative.
    """
    mass = np.asarray(mass, dtype=np.float64)
    if np.any(mass < 0.0):
        raise UserError(f"masses must not be negative, got {mass.min():g} solar masses")
    return _point_mass_scale(z_lens, z_source, cosmology, distances) * np.sqrt(mass)


@dataclasses.dataclass(frozen=True)
class LensPlane:
    """Where the lens is: turns masses and lengths into angles.

    Attributes:
      z_lens: redshift of the lens.
      z_source: redshift of the source, larger.
      cosmology: (H0, Omega_m, Omega_b) of a flat universe.
      distances: "angular" or "luminosity", see `einstein_radius`.

    Raises:
      UserError: if the redshifts do not rise from the observer to the source.
    """

    z_lens: float = 0.5
    z_source: float = 1.0
    cosmology: tuple[float, float, float] = (70.0, 0.3, 0.05)
    distances: str = "angular"

    def __post_init__(self):
        check_redshifts(self.z_lens, self.z_source)

    @property
    def astropy_cosmology(self):
        """The `astropy.cosmology.FlatLambdaCDM`."""
        return flat_lambda_cdm(*self.cosmology)

    def einstein_radius(self, mass: np.ndarray | float) -> np.ndarray:
        """Einstein radius in arcsec of point masses in solar masses."""
        return einstein_radius(mass, self.z_lens, self.z_source, self.cosmology, self.distances)

    @functools.cached_property
    def kpc_per_arcsec(self) -> float:
        """Proper kiloparsecs per arcsec at the lens."""
        per_arcmin = self.astropy_cosmology.kpc_proper_per_arcmin(self.z_lens)
        return float(per_arcmin.value) / 60.0

    @functools.cached_property
    def sigma_crit(self) -> float:
        """Critical surface density, solar masses per square arcsec: θ_E² = M / (π Σ_crit)."""
        return 1.0 / (np.pi * float(self.einstein_radius(1.0)) ** 2)
