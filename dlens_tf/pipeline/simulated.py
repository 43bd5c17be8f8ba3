"""Batches that are simulated while the model trains: no training data on disk, none seen twice.

Example n of the stream, counted over all steps, is lens `splits.STREAM_START + n // K` of class
n mod K, for K classes: a pure function of (seed, n), which no stored split holds. Drawing and
rendering run in tf.data's background, so that they overlap with training.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from dlens_tf.errors import UserError, choose
from dlens_tf.pipeline import augment
from dlens_tf.pipeline.batches import BatchSpec, ImageBatches, Rows
from dlens_tf.simulation.engines import ENGINES, make_engine
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.recipes import CLASSES, Recipe
from dlens_tf.simulation.scene import draw
from dlens_tf.simulation.simulator import Simulator
from dlens_tf.simulation.splits import STREAM_START


class LensKey(NamedTuple):
    """What makes a lens of a recipe: its class, the seed and its index."""

    dm_class: str
    seed: int
    index: int


class _Source(Protocol):
    """What simulates lenses, noise included."""

    def __call__(self, keys: Sequence[LensKey]) -> tuple[np.ndarray, list[dict[str, float]]]:
        """Images float32 [N, H, W, C] of some lenses, and the parameters of each."""


class _ReferenceSource:
    """One lens at a time by lenstronomy."""

    def __init__(self, recipe: Recipe, galaxies: GalaxyCatalogue | None):
        self._simulator = Simulator(recipe, "lenstronomy", galaxies)

    def __call__(self, keys: Sequence[LensKey]) -> tuple[np.ndarray, list[dict[str, float]]]:
        lenses = [self._simulator.simulate(*key) for key in keys]
        return np.stack([lens.image for lens in lenses]), [lens.parameters for lens in lenses]


class _FastSource:
    """Whole batches by the fast engine; the noise is drawn by it too."""

    def __init__(self, recipe: Recipe, galaxies: GalaxyCatalogue | None):
        self._recipe = recipe
        self._galaxies = galaxies
        self._engine = make_engine("fast", recipe, galaxies)

    def __call__(self, keys: Sequence[LensKey]) -> tuple[np.ndarray, list[dict[str, float]]]:
        scenes = [draw(self._recipe, *key, self._galaxies) for key in keys]
        models = self._engine.render_packed(self._engine.pack(scenes))
        images = self._engine.observe(models, np.array([_noise_seed(key) for key in keys]))
        return images.numpy(), [scene.parameters for scene in scenes]


@functools.cache
def _noise_key(dm_class: str, seed: int) -> int:
    """The first half of the noise seeds of a class."""
    return int(np.random.SeedSequence([CLASSES.index(dm_class), seed]).generate_state(1)[0])


def _noise_seed(key: LensKey) -> np.ndarray:
    """The seed of a lens's noise, int32 [2]; no other lens of the stream has it."""
    words = _noise_key(key.dm_class, key.seed), key.index % 2**32
    return np.array(words, np.uint32).view(np.int32)


_SOURCES = {"lenstronomy": _ReferenceSource, "fast": _FastSource}


class SimulatedBatches(ImageBatches):
    """Batches of freshly simulated lenses.

    Args:
      recipe: what to simulate.
      spec: how to make batches; its seed is that of the lenses too.
      examples_per_epoch: images that count as an epoch.
      engine: one of `engines.ENGINES`.
      galaxies: of the recipe's sources; None for the bundled ones.

    Attributes:
      spec: as given.
      num_examples: examples in an epoch.

    Raises:
      UserError: if the engine or a class is unknown, the engine can't render the recipe, or an
        epoch is smaller than a batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        spec: BatchSpec,
        examples_per_epoch: int,
        engine: str = "fast",
        galaxies: GalaxyCatalogue | None = None,
    ):
        super().__init__(spec, recipe.image_shape)
        if examples_per_epoch < spec.batch_size:
            raise UserError(
                f"batch_size {spec.batch_size} is larger than the {examples_per_epoch} images of "
                "an epoch (--examples_per_epoch)"
            )
        self.num_examples = examples_per_epoch
        self._classes = [
            choose(f"class of recipe {recipe.name}", name, recipe.classes)
            for name in spec.classes or recipe.classes
        ]
        self._simulate: _Source = _SOURCES[choose("engine", engine, ENGINES)](recipe, galaxies)
        self._failure: UserError | None = None

    def keys(self, first: int, number: int) -> list[LensKey]:
        """The lenses of examples first, …, first + number - 1 of the stream."""
        classes = len(self._classes)
        return [
            LensKey(self._classes[n % classes], self.spec.seed, STREAM_START + n // classes)
            for n in range(first, first + number)
        ]

    def sample_images(self, number: int = 512) -> np.ndarray:
        """Images of the first steps, before augmentation."""
        size = self.spec.batch_size
        batches = [self._simulate(self.keys(i, size))[0] for i in range(0, number, size)]
        return np.concatenate(batches)[:number]

    def _rows(self, start_step: int, part: slice) -> Iterator[Rows]:
        size = self.spec.batch_size
        for step in itertools.count(start_step):
            keys = self.keys(step * size + part.start, part.stop - part.start)
            try:
                images, drawn = self._simulate(keys)
            except UserError as error:
                self._failure = error  # TensorFlow keeps only its text, amid a traceback
                raise
            # For the whole batch, so that turns don't depend on who draws them.
            rng = np.random.default_rng([self.spec.seed, step])
            turns = augment.draw_turns(self.spec.augmentation, rng, size)
            yield Rows(
                images,
                {n: np.array([values[n] for values in drawn], np.float32) for n in self._names},
                augment.Turns(*(values[part] for values in turns)),
            )

    @contextmanager
    def explained_errors(self) -> Iterator[None]:
        """A context in which an error of the simulation is raised as it was."""
        try:
            yield
        except tf.errors.OpError as error:
            if self._failure is None:
                raise
            raise self._failure from error
