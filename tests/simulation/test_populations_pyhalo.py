"""The sampler against pyHalo, the reference: same cosmology, redshifts, host and parameters.

pyHalo draws halo by halo, in about 2 ms each: the realizations of a preset are drawn once. The
host's concentration and the scaling with its mass are set to those of the CDM preset for both
presets, as the sampler has them; halos along the line of sight are left out.
"""

import functools
import itertools
import warnings

import numpy as np
import pytest
from scipy.stats import ks_2samp

from dlens_tf.simulation.cosmology import LensPlane
from dlens_tf.simulation.populations import SUPPRESSIONS, TRUNCATION_RANGE, Population

PLANE = LensPlane(0.5, 1.0, (70.0, 0.3, 0.05))
RANGE = (7.0, 10.0)
REALIZATIONS = 200
DRAWS = 2000
PARAMETERS = {
    "cdm": {"sigma_sub": 0.006, "shmf_slope": -1.9},
    "wdm": {"sigma_sub": 0.02, "shmf_slope": -1.85, "log10_m_hm": 8.0},
}
COLUMNS = ("mass", "radius", "Rs", "alpha_Rs", "r_trunc", "realization")


def pyhalo(name):
    """Imports a module of pyHalo, which switches off warnings for the whole process."""
    import importlib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"pyHalo.{name}")


def arguments():
    """pyHalo's defaults are dicts that it changes in place: each call needs its own."""
    names = (
        "kwargs_concentration_model_subhalos",
        "kwargs_concentration_model_fieldhalos",
        "kwargs_truncation_model_subhalos",
        "kwargs_truncation_model_fieldhalos",
        "kwargs_infall_model",
    )
    h0, omega_m, omega_b = PLANE.cosmology
    return {name: {} for name in names} | {
        "z_lens": PLANE.z_lens,
        "z_source": PLANE.z_source,
        "kwargs_cosmo": {
            "H0": h0,
            "Om0": omega_m,
            "Ob0": omega_b,
            "sigma8": 0.81,
            "ns": 0.965,
            "flat": True,
            "power_law": False,
        },
        "log_mlow": RANGE[0],
        "log_mhigh": RANGE[1],
        "LOS_normalization": 0.0,
        "cone_opening_angle_arcsec": 6.0,
        "c_host": 6.0,
        "host_scaling_factor": 0.55,
        "redshift_scaling_factor": 0.37,
    }


def realization(kind, seed, **changes):
    values = PARAMETERS[kind] | changes
    common = arguments() | {
        "sigma_sub": values["sigma_sub"],
        "shmf_log_slope": values["shmf_slope"],
    }
    np.random.seed(seed)  # pyHalo knows no generators
    if kind == "cdm":
        return pyhalo("PresetModels.cdm").CDM(two_halo_contribution=False, **common)
    extra = {"kwargs_mass_function_subhalos": {}, "kwargs_mass_function_fieldhalos": {}}
    return pyhalo("PresetModels.wdm").WDM(log_mc=values["log10_m_hm"], **common, **extra)


@pytest.fixture(scope="module")
def reference():
    """By kind: halos of all realizations, one row each."""
    truncation = pyhalo("Halos.tidal_truncation")
    with pytest.MonkeyPatch.context() as patch:
        # What takes time and none of it is used here: a table that every realization makes
        # anew, and halos along the line of sight, of which there are none.
        table = functools.cache(truncation.tau_mf_interpolation)
        patch.setattr(truncation, "tau_mf_interpolation", table)
        for module, name in (("line_of_sight", "LineOfSight"), ("two_halo", "TwoHaloContribution")):
            renderer = getattr(pyhalo(f"Rendering.{module}"), name)
            patch.setattr(renderer, "render", lambda self: (*(np.empty(0) for _ in range(5)), []))

        @functools.cache
        def draw(kind):
            rows = []
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for seed in range(REALIZATIONS):
                    rows += [(*lens(halo), seed) for halo in realization(kind, seed).halos]
            return dict(zip(COLUMNS, np.array(rows).T, strict=True))

        yield draw


def lens(halo):
    """A halo's columns; pyHalo computes them when asked."""
    values = halo.lenstronomy_params[0][0]
    radius = np.hypot(halo.x, halo.y)
    return (halo.mass, radius, *(values[name] for name in ("Rs", "alpha_Rs", "r_trunc")))


