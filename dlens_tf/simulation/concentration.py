"""Concentrations of dark-matter halos (Diemer & Joyce 2019, arXiv:1809.07326).

The model gives the median concentration c200c of a halo from its peak height, the local slope
of the power spectrum and the growth rate. The linear power spectrum is that of Eisenstein & Hu
1998, arXiv:astro-ph/9709112. All of it is evaluated once per cosmology on a grid in mass and
redshift; draws interpolate.
"""

import functools

import numpy as np

from dlens_tf.simulation.grids import Grid2D

SIGMA_8, SPECTRAL_INDEX = 0.81, 0.965
"""Amplitude and slope of the power spectrum: Planck 2018, rounded."""

LOG10_MASSES = (5.0, 11.0)
"""Range of the grid in log10 of the mass in solar masses."""

MAX_REDSHIFT = 21.0
"""End of the grid in redshift; subhalos fall in up to 15 above the lens (see `tides`)."""

_T_CMB = 2.7255
_COLLAPSE = 1.68647  # linear overdensity at collapse, Einstein-de Sitter
_CRITICAL_DENSITY = 2.77536627e11  # h² M_sun / Mpc³ today
# Diemer & Joyce 2019, table 2, median.
_KAPPA, _A0, _A1, _B0, _B1, _C_ALPHA = 0.41, 2.45, 1.82, 3.20, 2.30, 0.21


def transfer_function(k: np.ndarray, h: float, omega_m: float, omega_b: float) -> np.ndarray:
    """Linear transfer function with baryons at wavenumbers `k` in h/Mpc.

    Reference: Eisenstein & Hu 1998; numbers in the comments are those of their equations.
    """
    cold, matter, baryons = (omega_m - omega_b) / omega_m, omega_m * h**2, omega_b * h**2
    fraction = omega_b / omega_m
    theta = _T_CMB / 2.7
    z_equal = 2.50e4 * matter / theta**4  # 2
    k_equal = 0.0746 * matter / theta**2  # 3
    b1 = 0.313 * matter**-0.419 * (1.0 + 0.607 * matter**0.674)
    b2 = 0.238 * matter**0.223
    z_drag = 1291.0 * matter**0.251 / (1.0 + 0.659 * matter**0.828) * (1.0 + b1 * baryons**b2)  # 4
    r_drag, r_equal = (31.5e3 * baryons / theta**4 / z for z in (z_drag, z_equal))  # 5
    horizon = (  # 6
        2.0
        / (3.0 * k_equal)
        * np.sqrt(6.0 / r_equal)
        * np.log((np.sqrt(1.0 + r_drag) + np.sqrt(r_drag + r_equal)) / (1.0 + np.sqrt(r_equal)))
    )
    k_silk = 1.6 * baryons**0.52 * matter**0.73 * (1.0 + (10.4 * matter) ** -0.95)  # 7
    k = k * h
    q = k / (13.41 * k_equal)  # 10
    a1 = (46.9 * matter) ** 0.670 * (1.0 + (32.1 * matter) ** -0.532)
    a2 = (12.0 * matter) ** 0.424 * (1.0 + (45.0 * matter) ** -0.582)
    alpha_c = a1**-fraction * a2 ** -(fraction**3)  # 11
    b1 = 0.944 / (1.0 + (458.0 * matter) ** -0.708)
    b2 = (0.395 * matter) ** -0.0266
    beta_c = 1.0 / (1.0 + b1 * (cold**b2 - 1.0))  # 12

    def pressureless(alpha, beta):  # 19, 20
        log = np.log(np.e + 1.8 * beta * q)
        return log / (log + (14.2 / alpha + 386.0 / (1.0 + 69.9 * q**1.08)) * q**2)

    ks = k * horizon
    f = 1.0 / (1.0 + (ks / 5.4) ** 4)  # 18
    t_cold = f * pressureless(1.0, beta_c) + (1.0 - f) * pressureless(alpha_c, beta_c)  # 17
    y = (1.0 + z_equal) / (1.0 + z_drag)
    root = np.sqrt(1.0 + y)
    g = y * (-6.0 * root + (2.0 + 3.0 * y) * np.log((root + 1.0) / (root - 1.0)))  # 15
    alpha_b = 2.07 * k_equal * horizon * (1.0 + r_drag) ** -0.75 * g  # 14
    beta_node = 8.41 * matter**0.435  # 23
    beta_b = 0.5 + fraction + (3.0 - 2.0 * fraction) * np.sqrt((17.2 * matter) ** 2 + 1.0)  # 24
    shifted = ks / (1.0 + (beta_node / ks) ** 3) ** (1.0 / 3.0)  # 22
    t_baryons = np.sinc(shifted / np.pi) * (  # 21
        pressureless(1.0, 1.0) / (1.0 + (ks / 5.2) ** 2)
        + alpha_b / (1.0 + (beta_b / ks) ** 3) * np.exp(-((k / k_silk) ** 1.4))
    )
    return fraction * t_baryons + cold * t_cold


