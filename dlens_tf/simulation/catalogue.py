"""The data sets that can be built: which recipe, which classes, how many examples."""

import dataclasses

from dlens_tf.parameters import ParameterSet
from dlens_tf.simulation.recipes import CLASSES, RECIPES, Recipe

VERSION = "1.0.0"
RELEASE_NOTES = {"1.0.0": "Models I, II and III: legacy, with instrument noise, and physical."}

# Splits draw from index ranges that never meet, however large a split is made.
SPLIT_START = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}
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


def _specs() -> list[ConfigSpec]:
    axion = [ConfigSpec(name, recipe, ("axion",)) for name, recipe in RECIPES.items()]
    classes = [
        ConfigSpec(name + CLASSES_SUFFIX, recipe, CLASSES) for name, recipe in RECIPES.items()
    ]
    return axion + classes


CONFIGS: dict[str, ConfigSpec] = {spec.name: spec for spec in _specs()}
