import dataclasses

import numpy as np
import pytest
from scipy import stats

from dlens_tf.errors import UserError
from dlens_tf.simulation.cosmology import einstein_radius
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.substructure import (
    Halos,
    Line,
    Nothing,
    PointMasses,
    PointSubhalos,
    Vortex,
)

LEGACY = get_recipe("model_i_legacy")
PHYSICAL = get_recipe("model_ii")


def masses(points: PointMasses, recipe) -> np.ndarray:
    one = einstein_radius(1.0, recipe.z_lens, recipe.z_source, recipe.cosmology, recipe.distances)
    return (points.theta_E / one) ** 2


def vortex(recipe, log10_m: float, angle: float) -> Line:
    parameters = {"log10_m_axion": log10_m, "phi_vortex": angle}
    return recipe.substructure["axion"].draw(parameters, np.random.default_rng(0), recipe.plane)


def subhalos(recipe, rng: np.random.Generator, **changes) -> PointMasses:
    law = dataclasses.replace(recipe.substructure["cdm"], **changes)
    return law.draw({}, rng, recipe.plane)


@pytest.mark.parametrize(("log10_m", "half_length"), [(-24.0, 3.0), (-23.0, 0.3), (-22.0, 0.03)])
@pytest.mark.parametrize("recipe", [LEGACY, PHYSICAL], ids=lambda r: r.name)
def test_vortex(recipe, log10_m, half_length):
    angle = 0.7
    points = vortex(recipe, log10_m, angle)
    assert len(points) == 100
    np.testing.assert_allclose(masses(points, recipe).sum(), 3e10)
    assert np.ptp(points.theta_E) == 0.0
    along = points.x * np.cos(angle) + points.y * np.sin(angle)
    across = points.y * np.cos(angle) - points.x * np.sin(angle)
    np.testing.assert_allclose(across, 0.0, atol=1e-14)
    np.testing.assert_allclose(along[[0, -1]], [-half_length, half_length])
    np.testing.assert_allclose(np.diff(along), 2 * half_length / 99)


def test_bead_radius_of_the_published_vortex():
    points = vortex(LEGACY, -23.0, 0.0)
    np.testing.assert_allclose(points.theta_E, 0.02220, atol=5e-6)


def test_half_a_turn_leaves_the_vortex_as_it_is():
    here = vortex(LEGACY, -23.0, 0.4)
    there = vortex(LEGACY, -23.0, 0.4 + np.pi)
    np.testing.assert_allclose(here.x, there.x[::-1], atol=1e-14)
    np.testing.assert_allclose(here.y, there.y[::-1], atol=1e-14)


@pytest.mark.parametrize(
    ("recipe", "slope"), [(LEGACY, -0.9), (PHYSICAL, -1.9)], ids=["legacy", "physical"]
)
def test_subhalos_follow_their_laws(recipe, slope):
    rng = np.random.default_rng(1)
    points = subhalos(recipe, rng, number=4000)
    mass = masses(points, recipe)
    assert mass.min() >= 1e6 * (1 - 1e-9) and mass.max() <= 1e10 * (1 + 1e-9)

    def mass_cdf(m):
        power = slope + 1
        return (m**power - 1e6**power) / (1e10**power - 1e6**power)

    assert stats.kstest(mass, mass_cdf).pvalue > 0.01
    radius = np.hypot(points.x, points.y)
    assert stats.kstest(radius, stats.uniform(0.25, 1.75).cdf).pvalue > 0.01
    angle = np.arctan2(points.y, points.x)
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 0.01
    # The laws of mass and radius are independent.
    assert stats.spearmanr(mass, radius).pvalue > 0.01


def test_mean_total_mass_of_the_published_subhalos():
    # 25 masses with dN/dm ∝ m^-0.9: mean (0.1/1.1)(b^1.1 - a^1.1)/(b^0.1 - a^0.1), 3.8e10 in all.
    a, b = 1e6, 1e10
    mean = 25 * (0.1 / 1.1) * (b**1.1 - a**1.1) / (b**0.1 - a**0.1)
    np.testing.assert_allclose(mean, 3.8e10, rtol=0.02)
    rng = np.random.default_rng(2)
    totals = [masses(subhalos(LEGACY, rng), LEGACY).sum() for _ in range(800)]
    np.testing.assert_allclose(np.mean(totals), mean, atol=4 * np.std(totals) / np.sqrt(800))


