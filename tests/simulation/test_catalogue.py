import pytest

from dlens_tf.errors import UserError
from dlens_tf.simulation.catalogue import (
    DATASETS,
    DEFAULT_SIZES,
    all_configs,
    get_config,
)
from dlens_tf.simulation.recipes import CLASSES, RECIPES
from dlens_tf.simulation.splits import SPLIT_START

SPECS = {f"{d.name}/{name}": spec for d in DATASETS.values() for name, spec in d.configs.items()}
DEEPLENSE = [name for name, recipe in RECIPES.items() if recipe.dataset == "deeplense"]


def test_published_sizes():
    assert DEFAULT_SIZES["train"] == 30_000 and DEFAULT_SIZES["test"] == 5_000
    assert set(DEFAULT_SIZES) == set(SPLIT_START)


def test_every_recipe_is_in_its_data_set():
    assert set(DATASETS) >= {recipe.dataset for recipe in RECIPES.values()}
    for name, recipe in RECIPES.items():
        assert DATASETS[recipe.dataset].configs[name].recipe is recipe
    assert list(DATASETS) == [spec.name for spec in DATASETS.values()]


def test_deeplense_has_an_axion_and_a_classes_configuration():
    configs = DATASETS["deeplense"].configs
    assert set(configs) == set(DEEPLENSE) | {f"{name}_classes" for name in DEEPLENSE}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_parameters_are_those_of_all_classes(spec):
    shared = set.intersection(
        *(set(spec.recipe.class_parameters(dm_class).names) for dm_class in spec.classes)
    )
    assert set(spec.parameters.names) == shared
    assert spec.recipe.description in spec.description
    assert set(spec.classes) <= set(spec.recipe.classes)


@pytest.mark.parametrize("name", DEEPLENSE)
def test_deeplense_configurations(name):
    axion, classes = (get_config("deeplense", n) for n in (name, f"{name}_classes"))
    assert axion.classes == ("axion",) and classes.classes == ("no_sub", "axion", "cdm")
    assert axion.parameters == axion.recipe.class_parameters("axion")
    assert "log10_m_axion" not in classes.parameters


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
def test_labels_are_class_numbers(dataset):
    assert dataset.labels == CLASSES[: len(dataset.labels)]
    for spec in dataset.configs.values():
        assert set(spec.classes) <= set(dataset.labels)
    assert dataset.version in dataset.release_notes


def test_all_configs_are_those_of_all_data_sets():
    assert all_configs() == tuple(sorted(spec.name for spec in SPECS.values()))
    assert len(set(all_configs())) == len(all_configs())  # a name says which data set it is in


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(UserError, match="unknown data set 'cosmos'; valid: deeplense, dark_matter"):
        get_config("cosmos", "model_ii")
    with pytest.raises(UserError, match="unknown configuration of deeplense 'model_v'; valid: mod"):
        get_config("deeplense", "model_v")


def test_configuration_of_another_data_set_says_where_it_is():
    for dataset, other, config in [
        ("deeplense", "dark_matter", "cdm"),
        ("dark_matter", "deeplense", "model_ii"),
    ]:
        with pytest.raises(UserError) as info:
            get_config(dataset, config)
        assert str(info.value) == (
            f"configuration '{config}' is of data set {other} (--dataset={other}), not {dataset}"
        )
