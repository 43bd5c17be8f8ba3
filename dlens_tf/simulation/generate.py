"""Simulates many lenses on several processes, with progress, resumable after interruption.

Examples are simulated in blocks. A finished block is written to a file of its own, under a
temporary name that is then renamed; a later run with the same request reads it instead of
simulating again. Blocks are yielded in order, so the result does not depend on the number of
processes or on interruptions.

This module and all that it imports are free of TensorFlow, so that spawned workers start in
about a second.
"""

import collections
import dataclasses
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

import numpy as np

from dlens_tf.errors import UserError
from dlens_tf.simulation.recipes import CLASSES, get_recipe
from dlens_tf.simulation.simulator import SIMULATOR_VERSION, simulate

BLOCK_SIZE = 100
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class Block:
    """A contiguous range of examples of one class."""

    recipe: str
    dm_class: str
    seed: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def file_name(self) -> str:
        request = json.dumps([SIMULATOR_VERSION, dataclasses.astuple(self)])
        return f"block-{hashlib.sha256(request.encode()).hexdigest()[:24]}.npz"


def plan(
    recipe: str, classes: Sequence[str], seed: int, start: int, num_per_class: int
) -> list[Block]:
    """The blocks of examples start … start + num_per_class - 1 of each class, interleaved.

    Classes alternate block by block, so that a data set read in order is not sorted by class.
    """
    stop = start + num_per_class
    return [
        Block(recipe, dm_class, seed, first, min(first + BLOCK_SIZE, stop))
        for first in range(start, stop, BLOCK_SIZE)
        for dm_class in classes
    ]


def simulate_block(block: Block) -> dict[str, np.ndarray]:
    """Arrays over the block's examples, keyed as the TFDS features.

    Keys: `image` float32 [N, H, W, 1], `label` int64 [N], `parameters/<name>` float32 [N] and
    `metadata/<name>` float32 or int64 [N].
    """
    recipe = get_recipe(block.recipe)
    lenses = [
        simulate(recipe, block.dm_class, block.seed, index)
        for index in range(block.start, block.stop)
    ]
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


def _simulate_to_file(task: tuple[Block, str]) -> None:
    block, path = task
    arrays = simulate_block(block)
    partial = Path(f"{path}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _start_worker() -> None:
    # Ctrl-C goes to the whole process group; the parent alone should answer it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that is killed can't end its workers, so they watch it.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _run_tasks(tasks: Sequence[tuple[Block, str]], workers: int) -> Iterator[int]:
    """Runs tasks on spawned processes; yields the sizes of their blocks in order.

    However it ends, no process is left.
    """
    # Spawned rather than forked: TensorFlow's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _start_worker)
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
      blocks: what to simulate.
      folder: where block files are kept; made if missing.
      workers: processes; 1 simulates in this process.

    Raises:
      UserError: if one of the processes is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.partial"):
        leftover.unlink()
    todo = []
    for block in blocks:
        if (folder / block.file_name).exists():
            yield len(block)
        else:
            todo.append((block, str(folder / block.file_name)))
    if workers <= 1 or len(todo) <= 1:
        for task in todo:
            _simulate_to_file(task)
            yield len(task[0])
        return
    # One thread each: the processes already fill the cores.
    saved = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield from _run_tasks(todo, min(workers, len(todo)))
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def read_block(block: Block, folder: Path) -> dict[str, np.ndarray]:
    """Reads a block that `run_blocks` has finished."""
    with (
        open(folder / block.file_name, "rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        return dict(arrays)
