"""The data sets that can be built: which recipe, which classes, how many examples."""

import dataclasses
import functools
from collections.abc import Mapping

from dlens_tf.errors import UserError, choose
from dlens_tf.parameters import ParameterSet
from dlens_tf.simulation.recipes import CLASSES, RECIPES, Recipe

DEFAULT_SIZES = {"train": 30_000, "validation": 3_000, "test": 5_000}
CLASSES_SUFFIX = "_classes"


@dataclasses.dataclass(frozen=True)
class ConfigSpec:
    """A configuration: a recipe and which classes of substructure are in it."""

    name: str
    recipe: Recipe
    classes: tuple[str, ...]

    @property
    def parameters(self) -> ParameterSet:
        """The parameters that every class of the configuration has."""
        if len(self.classes) == 1:
            return self.recipe.class_parameters(self.classes[0])
        return self.recipe.shared_parameters

    @property
    def description(self) -> str:
        return f"{self.recipe.description}; classes: {', '.join(self.classes)}"


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A data set: its configurations and what its labels mean.

    Attributes:
      name: of the TFDS builder.
      version: of all configurations.
      release_notes: by version.
      labels: names of the integer labels, the first ones of `recipes.CLASSES`.
      engine: what renders it unless it is asked otherwise.
      configs: by name.
    """

    name: str
    version: str
    release_notes: Mapping[str, str]
    labels: tuple[str, ...]
    engine: str
    configs: Mapping[str, ConfigSpec]


_DEEPLENSE = [recipe for recipe in RECIPES.values() if recipe.dataset == "deeplense"]
_DARK_MATTER = [recipe for recipe in RECIPES.values() if recipe.dataset == "dark_matter"]


def _axion_configs() -> dict[str, ConfigSpec]:
    """For each recipe the axion lenses by its name, and all classes as `<recipe>_classes`."""
    specs = [ConfigSpec(recipe.name, recipe, ("axion",)) for recipe in _DEEPLENSE]
    specs += [
        ConfigSpec(recipe.name + CLASSES_SUFFIX, recipe, recipe.classes) for recipe in _DEEPLENSE
    ]
    return {spec.name: spec for spec in specs}


def _population_configs() -> dict[str, ConfigSpec]:
    """One configuration for each recipe; all but Model IV's have one class."""
    return {recipe.name: ConfigSpec(recipe.name, recipe, recipe.classes) for recipe in _DARK_MATTER}


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in [
        DatasetSpec(
            name="deeplense",
            version="1.0.0",
            release_notes={
                "1.0.0": "Models I, II and III: legacy, with instrument noise, and physical."
            },
            labels=CLASSES[:3],
            engine="lenstronomy",
            configs=_axion_configs(),
        ),
        DatasetSpec(
            name="dark_matter",
            version="1.0.0",
            release_notes={"1.0.0": "Populations of CDM, WDM, SIDM and ultralight dark matter."},
            labels=CLASSES,
            engine="fast",  # hundreds of halos take lenstronomy a second
            configs=_population_configs(),
        ),
    ]
}


def get_config(dataset: str, config: str) -> ConfigSpec:
    """A data set's configuration; raises a `UserError` where there is none of that name."""
    spec = DATASETS[choose("data set", dataset, DATASETS)]
    homes = [name for name in DATASETS if config in DATASETS[name].configs]
    if homes and dataset not in homes:
        home = homes[0]
        raise UserError(
            f"configuration '{config}' is of data set {home} (--dataset={home}), not {dataset}"
        )
    return spec.configs[choose(f"configuration of {dataset}", config, spec.configs)]


@functools.cache
def all_configs() -> tuple[str, ...]:
    """Names of the configurations of all data sets, sorted."""
    return tuple(sorted(name for spec in DATASETS.values() for name in spec.configs))
