"""Locks between processes, for work that two of them must not do at once."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from dlens_tf.errors import UserError
from dlens_tf.io.files import one_line


def _holder(file: int) -> str:
    """Who says to hold the lock."""
    return os.pread(file, 200, 0).decode(errors="replace").strip() or "unknown"


def _is_at(path: Path, file: int) -> bool:
    """Whether the open file is still the one at `path`: its last holder has removed it if not."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Holds a lock file while the block runs; it names the process, and is removed behind it.

    The system frees the lock when its holder ends, however it ends: a file that a killed
    process has left is no obstacle.

    Args:
      path: of the lock file; its folder must exist.
      what: is done under the lock, for the message.

    Raises:
      UserError: if another process holds the lock, or the file can't be made.
    """
    try:
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = _holder(file)
                os.close(file)
                raise UserError(
                    f"{what} is under way already ({holder}, lock file {path}); "
                    "wait until it is done"
                ) from error
            if _is_at(path, file):
                break
            os.close(file)
    except OSError as error:
        raise UserError(f"can't lock {path}: {one_line(error)}") from error
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)
