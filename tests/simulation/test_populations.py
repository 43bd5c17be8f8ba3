"""What can be known without pyHalo; test_populations_pyhalo.py compares with it."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.integrate import quad

from dlens_tf.errors import UserError
from dlens_tf.simulation import cored_halos, populations
from dlens_tf.simulation.cosmology import LensPlane
from dlens_tf.simulation.populations import (
    LOG10_F_SUB_FLOOR,
    MAX_HALOS,
    PARAMETERS,
    SUPPRESSIONS,
    TRUNCATION_RANGE,
    Population,
)
from dlens_tf.simulation.substructure import Halos

PLANE = LensPlane()
VALUES = {
    "sigma_sub": 0.03,
    "shmf_slope": -1.9,
    "log10_m_hm": 7.5,
    "cross_section": 100.0,
    "log10_m_axion": -20.0,
    "theta_E": 1.4,
}
FIELDS = [field.name for field in dataclasses.fields(Halos)][:-1]


def draws(population, number, **values):
    return [
        population.draw(VALUES | values, np.random.default_rng(seed), PLANE)
        for seed in range(number)
    ]


def expected_number(population, suppression=lambda mass: 1.0, low=None, **values):
    """∫ dN/dm dm, by quadrature and with the formula written out anew."""
    values = VALUES | values
    area = math.pi * (population.radius * PLANE.kpc_per_arcsec) ** 2
    host = (10.0**population.log10_m_host / 1e13) ** 0.55 * (0.5 + PLANE.z_lens) ** 0.37
    low = population.log10_mass_range[0] if low is None else low

    def per_dex(log10_m):
        mass = 10.0**log10_m
        law = values["sigma_sub"] * host / 1e8 * (mass / 1e8) ** values["shmf_slope"]
        return area * law * suppression(mass) * mass * math.log(10.0)

    return quad(per_dex, low, population.log10_mass_range[1])[0]


@pytest.mark.parametrize("kind", PARAMETERS)
class TestAllKinds:
    def test_a_seed_makes_the_same_halos(self, kind):
        population = Population(kind, (7.0, 10.0))
        first, again, other = (
            population.draw(VALUES, np.random.default_rng(seed), PLANE) for seed in (3, 3, 4)
        )
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert first.kappa_sheet == again.kappa_sheet
        assert len(first) != len(other) or not np.array_equal(first.x, other.x)

    def test_halos_are_what_engines_take(self, kind):
        population = Population(kind, (6.0, 10.0), radius=2.0)
        for halos in draws(population, 5):
            assert len({len(getattr(halos, name)) for name in FIELDS}) == 1
            for name in FIELDS:
                assert np.all(np.isfinite(getattr(halos, name)))
            assert np.all(np.hypot(halos.x, halos.y) <= 2.0)
            assert min(halos.mass.min(), halos.Rs.min(), halos.alpha_Rs.min()) > 0.0
            tau = halos.r_trunc / halos.Rs
            assert tau.min() > 0.999 * TRUNCATION_RANGE[0]
            assert tau.max() < 1.001 * TRUNCATION_RANGE[1]
            assert np.all((halos.r_core > 0.0) == (kind in ("sidm", "uldm")))
            assert halos.kappa_sheet < 0.0

    def test_the_sheet_takes_out_the_mean_mass(self, kind):
        population = Population(kind, (8.0, 9.5))
        values = {"log10_m_axion": -19.5, "sigma_sub": 0.1}
        halos = draws(population, 600, **values)
        total = np.array([h.mass.sum() for h in halos])
        kappa = total / (math.pi * population.radius**2 * PLANE.sigma_crit)
        error = kappa.std() / math.sqrt(len(kappa))
        assert halos[0].kappa_sheet == halos[1].kappa_sheet
        assert -halos[0].kappa_sheet == pytest.approx(kappa.mean(), abs=3.0 * error)
        assert error < 0.03 * kappa.mean()

    def test_nothing_at_zero_normalisation(self, kind):
        (halos,) = draws(Population(kind), 1, sigma_sub=0.0)
        assert len(halos) == 0 and halos.kappa_sheet == 0.0

    def test_names_what_is_missing(self, kind):
        needed = ("sigma_sub", "shmf_slope", *PARAMETERS[kind])
        for name in needed:
            values = {k: v for k, v in VALUES.items() if k != name}
            with pytest.raises(UserError, match=name):
                Population(kind).draw(values, np.random.default_rng(0), PLANE)


@pytest.mark.parametrize("slope", [-2.0, -1.9, -1.6])
def test_cold_numbers_are_the_integral(slope):
    population = Population("cdm", (7.0, 10.0))
    number = np.array([len(h) for h in draws(population, 200, shmf_slope=slope)])
    expected = expected_number(population, shmf_slope=slope)
    assert number.mean() == pytest.approx(expected, abs=3.0 * math.sqrt(expected / 200))
    assert number.var() == pytest.approx(expected, rel=0.35)  # Poisson


@pytest.mark.parametrize(
    ("kind", "values", "factor"),
    [
        # Lovell 2020, isolated halos: alpha 2.3, beta 0.8, gamma -1.
        ("wdm", {"log10_m_hm": 8.5}, lambda m: 1.0 / (1.0 + (2.3 * 10**8.5 / m) ** 0.8)),
        # Schive et al. 2016: m_0 = 1.6e10 m_22^(-4/3).
        (
            "uldm",
            {"log10_m_axion": -20.5},
            lambda m: (1.0 + (1.6e10 * 10 ** (-2.0) / m) ** 1.1) ** -2.2,
        ),
    ],
)
def test_suppressed_numbers_are_the_integral(kind, values, factor):
    population = Population(kind, (7.0, 10.0))
    number = np.array([len(h) for h in draws(population, 400, **values)])
    expected = expected_number(population, factor, **values)
    # The first coefficient of Lovell's law is rounded: 2.3^0.8 = 1.947 as 1.95.
    error = 3.0 * math.sqrt(expected / 400) + 2e-3 * expected
    assert number.mean() == pytest.approx(expected, abs=error)


def test_a_cut_off_leaves_the_halos_above():
    population = Population("cdm", (6.0, 10.0))
    number = np.array([len(h) for h in draws(population, 200, log10_m_cut=8.0)])
    expected = expected_number(population, low=8.0)
    assert number.mean() == pytest.approx(expected, abs=3.0 * math.sqrt(expected / 200))
    # A cut-off below the range changes nothing.
    (same,), (cut,) = draws(population, 1), draws(population, 1, log10_m_cut=5.0)
    np.testing.assert_array_equal(same.mass, cut.mass)


def test_the_least_mass_of_ultralight_halos():
    # 4.4e7 m_22^-1.5 solar masses today: at 3e-24 eV none of the population's range is left.
    (none,) = draws(Population("uldm", (7.0, 9.0)), 1, log10_m_axion=-23.5)
    assert len(none) == 0 and none.kappa_sheet == 0.0


def test_warm_halos_are_fewer_and_less_concentrated():
    factor = SUPPRESSIONS["wdm"].concentration_factor(np.array([1e8]), np.array([1.0]), 1e8)
    assert factor[0] == pytest.approx(61.0**-0.17)  # Bose et al. 2016, equation 17
    counts, radii = [], []
    for kind in ("cdm", "wdm"):
        halos = draws(Population(kind, (9.0, 9.01)), 400, log10_m_hm=8.0)
        counts.append(sum(len(h) for h in halos))
        # Of halos stripped to little, Rs says nothing.
        whole = [h.Rs[h.r_trunc > h.Rs] for h in halos]
        radii.append(np.median(np.concatenate(whole)))
    assert counts[1] < counts[0] and radii[1] > radii[0]


def test_self_interaction_leaves_mass_and_place():
    population = [Population(kind, (7.0, 10.0)) for kind in ("cdm", "sidm")]
    (cold,), (cored,) = (draws(p, 1) for p in population)
    for name in ("x", "y", "mass"):
        np.testing.assert_array_equal(getattr(cold, name), getattr(cored, name))


def test_cores_follow_the_cross_section():
    population = Population("sidm", (9.0, 10.0))
    medians = [
        np.median(np.concatenate([h.r_core for h in draws(population, 40, cross_section=s)]))
        for s in (0.0, 1.0, 10.0, 40.0)
    ]
    assert np.all(np.diff(medians) > 0.0)
    (halos,) = draws(population, 1, cross_section=0.0)
    np.testing.assert_allclose(halos.r_core / halos.Rs, cored_halos.CORE_RANGE[0])


def test_deflections_have_the_bound_mass():
    # Far outside, a halo deflects as a point of its mass: by lenstronomy's own formulae.
    from lenstronomy.LensModel.lens_model import LensModel

    for kind, name in (("cdm", "TNFW"), ("sidm", "TNFWC"), ("uldm", "TNFWC")):
        (halos,) = draws(Population(kind, (8.0, 10.0)), 1)
        for i in range(6):
            lens = {k: getattr(halos, k)[i] for k in ("Rs", "alpha_Rs", "r_trunc", "r_core")} | {
                "center_x": 0.0,
                "center_y": 0.0,
            }
            if name == "TNFW":
                del lens["r_core"]
            far = 3e3 * max(lens["r_trunc"], lens["Rs"])
            alpha = LensModel([name]).alpha(far, 0.0, [lens])[0]
            point = float(PLANE.einstein_radius(halos.mass[i])) ** 2 / far
            assert alpha == pytest.approx(point, rel=5e-3)


def test_halos_gather_about_the_centre():
    # Surface density of the cored NFW host by integrating its density along the line of sight.
    population = Population("cdm", (7.0, 10.0))
    radii = np.concatenate([np.hypot(h.x, h.y) for h in draws(population, 100)])
    density = 200.0 * PLANE.astropy_cosmology.critical_density(0.5).to_value("Msun / kpc3")
    r_host = (3.0 * 10**13.3 / (4.0 * math.pi * density)) ** (1 / 3) / PLANE.kpc_per_arcsec
    scale = r_host / 6.0

    def surface(r):
        def along(z):
            x = math.hypot(r, z) / scale
            return 1.0 / ((x + 0.25) * (1.0 + x) ** 2)

        return quad(along, 0.0, 50.0 * scale)[0]

    inner = quad(lambda r: r * surface(r), 0.0, 1.5)[0]
    share = inner / (inner + quad(lambda r: r * surface(r), 1.5, 3.0)[0])
    error = math.sqrt(share * (1.0 - share) / len(radii))
    assert share > 0.25 + 5.0 * error  # more than uniform
    assert np.mean(radii < 1.5) == pytest.approx(share, abs=3.0 * error)


def test_small_halos_can_be_left_out():
    full, bright = Population("cdm"), Population("cdm", log10_min_bound_mass=6.0)
    (every,), (some,) = draws(full, 1), draws(bright, 1)
    assert some.mass.min() >= 1e6
    np.testing.assert_array_equal(some.mass, every.mass[every.mass >= 1e6])
    assert some.kappa_sheet == every.kappa_sheet


def test_label_is_the_mass_within_the_einstein_radius():
    population, zeros = Population("cdm"), np.zeros(3)
    halos = dataclasses.replace(
        Halos.none(),
        **{name: zeros for name in FIELDS}
        | {"x": np.array([0.0, 1.0, 2.0]), "mass": np.array([1e8, 3e8, 5e8])},
    )
    lens = math.pi * 1.4**2 * PLANE.sigma_crit
    label = population.labels(halos, VALUES, PLANE)["log10_f_sub"]
    assert label == pytest.approx(math.log10(4e8 / lens))
    empty = population.labels(Halos.none(), VALUES, PLANE)["log10_f_sub"]
    assert empty == pytest.approx(LOG10_F_SUB_FLOOR)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "hot"}, "hot"),
        ({"log10_mass_range": (10.0, 6.0)}, "must rise"),
        ({"log10_mass_range": (-1.0, 6.0)}, "within 5 and 11"),
        ({"log10_m_host": 9.0}, "log10_m_host"),
        ({"radius": -1.0}, "radius"),
        ({"radius": math.nan}, "radius"),
        ({"log10_min_bound_mass": 12.0}, "log10_min_bound_mass"),
    ],
)
def test_refuses_what_cannot_be(arguments, message):
    with pytest.raises(UserError, match=message):
        Population(**({"kind": "cdm"} | arguments))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sigma_sub": -0.1}, "sigma_sub"),
        ({"sigma_sub": math.nan}, "sigma_sub"),
        ({"shmf_slope": 1.9}, "shmf_slope"),
        ({"log10_m_hm": 1e8}, "log10_m_hm"),
        ({"log10_m_cut": 10.5}, "log10_m_cut"),
        ({"sigma_sub": 1.0}, f"more than {MAX_HALOS}"),
    ],
)
def test_refuses_parameters_out_of_bounds(values, message):
    with pytest.raises(UserError, match=message) as error:
        draws(Population("wdm"), 1, **values)
    assert "\n" not in str(error.value)


def test_draws_are_fast():
    # 20 times faster than pyHalo's half a second or more would be 25 ms.
    import time

    population, best = Population("cdm", (7.0, 10.0)), math.inf
    draws(population, 1)
    for _ in range(5):
        start = time.perf_counter()
        draws(population, 10)
        best = min(best, (time.perf_counter() - start) / 10)
    assert best < 6e-3


def test_tables_are_made_once():
    for table in (populations._setting, populations._radii, populations._mean_bound_fraction):
        table.cache_clear()
    draws(Population("cdm"), 3)
    assert populations._setting.cache_info().misses == 1
    assert populations._mean_bound_fraction.cache_info().misses == 1