@functools.cache
def sample(kind):
    """The same columns from the sampler, with `DRAWS` draws; mass is that at infall."""
    population, columns = Population(kind, RANGE), {name: [] for name in COLUMNS}
    masses = []
    with pytest.MonkeyPatch.context() as patch:
        from dlens_tf.simulation import populations

        draw = populations._MassFunction.sample

        def remember(law, rng):
            masses.append(draw(law, rng))
            return masses[-1]

        patch.setattr(populations._MassFunction, "sample", remember)
        for seed in range(DRAWS):
            halos = population.draw(PARAMETERS[kind], np.random.default_rng(seed), PLANE)
            columns["radius"].append(np.hypot(halos.x, halos.y))
            columns["realization"].append(np.full(len(halos), seed))
            for name in ("Rs", "alpha_Rs", "r_trunc"):
                columns[name].append(getattr(halos, name))
    columns["mass"] = masses
    return {name: np.concatenate(values) for name, values in columns.items()}


def bound_mass(columns):
    """Total mass of the truncated profile from its lensing parameters, solar masses."""
    tau = columns["r_trunc"] / columns["Rs"]
    mass = tau**2 / (tau**2 + 1) ** 2 * ((tau**2 - 1) * np.log(tau) + np.pi * tau - tau**2 - 1)
    amplitude = columns["alpha_Rs"] * columns["Rs"] / (1.0 - np.log(2.0))
    return np.pi * PLANE.sigma_crit * amplitude * mass


def totals(values, realization, number):
    return np.bincount(realization.astype(int), weights=values, minlength=number)


def agree(ours, theirs, sigmas=3.0):
    """Whether two samples' means agree within 3 standard errors; returns the deviation."""
    error = np.hypot(ours.std() / np.sqrt(len(ours)), theirs.std() / np.sqrt(len(theirs)))
    deviation = (ours.mean() - theirs.mean()) / error
    print(f"{ours.mean():.5g} and {theirs.mean():.5g} ± {error:.2g}: {deviation:+.2f} sigma")
    assert abs(deviation) < sigmas


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cdm", "wdm"])
class TestAgainstRealizations:
    def test_number_of_halos(self, reference, kind):
        ours, theirs = sample(kind), reference(kind)
        ones = (np.ones_like(c["mass"]) for c in (ours, theirs))
        agree(
            totals(next(ones), ours["realization"], DRAWS),
            totals(next(ones), theirs["realization"], REALIZATIONS),
        )

    def test_mass_function(self, reference, kind):
        ours, theirs = sample(kind), reference(kind)
        edges = np.linspace(*RANGE, 7)
        for low, high in itertools.pairwise(edges):
            counts = [
                totals(
                    (np.log10(c["mass"]) >= low) & (np.log10(c["mass"]) < high),
                    c["realization"],
                    number,
                )
                for c, number in ((ours, DRAWS), (theirs, REALIZATIONS))
            ]
            agree(*counts, sigmas=3.5)  # the largest of six

    def test_total_masses(self, reference, kind):
        ours, theirs = sample(kind), reference(kind)
        for weight in (lambda c: c["mass"], bound_mass):
            agree(
                totals(weight(ours), ours["realization"], DRAWS),
                totals(weight(theirs), theirs["realization"], REALIZATIONS),
            )

    def test_radial_profile(self, reference, kind):
        ours, theirs = sample(kind), reference(kind)
        for low, high in ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 3.0)):
            shares = [
                totals((c["radius"] >= low) & (c["radius"] < high), c["realization"], number)
                for c, number in ((ours, DRAWS), (theirs, REALIZATIONS))
            ]
            agree(*shares, sigmas=3.5)

    @pytest.mark.parametrize("name", ["mass", "radius", "Rs", "alpha_Rs", "r_trunc", "bound"])
    def test_distributions(self, reference, kind, name):
        columns = []
        for c in (sample(kind), reference(kind)):
            values = bound_mass(c) if name == "bound" else c[name]
            if name in ("Rs", "alpha_Rs"):
                # Further stripped halos are given with another scale radius, the same mass.
                values = values[c["r_trunc"] / c["Rs"] > TRUNCATION_RANGE[0] * 1.0001]
            columns.append(values)
        result = ks_2samp(*columns)
        print(f"{kind} {name}: D {result.statistic:.4f}, p {result.pvalue:.3f}")
        assert result.pvalue > 1e-3

    def test_concentrations(self, reference, kind):
        # From the scale radius: r_200 of the infall mass over Rs.
        columns = []
        for c in (sample(kind), reference(kind)):
            kept = c["r_trunc"] / c["Rs"] > TRUNCATION_RANGE[0] * 1.0001
            columns.append((c["mass"] ** (1.0 / 3.0) / c["Rs"])[kept])
        result = ks_2samp(*columns)
        print(f"{kind} concentration: D {result.statistic:.4f}, p {result.pvalue:.3f}")
        assert result.pvalue > 1e-3


