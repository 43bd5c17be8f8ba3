"""What reading and writing files share: patterns, checks, checksums, atomic writes."""

import contextlib
import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from dlens_tf.errors import UserError

_NODE_NAMES = re.compile(r"\[\[\{\{.*?\}\}\]\]|\{\{.*?\}\}|\[Op:\w+\]")


def one_line(error: BaseException) -> str:
    """An exception's message on one line, without the names of graph nodes that TensorFlow adds."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = _NODE_NAMES.sub("", reason)
    return " ".join(reason.split()) or type(error).__name__


def expand_patterns(patterns: Iterable[str]) -> list[Path]:
    """Files named by paths and glob patterns, each once, in the order given.

    A pattern's matches come sorted; `**` descends into folders. A path that exists is taken
    literally, whatever characters it has.

    Raises:
      UserError: if a path does not exist or a pattern matches nothing.
    """
    paths: dict[Path, None] = {}
    for pattern in patterns:
        if os.path.exists(pattern):
            matches = [pattern]
        elif glob.has_magic(pattern):
            matches = sorted(glob.glob(pattern, recursive=True))
            if not matches:
                raise UserError(f"no file matches the pattern '{pattern}'")
        else:
            raise UserError(f"{pattern}: no such file")
        paths.update(dict.fromkeys(Path(match) for match in matches))
    return list(paths)


def open_binary(source: Path | BinaryIO) -> contextlib.AbstractContextManager[BinaryIO]:
    """Opens a path for reading; a stream is taken as it is, and left open."""
    if isinstance(source, Path):
        return open(source, "rb")
    return contextlib.nullcontext(source)


def check_readable(path: Path) -> None:
    """Raises a `UserError` unless `path` is a file that can be opened."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name its files, for example '{path}/*.npy'")
    try:
        with open(path, "rb"):
            pass
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: {one_line(error)}") from error


def file_checksum(path: Path) -> str:
    """The file's sha256, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_writable(path: Path) -> None:
    """Raises a `UserError` unless a file can be made at `path`."""
    if path.is_dir():
        raise UserError(f"can't write {path}: it is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"can't write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"can't write {path}: no permission to write to {path.parent}")


def check_not_input(path: Path, inputs: Iterable[Path]) -> None:
    """Raises a `UserError` if writing `path` would replace one of the files just read."""
    for source in inputs:
        if path.exists() and path.samefile(source):
            raise UserError(f"can't write {path}: it is one of the inputs; name another file")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, and renames it when the block succeeds.

    Raises:
      UserError: if the block or the rename fails with an `OSError`; nothing is left then.
    """
    check_writable(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"can't write {path}: {one_line(error)}") from error
    finally:
        partial.unlink(missing_ok=True)
