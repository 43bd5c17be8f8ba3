import itertools

import pytest

from dlens_tf.simulation.catalogue import CONFIGS, DEFAULT_SIZES, SPLIT_START
from dlens_tf.simulation.recipes import CLASSES, RECIPES


def test_published_sizes():
    assert DEFAULT_SIZES["train"] == 30_000 and DEFAULT_SIZES["test"] == 5_000
    assert set(DEFAULT_SIZES) == {"train", "validation", "test"}


def test_split_ranges_never_meet():
    starts = sorted(SPLIT_START.values())
    assert set(SPLIT_START) == set(DEFAULT_SIZES)
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert min(gaps) >= 1000 * max(DEFAULT_SIZES.values())


def test_every_recipe_has_an_axion_and_a_classes_configuration():
    assert set(CONFIGS) == set(RECIPES) | {f"{name}_classes" for name in RECIPES}


@pytest.mark.parametrize("spec", CONFIGS.values(), ids=CONFIGS)
def test_parameters_are_those_of_all_classes(spec):
    if spec.name.endswith("_classes"):
        assert spec.classes == CLASSES
        assert "log10_m_axion" not in spec.parameters
        for dm_class in CLASSES:
            assert set(spec.parameters.names) <= set(spec.recipe.class_parameters(dm_class).names)
    else:
        assert spec.classes == ("axion",)
        assert spec.parameters == spec.recipe.class_parameters("axion")
    assert spec.recipe.description in spec.description
