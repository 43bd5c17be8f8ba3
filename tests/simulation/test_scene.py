import dataclasses

import numpy as np
import pytest
from scipy import stats

from dlens_tf.errors import UserError
from dlens_tf.parameters import Choice, Constant, Normal, Uniform
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.recipes import RECIPES, get_recipe
from dlens_tf.simulation.scene import draw, noise_generator
from dlens_tf.simulation.splits import SPLIT_START, STREAM_START
from dlens_tf.simulation.substructure import Halos, Line

CASES = [(name, dm_class) for name, recipe in RECIPES.items() for dm_class in recipe.classes]


def same(first, second) -> bool:
    """Whether two scenes agree in every bit."""
    if (first.dm_class, first.parameters, first.galaxy) != (
        second.dm_class, second.parameters, second.galaxy,
    ):  # fmt: skip
        return False
    for mine, other in ((first.points, second.points), (first.halos, second.halos)):
        for field in dataclasses.fields(mine):
            if not np.array_equal(getattr(mine, field.name), getattr(other, field.name)):
                return False
    return True


@pytest.mark.parametrize(("name", "dm_class"), CASES)
def test_pure_function_of_recipe_class_seed_index(name, dm_class):
    recipe = get_recipe(name)
    first = draw(recipe, dm_class, 7, 1_000_000_003)
    other = draw(recipe, dm_class, 7, 1_000_000_004)
    assert same(first, draw(recipe, dm_class, 7, 1_000_000_003))
    assert not same(first, other)
    assert set(first.parameters) == set(recipe.class_parameters(dm_class).names)


@pytest.mark.parametrize(("name", "dm_class"), CASES)
def test_parameters_follow_their_priors(name, dm_class):
    recipe = get_recipe(name)
    # Populations take longer to draw.
    number = 150 if recipe.dataset == "deeplense" else 40
    draws = [draw(recipe, dm_class, 0, index).parameters for index in range(number)]
    for parameter in recipe.class_parameters(dm_class):
        values = np.array([values[parameter.name] for values in draws])
        prior = parameter.prior
        low, high = prior.support
        assert low <= values.min() and values.max() <= high
        if isinstance(prior, Normal):
            law = stats.truncnorm(-prior.cut, prior.cut, prior.mean, prior.std)
        elif isinstance(prior, Uniform):
            law = stats.uniform(low, high - low)
        else:
            if isinstance(prior, Choice):
                assert set(values) <= set(prior.values) and len(set(values)) > 1
            continue
        assert stats.kstest(values, law.cdf).pvalue > 1e-4, parameter.name


def test_every_part_of_the_key_matters(halo_recipe):
    def one(recipe=halo_recipe, dm_class="cdm", seed=0, index=0):
        scene = draw(recipe, dm_class, seed, index)
        return scene.parameters["source_x"], *scene.halos.x[:1], *scene.points.x[:1]

    renamed = dataclasses.replace(halo_recipe, name="other")
    draws = [
        one(), one(renamed), one(dm_class="sidm"), one(dm_class="no_sub"), one(seed=1),
        one(index=1), one(seed=1, index=1), one(seed=2**32), one(index=2**32),
    ]  # fmt: skip
    for column in zip(*(d for d in draws if len(d) > 1), strict=True):
        assert len(set(column)) == len(column)
    assert len({d[0] for d in draws}) == len(draws)


def test_classes_do_not_disturb_each_other(halo_recipe):
    """A class more, before or after, leaves the draws of the others as they are."""
    fewer = dataclasses.replace(
        halo_recipe, substructure={"sidm": halo_recipe.substructure["sidm"]}
    )
    assert same(draw(halo_recipe, "sidm", 1, 5), draw(fewer, "sidm", 1, 5))


def test_substructure_does_not_depend_on_how_many_parameters_were_drawn(halo_recipe):
    fewer = dict(halo_recipe.priors)
    del fewer["gamma_epl"], fewer["sigma_sub"]
    first = draw(halo_recipe, "cdm", 0, 0).halos
    second = draw(dataclasses.replace(halo_recipe, priors=fewer), "cdm", 0, 0).halos
    np.testing.assert_array_equal(first.mass, second.mass)


