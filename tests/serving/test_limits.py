from dlens_tf.models.registry import FRONT_ENDS, given_to
from dlens_tf.serving.limits import limits_of_use
from dlens_tf.simulation.recipes import CLASSES, RECIPES


def text(name, classes, front_end="flux"):
    return "\n".join(limits_of_use(RECIPES[name], classes, front_end))


def test_every_recipe_has_limits():
    for recipe in RECIPES.values():
        limits = limits_of_use(recipe, recipe.classes, "flux")
        assert len(limits) >= 4
        assert all(limit.endswith(".") for limit in limits)
    assert {c for recipe in RECIPES.values() for c in recipe.classes} == set(CLASSES)


def test_fixed_lenses_are_named():
    for name in RECIPES:
        is_fixed = name.endswith(("_legacy", "_instrument"))
        limits = text(name, RECIPES[name].classes)
        assert ("says nothing about real lenses" in limits) == is_fixed, name
        assert ("It knows the recipe's priors" in limits) != is_fixed, name


def test_what_the_front_end_is_given_is_said():
    for name in ("model_i_legacy", "model_i"):
        for front_end in FRONT_ENDS:
            said = given_to(front_end, RECIPES[name])
            assert said in limits_of_use(RECIPES[name], ["axion"], front_end)


def test_noise_and_classes():
    assert "have no noise" in text("model_ii_legacy", ["axion"])
    assert "shot noise drawn twice" in text("model_i_legacy", ["axion"])
    assert "of the instrument `euclid_vis`" in text("model_ii", ["axion"])
    both = text("model_ii", ["no_sub", "cdm"])
    assert "lenses without substructure and with subhalos of cold dark matter only" in both
    assert "vortex" not in both
    assert "The vortex is a toy" in text("model_ii", ["axion"])
