"""Engines: what turns drawn lenses into noise-free images.

`lenstronomy` is the reference and renders one lens at a time. `fast` renders batches in
TensorFlow and must agree with it to 1e-4 of the peak. Both render the same `Scene`s.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dlens_tf.errors import choose
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.psf import kernel_on_grid
from dlens_tf.simulation.recipes import Recipe
from dlens_tf.simulation.scene import Scene

ENGINE_VERSIONS = {"lenstronomy": "1.0.0", "fast": "1.0.0"}
"""They change whenever an engine would make other bytes of the same scene."""
ENGINES = tuple(ENGINE_VERSIONS)


class Engine(Protocol):
    """A renderer of one recipe."""

    def render(self, scenes: Sequence[Scene]) -> np.ndarray:
        """Noise-free images [N, H, W, C] of the scenes, float32 or float64, e-/s per pixel.

        Model I: in its own amplitude unit.
        """


def make_engine(name: str, recipe: Recipe, galaxies: GalaxyCatalogue | None = None) -> Engine:
    """An engine for a recipe.

    Args:
      name: one of `ENGINES`.
      recipe: what it is to render.
      galaxies: of the recipe's sources; None for the bundled ones.

    Raises:
      UserError: if the engine is unknown or can't render the recipe, or a PSF does not fit.
    """
    choose("engine", name, ENGINES)
    for band in recipe.bands:
        kernel_on_grid(band, recipe.supersampling, recipe.num_pix)
    if name == "fast":
        from dlens_tf.simulation.fast_engine import FastEngine

        return FastEngine(recipe, galaxies)
    from dlens_tf.simulation.lenstronomy_engine import LenstronomyEngine

    return LenstronomyEngine(recipe, galaxies)
