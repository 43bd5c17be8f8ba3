"""Simulates many lenses on several processes, with progress, resumable after interruption.

Examples are simulated in blocks. A finished block is written to a file of its own; a later run
with the same request reads it instead of simulating again. Blocks are yielded in order, so the
result does not depend on the number of processes or on interruptions.

The fast engine renders in batches, whose size and threads may show in the last bits of an
image. So its blocks are always simulated whole, in processes of their own with one thread on
the CPU: the bytes of an example depend on the request alone here too.

This module and all that it imports are free of TensorFlow, so that spawned workers start in
about a second; only those of the fast engine import it.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from dlens_tf.errors import UserError
from dlens_tf.io.files import atomic_write
from dlens_tf.parameters import Choice, ParameterSet
from dlens_tf.quiet import silence_tensorflow
from dlens_tf.simulation.engines import ENGINE_VERSIONS
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.recipes import CLASSES, Recipe, get_recipe
from dlens_tf.simulation.simulator import SIMULATOR_VERSION, Simulator

BLOCK_SIZE = 100
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class Block:
    """A contiguous range of examples of one class.

    Attributes:
      recipe: name of the recipe.
      dm_class: the class.
      seed: of the data set.
      start: first index.
      stop: index behind the last one.
      engine: one of `engines.ENGINES`.
      galaxies: path of the galaxy catalogue; None for the bundled one.
      batch: examples from `start` on that the fast engine renders together; the last block of a
        split is shorter.
    """

    recipe: str
    dm_class: str
    seed: int
    start: int
    stop: int
    engine: str = "lenstronomy"
    galaxies: str | None = None
    batch: int = BLOCK_SIZE

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def file_name(self) -> str:
        """Of the block's file: another one for every request that gives other arrays."""
        request = dataclasses.asdict(self)
        catalogue = source_galaxies(get_recipe(self.recipe), self.galaxies)
        request["galaxies"] = catalogue.content_id if catalogue else None
        text = json.dumps([SIMULATOR_VERSION, ENGINE_VERSIONS[self.engine], request])
        return f"block-{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"


def plan(
    recipe: str,
    classes: Sequence[str],
    seed: int,
    start: int,
    num_per_class: int,
    engine: str = "lenstronomy",
    galaxies: str | None = None,
) -> list[Block]:
    """The blocks of examples start … start + num_per_class - 1 of each class, interleaved.

    Classes alternate block by block, so that a data set read in order is not sorted by class.
    """
    stop = start + num_per_class
    size = BLOCK_SIZE
    return [
        Block(recipe, dm_class, seed, first, min(first + size, stop), engine, galaxies, size)
        for first in range(start, stop, size)
        for dm_class in classes
    ]


def source_galaxies(recipe: Recipe, path: str | None) -> GalaxyCatalogue | None:
    """The galaxies that a recipe's sources are taken from; None for a recipe without.

    Args:
      recipe: the recipe.
      path: of the catalogue; None for the bundled one.

    Raises:
      UserError: if the catalogue can't be used, or the recipe has no use for one.
    """
    if recipe.has_galaxies:
        return GalaxyCatalogue.open(path)
    if path is not None:
        raise UserError(f"recipe '{recipe.name}' takes no galaxies; leave out --galaxies={path}")
    return None


@functools.lru_cache(maxsize=4)
def _simulator(recipe_name: str, engine: str, galaxies: str | None) -> Simulator:
    recipe = get_recipe(recipe_name)
    return Simulator(recipe, engine, source_galaxies(recipe, galaxies))


def simulate_block(block: Block) -> dict[str, np.ndarray]:
    """Arrays over the block's examples, keyed as the TFDS features.

    Keys: `image` float32 [N, H, W, C], `label` int64 [N], `parameters/<name>` float32 [N] and
    `metadata/<name>` float32 or int64 [N].
    """
    simulator = _simulator(block.recipe, block.engine, block.galaxies)
    stop = block.start + block.batch if block.engine == "fast" else block.stop
    lenses = simulator.simulate_many(block.dm_class, block.seed, range(block.start, stop))
    lenses = lenses[: len(block)]
    arrays = {
        "image": np.stack([lens.image for lens in lenses]),
        "label": np.full(len(lenses), CLASSES.index(block.dm_class), np.int64),
    }
    for name in lenses[0].parameters:
        arrays[f"parameters/{name}"] = np.float32([lens.parameters[name] for lens in lenses])
    for name, value in lenses[0].metadata.items():
        dtype = np.int64 if isinstance(value, int) else np.float32
        arrays[f"metadata/{name}"] = np.array([lens.metadata[name] for lens in lenses], dtype)
    return arrays


