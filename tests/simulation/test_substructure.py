import dataclasses

import numpy as np
import pytest
from scipy import stats

from dlens_tf.simulation.cosmology import einstein_radius
from dlens_tf.simulation.recipes import PointSubhalos, get_recipe
from dlens_tf.simulation.substructure import PointMasses, draw_subhalos, vortex_points

LEGACY = get_recipe("model_i_legacy")
PHYSICAL = get_recipe("model_ii")


def masses(points: PointMasses, recipe) -> np.ndarray:
    one = einstein_radius(1.0, recipe.z_lens, recipe.z_source, recipe.cosmology, recipe.distances)
    return (points.theta_E / one) ** 2


@pytest.mark.parametrize(("log10_m", "half_length"), [(-24.0, 3.0), (-23.0, 0.3), (-22.0, 0.03)])
@pytest.mark.parametrize("recipe", [LEGACY, PHYSICAL], ids=lambda r: r.name)
def test_vortex(recipe, log10_m, half_length):
    angle = 0.7
    points = vortex_points(recipe.vortex, log10_m, angle, recipe)
    assert len(points) == 100
    np.testing.assert_allclose(masses(points, recipe).sum(), 3e10)
    assert np.ptp(points.theta_E) == 0.0
    along = points.x * np.cos(angle) + points.y * np.sin(angle)
    across = points.y * np.cos(angle) - points.x * np.sin(angle)
    np.testing.assert_allclose(across, 0.0, atol=1e-14)
    np.testing.assert_allclose(along[[0, -1]], [-half_length, half_length])
    np.testing.assert_allclose(np.diff(along), 2 * half_length / 99)


def test_bead_radius_of_the_published_vortex():
    points = vortex_points(LEGACY.vortex, -23.0, 0.0, LEGACY)
    np.testing.assert_allclose(points.theta_E, 0.02220, atol=5e-6)


def test_half_a_turn_leaves_the_vortex_as_it_is():
    here = vortex_points(LEGACY.vortex, -23.0, 0.4, LEGACY)
    there = vortex_points(LEGACY.vortex, -23.0, 0.4 + np.pi, LEGACY)
    np.testing.assert_allclose(here.x, there.x[::-1], atol=1e-14)
    np.testing.assert_allclose(here.y, there.y[::-1], atol=1e-14)


@pytest.mark.parametrize(
    ("recipe", "slope"), [(LEGACY, -0.9), (PHYSICAL, -1.9)], ids=["legacy", "physical"]
)
def test_subhalos_follow_their_laws(recipe, slope):
    rng = np.random.default_rng(1)
    subhalos = dataclasses.replace(recipe.subhalos, number=4000)
    points = draw_subhalos(subhalos, rng, recipe)
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
    totals = [masses(draw_subhalos(LEGACY.subhalos, rng, LEGACY), LEGACY).sum() for _ in range(800)]
    np.testing.assert_allclose(np.mean(totals), mean, atol=4 * np.std(totals) / np.sqrt(800))


def test_number_of_subhalos():
    rng = np.random.default_rng(3)
    fixed = [len(draw_subhalos(LEGACY.subhalos, rng, LEGACY)) for _ in range(20)]
    assert set(fixed) == {25}
    drawn = np.array([len(draw_subhalos(PHYSICAL.subhalos, rng, PHYSICAL)) for _ in range(2000)])
    np.testing.assert_allclose(drawn.mean(), 25.0, atol=4 * 5 / np.sqrt(2000))
    np.testing.assert_allclose(drawn.var(), 25.0, rtol=0.15)


def test_no_subhalos_is_not_an_error():
    points = draw_subhalos(
        PointSubhalos(number=0, poisson=False, slope=-1.9), np.random.default_rng(0), PHYSICAL
    )
    assert len(points) == 0 == len(PointMasses.none())


def test_shifted_moves_positions_only():
    points = PointMasses(np.array([1.0]), np.array([2.0]), np.array([0.1]))
    moved = points.shifted(0.5, -1.0)
    assert (moved.x[0], moved.y[0], moved.theta_E[0]) == (1.5, 1.0, 0.1)