def test_substructure_goes_with_the_lens_centre(halo_recipe):
    far = {"center_x": Constant(5.0), "center_y": Constant(-7.0)}
    moved = dataclasses.replace(halo_recipe, priors={**halo_recipe.priors, **far})
    halos = draw(moved, "sidm", 0, 3).halos
    radius = np.hypot(halos.x - 5.0, halos.y + 7.0)
    assert radius.min() >= 0.3 and radius.max() <= 1.6  # the law's range
    assert halos.kappa_sheet == -0.01 and len(draw(moved, "sidm", 0, 3).points) == 0


def test_vortex_goes_through_the_lens_centre():
    scene = draw(get_recipe("model_ii"), "axion", 0, 0)
    points, center = scene.points, (scene.parameters["center_x"], scene.parameters["center_y"])
    assert isinstance(points, Line) and len(points) == 100 and len(scene.halos) == 0
    np.testing.assert_allclose([points.x.mean(), points.y.mean()], center)
    np.testing.assert_allclose(points.middle, center)
    angle = np.arctan2(np.ptp(points.y), np.ptp(points.x))
    phi = scene.parameters["phi_vortex"]
    np.testing.assert_allclose(angle, min(phi, np.pi - phi))
    half = 0.03 * 10 ** (-22 - scene.parameters["log10_m_axion"])
    np.testing.assert_allclose(np.hypot(np.ptp(points.x), np.ptp(points.y)), 2 * half)


def test_toy_classes_have_their_substructure():
    recipe = get_recipe("model_ii")
    assert len(draw(recipe, "no_sub", 0, 0).points) == 0
    assert len({len(draw(recipe, "cdm", 0, index).points) for index in range(10)}) > 1
    assert all(draw(recipe, c, 0, 0).galaxy is None for c in recipe.classes)


def test_derived_labels_are_those_of_the_drawn_substructure(halo_recipe):
    scene = draw(halo_recipe, "cdm", 2, 0)
    expected = np.log10(scene.halos.mass.sum()) - 12.0
    np.testing.assert_allclose(scene.parameters["log10_f_sub"], expected)
    assert "log10_f_sub" not in draw(halo_recipe, "no_sub", 2, 0).parameters


def test_without_substructure(halo_recipe):
    scene = draw(halo_recipe, "cdm", 2, 0)
    smooth = scene.without_substructure()
    assert len(smooth.points) == len(smooth.halos) == 0 and smooth.halos.kappa_sheet == 0.0
    assert smooth.parameters == scene.parameters and smooth.dm_class == "cdm"
    assert len(scene.halos) == 6 and isinstance(scene.halos, Halos)


def test_galaxies_are_those_of_the_split(colour_recipe):
    """No galaxy of the test split is ever a source in training, stored or streamed."""
    galaxies = GalaxyCatalogue.open(None)
    drawn = {}
    for split, start in {**SPLIT_START, "stream": STREAM_START}.items():
        scenes = [draw(colour_recipe, "no_sub", 0, start + i, galaxies) for i in range(60)]
        drawn[split] = {scene.galaxy for scene in scenes}
    for split in SPLIT_START:
        assert drawn[split] == set(galaxies.split(split).tolist())  # all of them, none besides
    assert drawn["stream"] == drawn["train"]
    assert not drawn["test"] & (drawn["train"] | drawn["validation"] | drawn["stream"])


def test_bundled_galaxies_are_the_default(colour_recipe):
    bundled = draw(colour_recipe, "cdm", 0, 4, GalaxyCatalogue.open(None))
    assert same(draw(colour_recipe, "cdm", 0, 4), bundled)


def test_noise_has_a_generator_of_its_own():
    recipe = get_recipe("model_ii")
    first, second = (
        noise_generator(recipe, "axion", 0, index).normal(size=400) for index in (0, 1)
    )
    again = noise_generator(recipe, "axion", 0, 0).normal(size=400)
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2


def test_unknown_class_lists_the_valid_ones():
    with pytest.raises(UserError, match="unknown class 'wdm'; valid: no_sub, axion, cdm"):
        draw(get_recipe("model_ii"), "wdm", 0, 0)
