"""Concentrations against colossus, which shares no code with ours."""

import numpy as np
import pytest

from dlens_tf.simulation.concentration import (
    SIGMA_8,
    SPECTRAL_INDEX,
    median_log_concentration,
    transfer_function,
)

COSMOLOGIES = [(70.0, 0.3, 0.05), (67.5, 0.309, 0.049)]


def set_colossus(h0, omega_m, omega_b):
    from colossus.cosmology import cosmology

    return cosmology.setCosmology(
        "test",
        {
            "flat": True,
            "H0": h0,
            "Om0": omega_m,
            "Ob0": omega_b,
            "sigma8": SIGMA_8,
            "ns": SPECTRAL_INDEX,
            "persistence": "",
        },
    )


@pytest.mark.parametrize("cosmology", COSMOLOGIES)
def test_concentrations_match_colossus(cosmology):
    from colossus.halo.concentration import concentration

    set_colossus(*cosmology)
    mass, grid = np.logspace(6.0, 10.0, 9), median_log_concentration(cosmology)
    for z, tolerance in ((0.2, 1e-3), (0.5, 1e-3), (2.0, 1e-3), (5.0, 1e-3), (10.0, 3e-3)):
        expected = concentration(mass * cosmology[0] / 100.0, "200c", z, model="diemer19")
        ours = np.exp(grid(np.log10(mass), np.full(mass.shape, np.log1p(z))))
        np.testing.assert_allclose(ours, expected, rtol=tolerance)


def test_transfer_function_matches_colossus():
    from colossus.cosmology import power_spectrum

    k = np.logspace(-4.0, 3.0, 200)
    expected = power_spectrum.modelEisenstein98(k, 0.7, 0.3, 0.05, 2.7255)
    np.testing.assert_allclose(transfer_function(k, 0.7, 0.3, 0.05), expected, rtol=1e-6)


def test_small_halos_are_more_concentrated():
    grid = median_log_concentration(COSMOLOGIES[0])
    values = grid(np.linspace(6.0, 10.0, 9), np.full(9, np.log(1.5)))
    assert np.all(np.diff(values) < 0.0)
