import numpy as np
import pytest
from lenstronomy.LensModel.Profiles.nfw_core_truncated import TNFWC
from scipy.integrate import quad

from dlens_tf.simulation.cored_halos import (
    CORE_RANGE,
    collapse_time,
    deflection_at_scale_radius,
    gravothermal_shape,
    min_soliton_mass,
    soliton_radius,
)


def gravothermal_profile(tau):
    """(ρ_s, r_s, r_c) at `tau` over (ρ_s, r_s, r_s) at 0: Yang et al. 2024, equation 2.3.

    Coefficients with all digits from the authors' code, DanengYang/parametricSIDM.
    """
    log = np.log(tau + 0.001) / np.log(0.001)
    rho_s = (
        2.03305816
        + 0.73806287 * tau
        + 7.26368767 * tau**5
        - 12.72976657 * tau**7
        + 9.91487857 * tau**9
        + (1.0 - 2.03305816) * log
    )
    r_s = (
        0.71779858
        - 0.10257242 * tau
        + 0.24743911 * tau**2
        - 0.40794176 * tau**3
        + (1.0 - 0.71779858) * log
    )
    r_c = (
        2.55497727 * np.sqrt(tau)
        - 3.63221179 * tau
        + 2.13141953 * tau**2
        - 1.41516784 * tau**3
        + 0.46832269 * tau**4
    )
    return rho_s, r_s, r_c


def mass_profile(density, radii):
    """Mass within each of the ascending radii, by quadrature."""
    steps = [
        quad(lambda r: 4.0 * np.pi * r**2 * density(r), low, high)[0]
        for low, high in zip([0.0, *radii[:-1]], radii, strict=True)
    ]
    return np.cumsum(steps)


def test_the_core_grows_and_then_collapses():
    tau = np.linspace(0.0, 1.1, 111)
    core = gravothermal_shape(tau)[1]
    assert core[0] == 0.0 and 0.1 <= tau[core.argmax()] <= 0.2
    assert np.all(np.diff(core[tau >= 0.2]) < 0.0)
    shape = gravothermal_shape(np.array([1.1, 5.0, np.inf]))
    assert np.ptp(shape, axis=1).max() == 0.0  # past collapse: held


@pytest.mark.parametrize(
    ("tau", "tolerance"), [(0.0, 0.22), (0.01, 0.13), (0.2, 0.07), (0.6, 0.1), (1.1, 0.16)]
)
def test_tnfwc_stands_for_the_gravothermal_profile(tau, tolerance):
    # How well the profile that engines know has the mass of the one in the paper.
    radii = np.geomspace(0.05, 10.0, 25)
    rho_s, r_s, r_c = gravothermal_profile(tau)
    target = mass_profile(
        lambda r: rho_s * r_s / (r**4 + r_c**4) ** 0.25 / (1.0 + r / r_s) ** 2, radii
    )
    scale, core = (float(x) for x in gravothermal_shape(tau))
    core = max(core, CORE_RANGE[0] * scale)
    ours = mass_profile(lambda r: TNFWC.density(r, scale, 1.0, core, 1e4), radii)
    ratio = ours / target
    ratio /= np.sqrt(ratio.min() * ratio.max())
    assert np.abs(np.log(ratio)).max() < tolerance


@pytest.mark.parametrize("log10_m_axion", [-22.0, -21.0])
def test_soliton_has_schives_radius(log10_m_axion):
    # Schive et al. 2014: 1.6 kpc at 1e9 solar masses, 1e-22 eV and redshift 0, as 1/m.
    radius = soliton_radius(np.array([1e9, 8e9]), log10_m_axion, 0.0, 0.3, 0.3)
    np.testing.assert_allclose(radius, np.array([1.6, 0.8]) * 10.0 ** (-22.0 - log10_m_axion))


def test_soliton_and_least_mass_change_with_redshift():
    # zeta rises from Omega_m 0.3 to 1 by (18π²)/(18π² - 57.4 - 19.11) × 0.3.
    zeta_0 = (18.0 * np.pi**2 - 82.0 * 0.7 - 39.0 * 0.49) / 0.3
    ratio = 18.0 * np.pi**2 / zeta_0
    radius = soliton_radius(np.array([1e9]), -22.0, 9.0, 0.3, 1.0)
    np.testing.assert_allclose(radius, 1.6 * 10.0**-0.5 * ratio ** (-1.0 / 6.0))
    expected = 4.4e7 * 10.0**0.75 * ratio**0.25
    assert min_soliton_mass(-22.0, 9.0, 0.3, 1.0) == pytest.approx(expected)


def test_collapse_time():
    # By astropy's units instead of rounded conversion factors.
    from astropy import constants, units

    rho, r_s = 2e7 * units.M_sun / units.kpc**3, 0.6 * units.kpc
    cross_section = 50.0 * units.cm**2 / units.g
    time = (
        150.0 / 0.75 / (cross_section * rho * r_s) / np.sqrt(4.0 * np.pi * constants.G * rho)
    ).to_value(units.Gyr)
    assert collapse_time(np.array([2e7]), np.array([0.6]), 50.0)[0] == pytest.approx(time, 1e-3)
    assert collapse_time(np.array([2e7]), np.array([0.6]), 0.0)[0] == np.inf


@pytest.mark.parametrize(
    ("tau", "beta"), [(0.1, 0.02), (0.1, 2.0), (1.0, 0.3), (3.0, 0.3), (20.0, 0.005), (0.5, 0.5)]
)
def test_deflection_is_that_of_the_mass(tau, beta):
    # lenstronomy's profile with our alpha_Rs has the total mass that we asked for.
    mass, scale, sigma_crit = 3e7, 0.02, 2e11
    alpha = deflection_at_scale_radius(
        np.array([mass]),
        np.array([scale]),
        np.array([tau * scale]),
        np.array([beta * scale]),
        sigma_crit,
    )[0]
    rho = TNFWC().alpha2rho0(alpha, scale, beta * scale, tau * scale * (1.0 + 1e-7)) * sigma_crit
    radii = np.geomspace(1e-4, 1e4, 12) * scale
    total = mass_profile(lambda r: TNFWC.density(r, scale, rho, beta * scale, tau * scale), radii)[
        -1
    ]
    assert total == pytest.approx(mass, rel=2e-4)
