"""Sums of Plummer lenses against lenstronomy's own profiles."""

import numpy as np
import pytest
from lenstronomy.LensModel.lens_model import LensModel

from dlens_tf.errors import UserError
from dlens_tf.simulation import halo_poles
from dlens_tf.simulation.substructure import Halos, PointMasses


def one_halo(Rs, alpha_Rs, tau, core):
    values = (0.1, -0.2, 1e8, Rs, alpha_Rs, tau * Rs, core * Rs)
    return Halos(*(np.array([value]) for value in values))


def summed(entries, x, y):
    """The deflection by the formula in `halo_entries`, in double precision."""
    alpha = np.zeros((2, len(x)))
    for entry in entries.astype(np.float64):
        dx, dy = x - entry[0], y - entry[1]
        s = (dx**2 + dy**2) * entry[2]
        numerator = np.polyval(entry[3 : 3 + halo_poles.POLES], s)
        denominator = np.polyval([1.0, *entry[3 + halo_poles.POLES :]], s)
        alpha += np.stack([dx, dy]) * numerator / denominator
    return alpha


def around(rng, low, high, number=200):
    """Positions about (0.1, -0.2) at radii from low to high, uniform in the logarithm."""
    radius = np.exp(rng.uniform(np.log(low), np.log(high), number))
    angle = rng.uniform(0.0, 2.0 * np.pi, number)
    return 0.1 + radius * np.cos(angle), -0.2 + radius * np.sin(angle)


# Largest error as a fraction of the largest deflection, by brightness and core.
@pytest.mark.parametrize(
    ("alpha_Rs", "cored", "allowed"),
    [(1e-2, False, 3e-3), (1e-2, True, 2e-3), (5e-5, False, 3e-3), (5e-5, True, 6e-3)],
)
def test_entries_deflect_as_lenstronomy(alpha_Rs, cored, allowed):
    rng = np.random.default_rng(5)
    worst = []
    for _ in range(40):
        tau, core = 10.0 ** rng.uniform(-1.4, 1.9), 10.0 ** rng.uniform(-2.4, 0.4) * cored
        Rs = 10.0 ** rng.uniform(-1.5, -0.3)
        x, y = around(rng, 1e-2, 5.0)
        kwargs = {"center_x": 0.1, "center_y": -0.2, "Rs": Rs, "alpha_Rs": alpha_Rs}
        kwargs |= {"r_trunc": tau * Rs} | ({"r_core": core * Rs} if cored else {})
        expected = LensModel(["TNFWC" if cored else "TNFW"]).alpha(x, y, [kwargs])
        entries, owner = halo_poles.halo_entries(one_halo(Rs, alpha_Rs, tau, core))
        assert set(owner) == {0} and entries.dtype == np.float32
        error = np.hypot(*(summed(entries, x, y) - expected)).max()
        worst.append(error / np.hypot(*expected).max())
    assert max(worst) < allowed
    assert np.median(worst) < 0.3 * allowed


def test_point_masses_deflect_as_point_masses():
    points = PointMasses(np.array([0.1]), np.array([-0.2]), np.array([0.03]))
    x, y = around(np.random.default_rng(1), 1e-3, 5.0)
    square = (x - 0.1) ** 2 + (y + 0.2) ** 2
    expected = 0.03**2 * np.stack([x - 0.1, y + 0.2]) / square
    alpha = summed(halo_poles.point_entries(points), x, y)
    np.testing.assert_allclose(alpha, expected, rtol=3e-4, atol=1e-7)


def test_owners_tell_whose_each_entry_is():
    rng = np.random.default_rng(2)
    number = 30
    halos = Halos(
        x=rng.normal(size=number),
        y=rng.normal(size=number),
        mass=np.ones(number),
        Rs=np.full(number, 0.1),
        alpha_Rs=10.0 ** rng.uniform(-6.0, -2.0, number),
        r_trunc=np.full(number, 0.2),
        r_core=np.where(np.arange(number) % 3 == 0, 0.02, 0.0),
    )
    entries, owner = halo_poles.halo_entries(halos)
    np.testing.assert_allclose(entries[:, 0], halos.x[owner], rtol=1e-6)
    counts = np.bincount(owner, minlength=number)
    np.testing.assert_array_equal(counts, np.where(halos.alpha_Rs < 3e-4, 2, 3))


@pytest.mark.parametrize(
    ("tau", "core", "name"), [(1e-5, 0.0, "r_trunc"), (300.0, 0.0, "r_trunc"), (1.0, 5.0, "r_core")]
)
def test_shapes_that_do_not_fit_are_refused(tau, core, name):
    with pytest.raises(UserError, match=rf"{name} / Rs .* use --engine=lenstronomy"):
        halo_poles.halo_entries(one_halo(0.1, 1e-3, tau, core))


def test_halos_too_heavy_for_the_fits_are_refused():
    with pytest.raises(UserError, match=r"alpha_Rs in arcsec .* use --engine=lenstronomy"):
        halo_poles.halo_entries(one_halo(0.5, 0.3, 5.0, 0.0))


def test_far_away_nothing_overflows_in_single_precision():
    entries, _ = halo_poles.halo_entries(one_halo(1e-3, 1e-3, 0.1, 0.0))
    s = np.float32(10.0**2) * entries[:, 2]
    assert np.all(np.isfinite(s**halo_poles.POLES))
