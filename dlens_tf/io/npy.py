"""Images in .npy files: plain arrays, and the object arrays of the official DeepLense data."""

from pathlib import Path

import numpy as np

from dlens_tf.errors import UserError
from dlens_tf.io.contract import RawImages
from dlens_tf.io.files import one_line
from dlens_tf.io.unpickling import read_labelled_image

_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npy(path: Path) -> RawImages:
    """Reads a .npy file; nothing in it is ever executed.

    Plain arrays are mapped into memory, so that a header that lies about the size is found out
    before memory is reserved for it.

    Raises:
      UserError: if the file is damaged, or holds objects other than [image, label].
    """
    try:
        with open(path, "rb") as stream:
            read_header = _HEADER_READERS.get(np.lib.format.read_magic(stream))
            if read_header is not None:
                shape, _, dtype = read_header(stream)
                if dtype.kind == "O":
                    return RawImages(read_labelled_image(stream, str(path)))
                if dtype.hasobject:
                    raise UserError(f"{path}: values are Python objects, not numbers")
                if 0 in shape:
                    return RawImages(np.zeros(shape, dtype))  # an empty file can't be mapped
        return RawImages(np.load(path, mmap_mode="r", allow_pickle=False))
    except UserError:
        raise
    except Exception as error:  # a damaged header fails in many ways inside numpy
        raise UserError(f"{path}: not a whole .npy file: {one_line(error)}") from error
