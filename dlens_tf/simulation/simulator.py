"""One simulated lens: a pure function of (recipe, class, seed, index).

Example:
    >>> lens = simulate(get_recipe("model_ii"), "axion", seed=0, index=7)
    >>> lens.image.shape, lens.parameters["log10_m_axion"]
"""

import dataclasses
import zlib

import numpy as np

from dlens_tf.simulation import lenstronomy_engine
from dlens_tf.simulation.noise import observe
from dlens_tf.simulation.recipes import CLASSES, Recipe
from dlens_tf.simulation.substructure import PointMasses, draw_subhalos, vortex_points

SIMULATOR_VERSION = "1.0.0"
"""Changes whenever the same (recipe, class, seed, index) would give other bytes."""


@dataclasses.dataclass(frozen=True)
class Lens:
    """A simulated lens.

    Attributes:
      image: float32 [H, W, 1], in the recipe's flux unit.
      model: float64 [H, W], the noise-free image before the noise law.
      dm_class: "no_sub", "axion" or "cdm".
      parameters: value of each parameter of the class.
      points: the substructure.
      metadata: pixel_scale, exposure_time, background_rms, z_lens, z_source, seed, index, and
        snr where the recipe has noise.
    """

    image: np.ndarray
    model: np.ndarray
    dm_class: str
    parameters: dict[str, float]
    points: PointMasses
    metadata: dict[str, float | int]


def _generators(recipe: Recipe, dm_class: str, seed: int, index: int) -> list[np.random.Generator]:
    """Independent generators for parameters, substructure and noise."""
    key = [zlib.crc32(recipe.name.encode()), CLASSES.index(dm_class), seed, index]
    return [np.random.default_rng(child) for child in np.random.SeedSequence(key).spawn(3)]


def simulate(recipe: Recipe, dm_class: str, seed: int, index: int) -> Lens:
    """Simulates example `index` of a class.

    The parameters, substructure and noise come from generators of their own, seeded by
    (recipe name, class, seed, index) alone, so any example can be made again by itself.

    Raises:
      UserError: if the class is unknown.
    """
    parameter_set = recipe.class_parameters(dm_class)
    parameter_rng, substructure_rng, noise_rng = _generators(recipe, dm_class, seed, index)
    parameters = parameter_set.sample(parameter_rng)
    if dm_class == "axion":
        points = vortex_points(
            recipe.vortex, parameters["log10_m_axion"], parameters["phi_vortex"], recipe
        )
    elif dm_class == "cdm":
        points = draw_subhalos(recipe.subhalos, substructure_rng, recipe)
    else:
        points = PointMasses.none()
    points = points.shifted(parameters["center_x"], parameters["center_y"])
    model = lenstronomy_engine.render(recipe, parameters, points)
    observed = observe(model, recipe, noise_rng)
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
    image = observed.image.astype(np.float32)[..., np.newaxis]
    return Lens(image, model, dm_class, parameters, points, metadata)
