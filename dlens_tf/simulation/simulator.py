"""Simulated lenses: pure functions of (recipe, class, seed, index) and the engine.

Example:
    >>> simulator = Simulator(get_recipe("model_ii"))
    >>> lens = simulator.simulate("axion", seed=0, index=7)
    >>> lens.image.shape, lens.parameters["log10_m_axion"]
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from dlens_tf.simulation.engines import make_engine
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.noise import observe
from dlens_tf.simulation.recipes import Recipe
from dlens_tf.simulation.scene import Scene, draw, noise_generator

SIMULATOR_VERSION = "1.0.0"
"""Changes whenever the same (recipe, class, seed, index) would give other bytes."""


@dataclasses.dataclass(frozen=True)
class Lens:
    """A simulated lens.

    Attributes:
      image: float32 [H, W, C], in the recipe's flux unit.
      model: [H, W, C], the noise-free image before the noise law.
      scene: what was drawn.
      metadata: pixel_scale, exposure_time, background_rms (of the first band), z_lens,
        z_source, seed, index, and snr where the recipe has noise.
    """

    image: np.ndarray
    model: np.ndarray
    scene: Scene
    metadata: dict[str, float | int]

    @property
    def dm_class(self) -> str:
        return self.scene.dm_class

    @property
    def parameters(self) -> dict[str, float]:
        return self.scene.parameters


class Simulator:
    """Draws, renders and observes the lenses of a recipe.

    Args:
      recipe: what to simulate.
      engine: one of `engines.ENGINES`.
      galaxies: of the recipe's sources; None for the bundled ones.

    Raises:
      UserError: if the engine is unknown or can't render the recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        engine: str = "lenstronomy",
        galaxies: GalaxyCatalogue | None = None,
    ):
        self.recipe = recipe
        self.galaxies = galaxies
        self.engine = make_engine(engine, recipe, galaxies)

    def simulate(self, dm_class: str, seed: int, index: int) -> Lens:
        """Simulates example `index` of a class.

        Raises:
          UserError: if the recipe has no such class.
        """
        return self.simulate_many(dm_class, seed, [index])[0]

    def simulate_many(self, dm_class: str, seed: int, indices: Iterable[int]) -> list[Lens]:
        """Simulates several examples of a class in one call of the engine.

        Drawing, substructure and noise come from generators of their own, seeded by (recipe
        name, class, seed, index) alone, so any example can be made again by itself.
        """
        indices = list(indices)
        scenes = [draw(self.recipe, dm_class, seed, index, self.galaxies) for index in indices]
        models = self.engine.render(scenes)
        return [
            self._observed(scene, model, seed, index)
            for scene, model, index in zip(scenes, models, indices, strict=True)
        ]

    def _observed(self, scene: Scene, model: np.ndarray, seed: int, index: int) -> Lens:
        recipe = self.recipe
        rng = noise_generator(recipe, scene.dm_class, seed, index)
        observed = observe(model, recipe, rng)
        metadata = {
            "pixel_scale": recipe.instrument.pixel_scale,
            "exposure_time": observed.exposure_time,
            "background_rms": observed.background_rms,
            "z_lens": recipe.z_lens,
            "z_source": recipe.z_source,
            "seed": seed,
            "index": index,
        }
        if observed.snr is not None:
            metadata["snr"] = observed.snr
        return Lens(observed.image.astype(np.float32), model, scene, metadata)