@pytest.mark.slow
def test_speed():
    # pyHalo as it comes, with the lens parameters of its halos, which are what we draw.
    import time

    def best(repeats, action):
        times = []
        for seed in range(repeats):
            start = time.perf_counter()
            number = action(seed)
            times.append(time.perf_counter() - start)
        return min(times), number

    def theirs(seed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return len([lens(halo) for halo in realization("cdm", seed, sigma_sub=0.03).halos])

    def ours(seed):
        values = PARAMETERS["cdm"] | {"sigma_sub": 0.03}
        return len(Population("cdm", RANGE).draw(values, np.random.default_rng(seed), PLANE))

    ours(0)  # makes the tables
    (fast, drawn), (slow, rendered) = best(100, ours), best(4, theirs)
    print(f"{drawn} halos in {1e3 * fast:.2f} ms, pyHalo {rendered} in {1e3 * slow:.0f} ms")
    assert slow > 20.0 * fast


@pytest.mark.parametrize(
    ("kind", "numbers", "concentrations"),
    [("wdm", "LOVELL2020", "BOSE2016"), ("uldm", "SHMF_SCHIVE2016", "LAROCHE2022")],
)
def test_suppressions(kind, numbers, concentrations):
    mass, z, log10_m_0 = np.logspace(6.0, 10.0, 30), np.full(30, 2.5), 8.3
    _, values = pyhalo("mass_function_models").preset_mass_function_models(numbers)
    law = pyhalo("Rendering.MassFunctions.mass_function_base").WDMPowerLaw
    turnover = law(6.0, 10.0, -1.9, True, 1.0, log10_m_0, **values).turnover(mass)
    ours = SUPPRESSIONS[kind].number_factor(mass, 10.0**log10_m_0)
    np.testing.assert_allclose(ours, turnover, rtol=1e-12)
    model, values = pyhalo("concentration_models").preset_concentration_models(concentrations)
    cosmology = PLANE.astropy_cosmology
    factor = model(cosmology, log_mc=log10_m_0, **values).suppression(mass, z)
    ours = SUPPRESSIONS[kind].concentration_factor(mass, z, 10.0**log10_m_0)
    np.testing.assert_allclose(ours, factor, rtol=1e-12)


@pytest.mark.parametrize("log10_m_axion", [-22.0, -20.5])
def test_solitons(log10_m_axion):
    from dlens_tf.simulation import cored_halos

    cosmology = PLANE.astropy_cosmology
    omega_m = float(cosmology.Om0), float(cosmology.Om(0.5))
    least = pyhalo("utilities").MinHaloMassULDM(log10_m_axion, cosmology, -99.0).m_min(0.5)
    ours = cored_halos.min_soliton_mass(log10_m_axion, 0.5, *omega_m)
    assert ours == pytest.approx(least, rel=1e-9)
    halo_class = pyhalo("Halos.HaloModels.ULDM").ULDMFieldHalo
    halo = halo_class.__new__(halo_class)
    halo.z = 0.5
    halo._lens_cosmo = type("C", (), {"cosmo": type("A", (), {"astropy": cosmology})})
    core = halo._core_radius(log10_m_axion, 3e8, 1.0 / 3.0)
    ours = cored_halos.soliton_radius(3e8, log10_m_axion, 0.5, *omega_m)
    assert ours == pytest.approx(core, rel=1e-9)


def test_gravothermal_core():
    # pyHalo fits the same paper's halos by the same profile in another way.
    from dlens_tf.simulation.cored_halos import gravothermal_shape

    evolution = pyhalo("Halos.HaloModels.NFW_core_trunc").rc_evolution
    tau = np.array([0.1, 0.2, 0.4, 0.6])
    np.testing.assert_allclose(gravothermal_shape(tau)[1], evolution(tau), rtol=0.12)