def test_number_of_subhalos():
    rng = np.random.default_rng(3)
    fixed = [len(subhalos(LEGACY, rng)) for _ in range(20)]
    assert set(fixed) == {25}
    drawn = np.array([len(subhalos(PHYSICAL, rng)) for _ in range(2000)])
    np.testing.assert_allclose(drawn.mean(), 25.0, atol=4 * 5 / np.sqrt(2000))
    np.testing.assert_allclose(drawn.var(), 25.0, rtol=0.15)


def test_no_subhalos_is_not_an_error():
    points = subhalos(PHYSICAL, np.random.default_rng(0), number=0, poisson=False)
    assert len(points) == 0 == len(PointMasses.none())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mass_range": (-1e6, 1e10)}, r"mass_range of subhalos .* got -1e\+06, 1e\+10"),
        ({"mass_range": (0.0, 1e10)}, "mass_range of subhalos must rise from above 0, got 0"),
        ({"mass_range": (1e10, 1e6)}, "mass_range"),
        ({"radius_range": (-0.1, 2.0)}, "radius_range of subhalos .* got -0.1, 2"),
        ({"radius_range": (2.0, 2.0)}, "radius_range"),
        ({"mass_range": (1e6, float("nan"))}, "mass_range"),
    ],
)
def test_impossible_subhalos_are_refused(changes, message):
    with pytest.raises(UserError, match=message) as error:
        PointSubhalos(25, False, -1.9, **changes)
    assert "\n" not in str(error.value)


def test_negative_vortex_mass_is_refused():
    law = Vortex(mass=-3e10)
    with pytest.raises(UserError, match="masses must not be negative"):
        law.draw({"log10_m_axion": -23.0, "phi_vortex": 0.0}, None, PHYSICAL.plane)


def test_shifted_moves_positions_only():
    points = PointMasses(np.array([1.0]), np.array([2.0]), np.array([0.1]))
    moved = points.shifted(0.5, -1.0)
    assert (moved.x[0], moved.y[0], moved.theta_E[0]) == (1.5, 1.0, 0.1)


def test_line_knows_where_its_masses_are():
    """Whoever sums a line by its symmetry gets the masses that the arrays hold."""
    line = Line(7, 0.6, 0.4, 0.02).shifted(0.3, -0.2)
    assert isinstance(line, Line) and len(line) == 7
    along = np.arange(-3, 4) * 0.2
    np.testing.assert_allclose(line.x, line.middle[0] + along * np.cos(line.angle), atol=1e-15)
    np.testing.assert_allclose(line.y, line.middle[1] + along * np.sin(line.angle), atol=1e-15)
    assert line.middle == (0.3, -0.2) and line.half_length == 0.6
    np.testing.assert_array_equal(line.theta_E, 0.02)


def test_nothing_draws_nothing():
    rng = np.random.default_rng(0)
    assert len(Nothing().draw({}, rng, PHYSICAL.plane)) == 0
    assert rng.uniform() == np.random.default_rng(0).uniform()  # nothing was taken from it


def test_halos_shift_and_count():
    assert len(Halos.none()) == 0 and Halos.none().kappa_sheet == 0.0
    columns = np.arange(1.0, 15.0).reshape(7, 2)
    halos = Halos(*columns, kappa_sheet=-0.01)
    moved = halos.shifted(1.0, -2.0)
    assert len(moved) == 2
    np.testing.assert_array_equal(moved.x, columns[0] + 1.0)
    np.testing.assert_array_equal(moved.y, columns[1] - 2.0)
    for name, column in zip(
        ("mass", "Rs", "alpha_Rs", "r_trunc", "r_core"), columns[2:], strict=True
    ):
        np.testing.assert_array_equal(getattr(moved, name), column)
    assert moved.kappa_sheet == -0.01
