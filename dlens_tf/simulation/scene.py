"""What there is to see, before any engine looks at it: a drawn lens.

A `Scene` is a pure function of (recipe, class, seed, index), so any example can be made again
by itself, and two engines given the same scene must make the same image.
"""

import dataclasses
import zlib

import numpy as np

from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.recipes import CLASSES, Recipe
from dlens_tf.simulation.splits import split_of
from dlens_tf.simulation.substructure import Halos, Line, PointMasses


@dataclasses.dataclass(frozen=True)
class Scene:
    """A drawn lens.

    Attributes:
      dm_class: the kind of dark matter.
      parameters: value of each parameter of the class, derived labels included.
      points: point masses, shifted to the centre of the main lens; a `Line` for a vortex.
      halos: extended halos, shifted likewise.
      galaxy: row of the source in the galaxy catalogue; None for a Sersic source.
    """

    dm_class: str
    parameters: dict[str, float]
    points: PointMasses | Line
    halos: Halos
    galaxy: int | None = None

    def without_substructure(self) -> "Scene":
        """The same lens, smooth."""
        return dataclasses.replace(self, points=PointMasses.none(), halos=Halos.none())


def _generator(recipe: Recipe, dm_class: str, seed: int, index: int, use: int):
    """One of the independent generators of an example, by its use."""
    key = [zlib.crc32(recipe.name.encode()), CLASSES.index(dm_class), seed, index]
    return np.random.default_rng(np.random.SeedSequence(key, spawn_key=(use,)))


_PARAMETERS, _SUBSTRUCTURE, _NOISE, _GALAXY = range(4)


def noise_generator(recipe: Recipe, dm_class: str, seed: int, index: int) -> np.random.Generator:
    """The generator of an example's noise."""
    return _generator(recipe, dm_class, seed, index, _NOISE)


def draw(
    recipe: Recipe,
    dm_class: str,
    seed: int,
    index: int,
    galaxies: GalaxyCatalogue | None = None,
) -> Scene:
    """Draws example `index` of a class.

    Args:
      recipe: priors and laws.
      dm_class: one of the recipe's classes.
      seed: of the data set.
      index: of the example; it also decides the split, and with it the source galaxies.
      galaxies: where the recipe's sources come from, if it takes real galaxies; None for the
        bundled ones.

    Raises:
      UserError: if the class is unknown.
    """
    parameter_set = recipe.class_parameters(dm_class)
    parameters = parameter_set.sample(_generator(recipe, dm_class, seed, index, _PARAMETERS))
    law = recipe.substructure[dm_class]
    rng = _generator(recipe, dm_class, seed, index, _SUBSTRUCTURE)
    substructure = law.draw(parameters, rng, recipe.plane)
    if parameter_set.derived:
        labels = law.labels(substructure, parameters, recipe.plane)
        parameters |= {name: labels[name] for name in parameter_set.derived}
    galaxy = None
    if recipe.has_galaxies:
        rows = (galaxies or GalaxyCatalogue.open(None)).split(split_of(index))
        galaxy = int(_generator(recipe, dm_class, seed, index, _GALAXY).choice(rows))
    center = parameters["center_x"], parameters["center_y"]
    points, halos = PointMasses.none(), Halos.none()
    if isinstance(substructure, Halos):
        halos = substructure.shifted(*center)
    else:
        points = substructure.shifted(*center)
    return Scene(dm_class, parameters, points, halos, galaxy)
