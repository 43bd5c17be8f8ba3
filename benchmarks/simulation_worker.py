"""What the processes of the simulation benchmark do: prepare an engine, compare, measure.

Each process is bound to a core of its own, with one thread, or has the GPU. Measurements include
drawing the scenes.
"""

import functools
import importlib
import math
import os
import time
from typing import NamedTuple

import numpy as np
from dlens_tf.benchmarks import cores
from dlens_tf.benchmarks.processes import peak_memory_mb

from dlens_tf.errors import UserError
from dlens_tf.quiet import silence_tensorflow
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.generate import follow_parent
from dlens_tf.simulation.noise import observe
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.scene import draw, noise_generator

SEED = 0


class Case(NamedTuple):
    """What is simulated: an engine, a recipe, a class, in batches of `images`."""

    engine: str
    recipe: str
    dm_class: str
    images: int


class Rates(NamedTuple):
    """Images a second; `noisy` is None for a recipe without noise."""

    noise_free: float
    noisy: float | None


class Start(NamedTuple):
    """What it takes to start an engine on a recipe.

    Attributes:
      refused: why the engine can't render the recipe; None if it can.
      compile_seconds: that the first batch of each class took longer than the second.
      memory_mb: highest memory of the process.
      imports_mb: of this, what it took before the engine was made.
    """

    refused: str | None
    compile_seconds: float
    memory_mb: float
    imports_mb: float


class _Lenstronomy:
    """The reference: one lens at a time, noise by NumPy."""

    def __init__(self, recipe, galaxies):
        from dlens_tf.simulation.lenstronomy_engine import LenstronomyEngine

        self._recipe = recipe
        self._engine = LenstronomyEngine(recipe, galaxies)

    def render(self, scenes):
        return self._engine.render(scenes)

    def observe(self, models, dm_class, indices):
        for model, index in zip(models, indices, strict=True):
            observe(model, self._recipe, noise_generator(self._recipe, dm_class, SEED, index))


class _Fast:
    """The fast engine: whole batches, noise in the graph. Results are waited for."""

    def __init__(self, recipe, galaxies):
        from dlens_tf.simulation.fast_engine import FastEngine

        self._recipe = recipe
        self._engine = FastEngine(recipe, galaxies)

    def render(self, scenes):
        models = self._engine.render_packed(self._engine.pack(scenes))
        models.numpy()
        return models

    def observe(self, models, dm_class, indices):
        generators = [noise_generator(self._recipe, dm_class, SEED, index) for index in indices]
        seeds = [rng.integers(-(2**31), 2**31, 2, dtype=np.int32) for rng in generators]
        self._engine.observe(models, np.stack(seeds)).numpy()


_ENGINES = {"lenstronomy": _Lenstronomy, "fast": _Fast}


@functools.lru_cache(maxsize=4)
def _recipe_and_galaxies(name: str):
    recipe = get_recipe(name)
    return recipe, GalaxyCatalogue.open(None) if recipe.has_galaxies else None


@functools.lru_cache(maxsize=4)
def _engine(name: str, recipe: str):
    return _ENGINES[name](*_recipe_and_galaxies(recipe))


def _scenes(case: Case, indices) -> list:
    recipe, galaxies = _recipe_and_galaxies(case.recipe)
    return [draw(recipe, case.dm_class, SEED, index, galaxies) for index in indices]


def start(core: int | None) -> None:
    """Begins a process: bound to a core and without GPU, or free and with it if `core` is None."""
    follow_parent()
    silence_tensorflow()
    if core is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.sched_setaffinity(0, [core])


def gpu_name() -> str | None:
    """The first GPU that TensorFlow sees; None without one."""
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return None
    return tf.config.experimental.get_device_details(devices[0]).get("device_name", "GPU")


def _simulate(case: Case, indices) -> tuple[float, float]:
    """Simulates one batch; returns the seconds without noise, and of the noise."""
    engine, recipe = _engine(case.engine, case.recipe), get_recipe(case.recipe)
    begin = time.perf_counter()
    models = engine.render(_scenes(case, indices))
    rendered = time.perf_counter()
    if recipe.has_noise:
        engine.observe(models, case.dm_class, indices)
    return rendered - begin, time.perf_counter() - rendered


def prepare(cases: list[Case], most_seconds: float) -> Start:
    """Simulates a batch of each case, of one engine and recipe, for the first time.

    lenstronomy, whose memory does not grow with the batch, stops after `most_seconds`.
    """
    if cases[0].engine == "fast":
        cores.bind(sorted(os.sched_getaffinity(0)))
        importlib.import_module("dlens_tf.simulation.fast_engine")
    else:
        importlib.import_module("lenstronomy.SimulationAPI.sim_api")
    imports_mb = peak_memory_mb()
    compile_seconds = 0.0
    try:
        _engine(cases[0].engine, cases[0].recipe)
    except UserError as error:
        return Start(str(error), compile_seconds, imports_mb, imports_mb)
    for case in cases:
        if case.engine == "fast":
            first, second = (sum(_simulate(case, range(case.images))) for _ in range(2))
            compile_seconds += max(first - second, 0.0)
            continue
        begin = time.perf_counter()
        for index in range(case.images):
            _simulate(case, [index])
            if time.perf_counter() - begin > most_seconds / len(cases):
                break
    return Start(None, compile_seconds, peak_memory_mb(), imports_mb)


def warm_up(case: Case) -> float:
    """Simulates a little, so that nothing is done for the first time later.

    Returns:
      Seconds that the smallest measurement takes: a batch, or a lens of lenstronomy.
    """
    indices = range(case.images) if case.engine == "fast" else range(1)
    return min(sum(_simulate(case, indices)) for _ in range(2))


def largest_difference(case: Case, images: int) -> float:
    """Between the engines, over the first lenses of a case, as a fraction of the image's peak."""
    scenes = _scenes(case, range(case.images))
    fast = _engine("fast", case.recipe).render(scenes).numpy()[:images]
    reference = _engine("lenstronomy", case.recipe).render(scenes[:images])
    difference = np.abs(fast - reference).max(axis=(1, 2, 3))
    return float((difference / reference.max(axis=(1, 2, 3))).max())


def measure(case: Case, number: int, repeat: int) -> Rates:
    """Simulates `number` batches, or lenses of lenstronomy, and times them.

    All measurements are of the same `images` lenses; those of lenstronomy, which may be of fewer,
    go on where the one before stopped.
    """
    if case.engine == "fast":
        batches = [range(case.images)] * number
    else:
        first = repeat * number
        batches = [[index % case.images] for index in range(first, first + number)]
    seconds = [_simulate(case, indices) for indices in batches]
    images = sum(map(len, batches))
    noise_free = math.fsum(s[0] for s in seconds)
    noise = math.fsum(s[1] for s in seconds)
    noisy = images / (noise_free + noise) if get_recipe(case.recipe).has_noise else None
    return Rates(images / noise_free, noisy)
