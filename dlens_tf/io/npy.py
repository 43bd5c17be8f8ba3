"""Images in .npy files: plain arrays, and the object arrays of the official DeepLense data."""

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dlens_tf.errors import UserError
from dlens_tf.io.contract import RawImages
from dlens_tf.io.files import one_line, open_binary
from dlens_tf.io.unpickling import read_labelled_image

_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npy(
    source: Path | BinaryIO, *, where: str | None = None, pickled: bool = True
) -> RawImages:
    """Reads a .npy file; nothing in it is ever executed.

    Plain arrays in files are mapped into memory; a header that lies about the size is found out
    before memory is reserved for it.

    Args:
      source: the file, or a stream of its bytes.
      where: what messages call the file; None takes its path.
      pickled: whether the object arrays [image, label] are read. Nothing in a pickle is run, but
        one can ask for any amount of memory: False for files of strangers.

    Raises:
      UserError: if the file is damaged, or holds objects other than [image, label].
    """
    where = str(source) if where is None else where
    try:
        with open_binary(source) as stream:
            version = np.lib.format.read_magic(stream)
            if version not in _HEADER_READERS:  # 3.0 is for structures alone
                raise ValueError(f"an image needs format version 1.0 or 2.0, not {version}")
            shape, _, dtype = _HEADER_READERS[version](stream)
            if dtype.kind == "O" and pickled:
                return RawImages(read_labelled_image(stream, where))
            if dtype.hasobject:
                raise UserError(f"{where}: values are Python objects, not numbers")
            if 0 in shape:
                return RawImages(np.zeros(shape, dtype))  # an empty file can't be mapped
            start = stream.tell()
            missing = math.prod(shape) * dtype.itemsize - (stream.seek(0, 2) - start)
            if missing > 0:
                raise ValueError(f"{missing} bytes are missing at its end")
            if not isinstance(source, Path):
                stream.seek(0)
                return RawImages(np.load(stream, allow_pickle=False))
        return RawImages(np.load(source, mmap_mode="r", allow_pickle=False))
    except UserError:
        raise
    except Exception as error:  # a damaged header fails in many ways inside numpy
        raise UserError(f"{where}: not a whole .npy file: {one_line(error)}") from error
