"""Cores of halos: self-interaction, solitons, and the profile that carries them.

Cored halos are lenstronomy's TNFWC, a density

    ρ(r) ∝ 1 / [(r² + r_c²)^½ (R_s² + r²) (r_t² + r²)],

which falls off like a truncated NFW halo and is close to one inside. Its scale radius and
amplitude are chosen so that the mass within any radius from 0.05 to 10 scale radii is that of
the halo it stands for, to the accuracy that tests/simulation/test_cored_halos.py states; its
total mass is exactly the bound mass.
"""

import numpy as np

GRAVITY = 4.30091e-6
"""Newton's constant, kpc (km/s)² per solar mass."""
GYR = 0.977792
"""1 kpc / (km/s) in Gyr."""
CROSS_SECTION_UNIT = 2.0885e-10
"""1 cm²/g in kpc² per solar mass."""
COLLAPSE_CONSTANT = 0.75
"""C of the collapse time, calibrated by Essig et al. 2019, arXiv:1809.01144."""
CORE_RANGE = (5e-3, 3.0)
"""Core radius over scale radius of the profile: smaller and larger ones are held there."""


def collapse_time(rho_s: np.ndarray, r_s: np.ndarray, cross_section: float) -> np.ndarray:
    """Time to gravothermal collapse of NFW halos, Gyr.

    Args:
      rho_s: NFW density, solar masses / kpc³.
      r_s: NFW scale radius, kpc.
      cross_section: per mass, cm²/g, not velocity-dependent.

    Reference: Yang et al. 2024, arXiv:2305.16176, equation 2.2: t_c = 150/C / (σ/m ρ_s r_s) /
    (4πGρ_s)^½, C = 0.75.
    """
    rate = CROSS_SECTION_UNIT * cross_section * rho_s * r_s
    dynamical = np.sqrt(4.0 * np.pi * GRAVITY * rho_s)  # km/s/kpc
    with np.errstate(divide="ignore"):
        return 150.0 / COLLAPSE_CONSTANT / (rate * dynamical) * GYR


# The TNFWC whose mass profile is closest to the density ρ_s r_s (r⁴ + r_c⁴)^-¼ (1 + r/r_s)^-2 of
# Yang et al. 2024, arXiv:2305.16176, equations 2.1 and 2.3, least squares in ln M(<r) over
# 0.03…10 scale radii: tau, R_s and r_c over the scale radius of the NFW halo that it began as.
_SHAPES = np.array(
    [
        (0.000, 0.7508, 0.0),
        (0.001, 0.8152, 0.04567),
        (0.003, 0.8328, 0.08175),
        (0.010, 0.8738, 0.13443),
        (0.020, 0.9125, 0.16654),
        (0.050, 0.9777, 0.20055),
        (0.100, 1.0201, 0.21374),
        (0.150, 1.0287, 0.21537),
        (0.200, 1.0215, 0.21354),
        (0.300, 0.9844, 0.20571),
        (0.400, 0.9327, 0.19446),
        (0.500, 0.8729, 0.18001),
        (0.600, 0.8068, 0.16208),
        (0.700, 0.7344, 0.14047),
        (0.800, 0.6553, 0.11536),
        (0.900, 0.5690, 0.08753),
        (1.000, 0.4751, 0.05851),
        (1.050, 0.4253, 0.04422),
        (1.100, 0.3736, 0.03042),
    ]
)


def gravothermal_shape(tau: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R_s, r_c) of the TNFWC profile at `tau` = age / collapse time, in the NFW halo's r_s.

    The model holds up to tau = 1.1, past collapse; older halos are held there.
    """
    root, nodes = np.sqrt(tau), np.sqrt(_SHAPES[:, 0])
    return np.interp(root, nodes, _SHAPES[:, 1]), np.interp(root, nodes, _SHAPES[:, 2])


def zeta(omega_m: float) -> float:
    """ζ of the virial overdensity at matter density `omega_m` (Schive et al. 2014, eq. 6)."""
    x = omega_m - 1.0
    return (18.0 * np.pi**2 + 82.0 * x - 39.0 * x**2) / omega_m


def soliton_radius(
    mass: np.ndarray, log10_m_axion: float, z: float, omega_m_0: float, omega_m_z: float
) -> np.ndarray:
    """Core radius of the soliton of ultralight dark matter, kpc: half the central density.

    Args:
      mass: of the halo, solar masses.
      log10_m_axion: log10 of the particle's mass in eV.
      z: redshift.
      omega_m_0, omega_m_z: matter density today and at `z`.

    Reference: Schive et al. 2014, arXiv:1407.7762, equation 7.
    """
    m_22 = 10.0 ** (log10_m_axion + 22.0)
    growth = (zeta(omega_m_z) / zeta(omega_m_0)) ** (-1.0 / 6.0)
    return 1.6 / m_22 / np.sqrt(1.0 + z) * growth * (mass / 1e9) ** (-1.0 / 3.0)


def min_soliton_mass(log10_m_axion: float, z: float, omega_m_0: float, omega_m_z: float) -> float:
    """Least mass of a halo of ultralight dark matter, solar masses.

    Reference: Schive et al. 2014, arXiv:1407.7762: 4.4e7 m_22^-1.5 today, with the redshift
    dependence a^-¾ (ζ(z)/ζ(0))^¼.
    """
    m_22 = 10.0 ** (log10_m_axion + 22.0)
    growth = (1.0 + z) ** 0.75 * (zeta(omega_m_z) / zeta(omega_m_0)) ** 0.25
    return 4.4e7 * m_22**-1.5 * growth


def deflection_at_scale_radius(
    mass: np.ndarray, Rs: np.ndarray, r_trunc: np.ndarray, r_core: np.ndarray, sigma_crit: float
) -> np.ndarray:
    """Deflection at Rs of TNFWC halos of given total mass, lenstronomy's `alpha_Rs`.

    Args:
      mass: total, solar masses.
      Rs, r_trunc, r_core: arcsec; the core must not be zero.
      sigma_crit: critical surface density, solar masses / arcsec².

    Returns:
      Deflection in arcsec, [N].
    """
    b2, t2 = (r_core / Rs) ** 2, (r_trunc / Rs) ** 2
    t2 = np.where(np.abs(t2 - 1.0) < 1e-6, 1.0 + 1e-6, t2)

    def term(x2, q2):  # the integrals of both mass and deflection reduce to this
        y, d = q2 + x2, q2 - b2
        d = np.where(np.abs(d) < 1e-9, 1e-9, d)
        root = np.sqrt(np.abs(d) / y)
        inner = np.minimum(root, 1.0 - 1e-15)
        return np.where(d > 0.0, np.arctanh(inner), np.arctan(root)) / root

    total = term(0.0, t2) - term(0.0, 1.0)
    within = total - (term(1.0, t2) - term(1.0, 1.0))
    return mass / (np.pi * sigma_crit * Rs) * within / total
