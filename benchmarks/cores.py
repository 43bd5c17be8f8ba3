"""Binding to processor cores, so that "one core" means one."""

import os
from collections.abc import Sequence

from dlens_tf.errors import UserError


def available() -> list[int]:
    """Cores that this process may use, the last first: the first ones serve the system too."""
    return sorted(os.sched_getaffinity(0), reverse=True)


def check(core: int) -> int:
    """Returns `core`; raises a `UserError` that lists the valid ones if there is no such core."""
    if core not in available():
        valid = ", ".join(map(str, available()[::-1]))
        raise UserError(f"there is no core {core} to use; valid: {valid}")
    return core


def bind(cores: Sequence[int]) -> None:
    """Binds this process to some cores, and TensorFlow to as many threads.

    To be called before TensorFlow makes its thread pools, which inherit the binding.
    """
    os.sched_setaffinity(0, cores)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(len(cores))
    tf.config.threading.set_inter_op_parallelism_threads(len(cores))
