"""Processes that measure: started fresh, and gone afterwards, however they end."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from dlens_tf.errors import UserError


@contextlib.contextmanager
def fresh_process(start: Callable, *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """A process that begins with `start(*arguments)`."""
    others = set(multiprocessing.active_children())
    # Spawned rather than forked, so that its memory is its own.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, context, start, arguments)
    pool.submit(os.getpid)  # starts it
    mine = set(multiprocessing.active_children()) - others
    try:
        yield pool
    finally:
        for process in mine:
            process.terminate()
        pool.shutdown(cancel_futures=True)


def result(future: Future, advice: str) -> Any:
    """What a process has computed; a `UserError` with an advice if it died."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UserError(f"a measuring process died (out of memory?); {advice}") from error


def peak_memory_mb(process: int | None = None) -> float:
    """Highest memory of a process so far, by its id; None for this one.

    Unlike ru_maxrss never that of its parent.
    """
    status = Path(f"/proc/{process or 'self'}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