def _sigma(radius: np.ndarray, cosmology: tuple[float, float, float]) -> np.ndarray:
    """Rms linear density contrast today in spheres of `radius` Mpc/h."""
    h0, omega_m, omega_b = cosmology
    log_k = np.linspace(np.log(1e-4), np.log(1e5), 6000)
    k = np.exp(log_k)
    power = k**SPECTRAL_INDEX * transfer_function(k, h0 / 100.0, omega_m, omega_b) ** 2

    def variance(r):
        x = k * r
        window = 3.0 * (np.sin(x) - x * np.cos(x)) / x**3
        # Below x of about 0.01 the difference of the two terms is lost in rounding.
        window = np.where(x < 1e-2, 1.0 - x**2 / 10.0, window)
        return np.trapezoid(k**3 * power * window**2, log_k)

    return SIGMA_8 * np.sqrt(np.array([variance(r) for r in radius]) / variance(8.0))


def _growth(z: np.ndarray, omega_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Linear growth factor, 1 today, and its rate -dlnD/dln(1+z)."""
    a_grid = np.linspace(0.0, 1.0, 4001)[1:]
    e_grid = np.sqrt(omega_m * a_grid**-3 + 1.0 - omega_m)
    integrand = (a_grid * e_grid) ** -3.0
    # From a = 0 the integrand rises as a^1.5.
    integral = np.cumsum(0.5 * (integrand + np.r_[0.0, integrand[:-1]])) * a_grid[0]
    log_growth = np.log(e_grid * integral)
    rate = np.gradient(log_growth, np.log(a_grid))
    a = 1.0 / (1.0 + z)
    growth = np.exp(np.interp(a, a_grid, log_growth) - log_growth[-1])
    return growth, np.interp(a, a_grid, rate)


def _invert(rhs: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """The x that solves x / m(x)^((5+n)/6) = rhs on the rising branch, m the NFW mass."""
    low, high = np.full(rhs.shape, np.log(0.3)), np.full(rhs.shape, np.log(1e4))
    exponent = (5.0 + slope) / 6.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        x = np.exp(middle)
        above = middle - exponent * np.log(np.log1p(x) - x / (1.0 + x)) > np.log(rhs)
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.exp(0.5 * (low + high))


@functools.cache
def median_log_concentration(cosmology: tuple[float, float, float]) -> Grid2D:
    """ln c200c as a function of (log10 of M200c in solar masses, ln(1+z)).

    Args:
      cosmology: (H0, Omega_m, Omega_b) of a flat universe.

    Returns:
      An interpolation grid over `LOG10_MASSES` and redshifts 0 to `MAX_REDSHIFT`; held at its
      edges outside.
    """
    h0, omega_m, _ = cosmology
    log10_m = np.linspace(*LOG10_MASSES, 61)
    log1p_z = np.linspace(0.0, np.log1p(MAX_REDSHIFT), 81)
    density = _CRITICAL_DENSITY * omega_m
    radius = (3.0 * 10.0**log10_m * (h0 / 100.0) / (4.0 * np.pi * density)) ** (1.0 / 3.0)
    step = 1e-2
    lower, upper = (_sigma(radius * _KAPPA * np.exp(s), cosmology) for s in (-step, step))
    n = -(np.log(upper) - np.log(lower)) / step - 3.0  # -2 dlnσ/dlnR - 3
    growth, rate = _growth(np.expm1(log1p_z), omega_m)
    nu = _COLLAPSE / (_sigma(radius, cosmology)[:, None] * growth)
    n = np.broadcast_to(n[:, None], nu.shape)
    a, b = _A0 * (1.0 + _A1 * (n + 3.0)), _B0 * (1.0 + _B1 * (n + 3.0))
    c = _invert(a / nu * (1.0 + nu**2 / b), n) * (1.0 - _C_ALPHA * (1.0 - rate))
    return Grid2D(log10_m[0], log10_m[-1], log1p_z[0], log1p_z[-1], np.log(c))