def block_examples(
    block: Block, arrays: dict[str, np.ndarray], parameters: ParameterSet
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The examples of a simulated block as TFDS takes them.

    Args:
      block: which examples these are.
      arrays: what `simulate_block` gave.
      parameters: those that the data set has; further ones are left out.

    Yields:
      (key, example) pairs. A parameter that takes one of a few values comes also as a class,
      `classes/<name>`.
    """
    choices = {p.name: np.array(p.prior.values) for p in parameters if isinstance(p.prior, Choice)}
    for i in range(len(block)):
        example: dict[str, Any] = {"parameters": {}, "metadata": {}}
        for key, values in arrays.items():
            group, _, name = key.rpartition("/")
            if not group:
                example[name] = values[i]
            elif group == "metadata" or name in parameters:
                example[group][name] = values[i]
        if choices:
            example["classes"] = {
                name: int(np.argmin(np.abs(values - example["parameters"][name])))
                for name, values in choices.items()
            }
        yield f"{block.dm_class}_{block.start + i}", example


def _simulate_to_file(task: tuple[Block, str]) -> None:
    block, path = task
    arrays = simulate_block(block)
    with atomic_write(Path(path)) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def follow_parent() -> None:
    """Leaves Ctrl-C to the parent and ends with it; to be called in a process it started."""
    # Ctrl-C goes to the whole process group; the parent alone should answer it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that is killed can't end its workers, so they watch it.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _start_worker(engine: str) -> None:
    follow_parent()
    if engine == "fast":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        silence_tensorflow()
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def worker_pool(workers: int, engine: str) -> ProcessPoolExecutor:
    """A pool of processes that simulate; see the module's synopsis.

    They end with this process, however it ends. Submit to it within `single_threads`.
    """
    # Spawned rather than forked: TensorFlow's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _start_worker, (engine,))


@contextlib.contextmanager
def single_threads() -> Iterator[None]:
    """Processes that are started within take one thread each: together they fill the cores."""
    saved = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _run_tasks(tasks: Sequence[tuple[Block, str]], workers: int) -> Iterator[int]:
    """Runs tasks on spawned processes; yields the sizes of their blocks in order.

    However it ends, no process is left.
    """
    others = set(multiprocessing.active_children())
    pool = worker_pool(workers, tasks[0][0].engine)
    waiting = iter(tasks)
    running = collections.deque()
    try:
        for task in itertools.islice(waiting, 2 * workers):
            running.append((task, pool.submit(_simulate_to_file, task)))
        while running:
            (block, _), future = running.popleft()
            future.result()
            task = next(waiting, None)
            if task is not None:
                running.append((task, pool.submit(_simulate_to_file, task)))
            yield len(block)
    except BrokenProcessPool as error:
        raise UserError(
            "a simulating process died (out of memory?); the same command goes on from here, "
            "and with fewer --workers it takes less memory"
        ) from error
    finally:
        # All are idle after success; otherwise nobody waits for their blocks any more.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        pool.shutdown(cancel_futures=True)


def run_blocks(blocks: Sequence[Block], folder: Path, workers: int) -> Iterator[int]:
    """Simulates the blocks that `folder` lacks; yields the size of each block as it is ready.

    Args:
      blocks: what to simulate, all with one engine.
      folder: where block files are kept; made if missing.
      workers: processes; 1 simulates in this process, if the engine is lenstronomy.

    Raises:
      UserError: if one of the processes is killed or a file can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.partial"):
        leftover.unlink(missing_ok=True)
    todo = []
    for block in blocks:
        if (folder / block.file_name).exists():
            yield len(block)
        else:
            todo.append((block, str(folder / block.file_name)))
    if not todo:
        return
    workers = min(workers, len(todo))
    if workers <= 1 and todo[0][0].engine == "lenstronomy":
        for task in todo:
            _simulate_to_file(task)
            yield len(task[0])
        return
    with single_threads():
        yield from _run_tasks(todo, workers)


def read_block(block: Block, folder: Path) -> dict[str, np.ndarray]:
    """Reads a block that `run_blocks` has finished."""
    with (
        open(folder / block.file_name, "rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        return dict(arrays)
