"""Infall and tidal stripping of subhalos, as pyHalo 1.3.5 models them.

* When a subhalo fell in: a normal law in redshift above the host's, its mean and deviation
  functions of the mass ratio, cut to 0…15 (pyHalo's "hybrid infall": subhalos and subhalos of
  subhalos, measured in runs of the semi-analytic model Galacticus).
* How much of it stays bound: a Johnson S_U law in log10(bound mass / infall mass) whose two
  shape parameters are tabulated in time since infall and concentration, again from Galacticus.
* What that leaves of the density: truncation and a lower normalisation (Du et al. 2024,
  arXiv:2403.09597), with the total mass of the truncated profile equal to the bound mass.
"""

import functools

import numpy as np

from dlens_tf.simulation.grids import Grid2D

HOST_CONCENTRATION = 6.0
"""Concentration of the host halo; the table of bound masses holds for it alone."""

_MAX_DELTA_Z = 15.0
_MAX_TIME = 8.1  # Gyr; end of the table
_LOG10_C = (np.log10(2.0), np.log10(384.0))
# Shape parameters of the Johnson law at host concentration 6: rows in time since infall from 0
# to 8.1 Gyr, columns in log10 of the concentration at infall. Interpolated from pyHalo 1.3.5,
# Halos/galacticus_truncation/johnsonSUparams.py, to four digits.
_GAMMA = """
1.696 1.766 1.772 1.549 1.548 1.633 1.651 1.627 1.638 1.6
1.669 1.557 1.605 1.626 1.644 1.769 1.786 1.735 1.699 1.692
1.938 1.75 1.638 1.65 1.799 2.037 2.113 2.062 2.029 2.022
2.41 2.154 1.971 2.043 2.154 2.36 2.474 2.423 2.447 2.466
2.676 2.387 2.251 2.261 2.386 2.489 2.608 2.588 2.644 2.701
3.353 3.385 2.713 2.684 2.765 2.884 2.949 3.074 3.119 3.22
5.704 4.921 4.237 3.973 4.088 4.27 4.398 4.626 4.73 4.899
8.752 6.625 5.826 5.382 5.419 5.622 5.91 6.147 6.39 6.611
26.3 20.21 9.166 8.965 8.956 8.652 8.873 9.369 9.796 10.19
72.39 55.71 37.58 29.56 38.98 34.64 12.54 13.46 15.78 20.32
"""
_DELTA = """
1495 1576 1596 1423 1422 1462 1471 1470 1471 1415
637.7 640.9 649.1 612.4 620.1 629.7 639.7 642.9 636.3 633.4
3.359 4.409 6.234 8.754 12.5 17.33 21.9 25.09 28.63 32.27
3.144 4.078 5.381 7.602 11.25 15.76 19.64 22.83 26.54 30.54
2.877 3.639 4.751 6.694 9.707 13.07 16.91 20.08 23.79 27.98
2.83 3.499 4.372 6.066 8.554 11.59 14.43 18.92 22.31 26.8
3.684 3.822 4.792 6.543 9.261 12.88 16.2 21.31 25.66 31.24
4.738 4.395 5.053 6.552 9.184 13.05 17.51 22.49 28.2 34.16
11.18 9.288 5.515 7.224 9.62 12.93 17.57 23 29.18 36.29
26.91 21.95 16.19 13.34 18.65 17.73 10.47 15.34 23.87 39.07
"""


def nfw_mass(x: np.ndarray) -> np.ndarray:
    """Mass of an NFW halo within x scale radii, in units of 4π ρ_s r_s³."""
    return np.log1p(x) - x / (1.0 + x)


def truncated_nfw_mass(tau: np.ndarray) -> np.ndarray:
    """Total mass of an NFW halo truncated at `tau` scale radii, in units of 4π ρ_s r_s³.

    Reference: Baltz, Marshall & Oguri 2009, arXiv:0705.0682, equation A4 (n = 1).
    """
    square = tau**2
    return (
        square / (square + 1.0) ** 2 * ((square - 1.0) * np.log(tau) + np.pi * tau - (square + 1.0))
    )


def infall_redshift(
    quantile: np.ndarray, mass: np.ndarray, mass_host: float, z_host: float
) -> np.ndarray:
    """Redshift at which subhalos fell in, at quantiles of its law.

    Args:
      quantile: in (0, 1), [N].
      mass: at infall, solar masses, [N].
      mass_host: of the host, solar masses.
      z_host: redshift of the host.
    """
    from scipy.special import ndtr, ndtri

    ratio = -np.log10(np.clip(mass / mass_host, 1e-5, 10.0**-0.5))
    mean = 3.35549949 / (1.0 + 3.20546995 * ratio**-2.91075587)
    std = 1.97880156 / (1.0 + 4.17390702 * ratio**-2.14428416)
    low, high = ndtr(-mean / std), ndtr((_MAX_DELTA_Z - mean) / std)
    return z_host + mean + std * ndtri(low + quantile * (high - low))


@functools.cache
def _johnson() -> Grid2D:
    values = np.stack([np.array(t.split(), dtype=float) for t in (_GAMMA, _DELTA)], axis=-1)
    return Grid2D(0.0, _MAX_TIME, *_LOG10_C, values.reshape(10, 10, 2))


def bound_fraction(normal: np.ndarray, time: np.ndarray, concentration: np.ndarray) -> np.ndarray:
    """Bound mass over mass at infall.

    A few percent of the halos gain mass, up to about a factor of 1.6: so does the law that
    pyHalo fits to Galacticus.

    Args:
      normal: standard normal deviates, [N].
      time: since infall, Gyr, [N]; held at the ends of the table, 0 and 8.1.
      concentration: at infall, [N]; held likewise at 2 and 384.
    """
    gamma, delta = np.moveaxis(_johnson()(time, np.log10(concentration)), -1, 0)
    return 10.0 ** np.sinh((normal - gamma) / delta)


@functools.cache
def _stripping() -> tuple[np.ndarray, np.ndarray]:
    """ln(bound mass / 4π ρ_s r_s³), ascending, with ln τ."""
    # Du et al. 2024: the fit for NFW subhalos, in bound mass over its value in their reference
    # run (1.1605 times the mass within 20.5878 scale radii), carried to other concentrations by
    # the mass within the radius of the greatest circular velocity.
    rise, power = 0.75826635, 0.23376409
    reference = 1.1605002 * nfw_mass(20.587820037799197)
    ln_mass = np.linspace(np.log(1e-8), np.log(20.0), 4000)
    x = np.minimum(np.exp(ln_mass) / reference, 1.0)
    f_t = np.minimum((1.0 + rise) * x**power / (1.0 + rise * x ** (2.0 * power)), 1.0)
    ln_tau = np.linspace(np.log(1e-5), np.log(1e10), 8000)
    total = np.log(truncated_nfw_mass(np.exp(ln_tau)))
    return ln_mass, np.interp(ln_mass - np.log(f_t), total, ln_tau)


def truncation(bound: np.ndarray, concentration: np.ndarray) -> np.ndarray:
    """Truncation radius over scale radius, τ, of NFW halos stripped to a bound fraction.

    The density within falls too, by the factor f_t that makes the total mass of the truncated
    profile, 4π f_t ρ_s r_s³ `truncated_nfw_mass(τ)`, equal to the bound mass.

    Args:
      bound: bound mass over mass at infall, [N].
      concentration: at infall, [N].
    """
    ln_mass, ln_tau = _stripping()
    return np.exp(np.interp(np.log(bound * nfw_mass(concentration)), ln_mass, ln_tau))
