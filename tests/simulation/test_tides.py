import numpy as np
import pytest
from scipy.integrate import quad

from dlens_tf.simulation import tides


@pytest.mark.parametrize("tau", [0.01, 0.3, 1.0, 7.0])
def test_truncated_mass_is_the_integral(tau):
    def integrand(x):
        return x / (1.0 + x) ** 2 * tau**2 / (tau**2 + x**2)

    expected = quad(integrand, 0.0, tau)[0] + quad(integrand, tau, np.inf)[0]
    assert tides.truncated_nfw_mass(tau) == pytest.approx(expected, rel=1e-6)


def test_infall_redshift_follows_its_law():
    quantile = (np.arange(20_000) + 0.5) / 20_000
    z = tides.infall_redshift(quantile, np.full(20_000, 1e7), 10**13.3, 0.5)
    # A mass ratio below 1e-5 counts as 1e-5: mean 3.2588, deviation 1.7460 above the host.
    mean = 3.35549949 / (1 + 3.20546995 * 5**-2.91075587)
    std = 1.97880156 / (1 + 4.17390702 * 5**-2.14428416)
    assert z.min() >= 0.5 and z.max() <= 15.5
    assert np.median(z) == pytest.approx(0.5 + mean, abs=0.1)  # the cut at 0 moves it a little
    from scipy.stats import truncnorm

    law = truncnorm(-mean / std, (15.0 - mean) / std, loc=0.5 + mean, scale=std)
    np.testing.assert_allclose(z, law.ppf(quantile), atol=1e-9)


def test_bound_fraction_follows_the_tabulated_law():
    # At a node of the table: 5 × 0.9 Gyr and the fourth concentration.
    from scipy.stats import johnsonsu

    quantile = (np.arange(2000) + 0.5) / 2000
    log10_c = np.linspace(np.log10(2.0), np.log10(384.0), 10)[3]
    from scipy.special import ndtri

    fraction = tides.bound_fraction(
        ndtri(quantile), np.full(2000, 4.5), np.full(2000, 10.0**log10_c)
    )
    np.testing.assert_allclose(np.log10(fraction), johnsonsu(2.684, 6.066).ppf(quantile))


def test_earlier_infall_strips_more():
    time = np.array([1.0, 3.0, 5.0, 7.0, 8.0, 20.0])
    median = tides.bound_fraction(np.zeros(6), time, np.full(6, 15.0))
    assert np.all(np.diff(median[:5]) < 0.0)
    assert median[5] == tides.bound_fraction(np.zeros(1), np.array([8.1]), np.array([15.0]))[0]


def test_truncation_keeps_the_bound_mass():
    # f_t from the formula of Du et al. 2024 with the mass ratio of a halo of concentration 12.
    bound, c = np.array([1e-3, 0.03, 0.4, 1.0]), np.full(4, 12.0)
    tau = tides.truncation(bound, c)
    assert np.all(np.diff(tau) > 0.0)
    x = bound * tides.nfw_mass(12.0) / (1.1605002 * tides.nfw_mass(20.587820037799197))
    f_t = 1.75826635 * x**0.23376409 / (1.0 + 0.75826635 * x**0.46752818)
    total = f_t * tides.truncated_nfw_mass(tau) / tides.nfw_mass(12.0)
    np.testing.assert_allclose(total, bound, rtol=1e-4)
