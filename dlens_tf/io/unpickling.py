"""Reading the pickled object arrays of the official DeepLense files without running them.

DeepLense stores an image with its axion mass by `np.save(path, np.array([image, mass]))`: a
.npy file whose body is a pickle. A pickle is a program, so it is run here by an unpickler that
knows four names, those that numpy itself writes for arrays, types and numbers. They are bound
to the inert records below, never to numpy: a record keeps what it was given, and is turned into
an array afterwards, if it describes a plain one. Any other name ends the reading at once.
"""

import math
import pickle
from typing import Any, BinaryIO

import numpy as np

from dlens_tf.errors import UserError
from dlens_tf.io.files import one_line

_PLAIN_TYPES = ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")


class _Record:
    """What a pickle may make: something that only remembers its state.

    `__setstate__` is there so that no pickle can set attributes by name.
    """

    state: Any = None

    def __setstate__(self, state):
        self.state = state


class _NdarrayName(_Record):
    """Stands for the class numpy.ndarray where an array names its own type."""

    def __init__(self):
        raise pickle.UnpicklingError("numpy.ndarray is called")


class _Dtype(_Record):
    """numpy.dtype(code, align, copy), then the state (version, byte order, …)."""

    code: Any = None

    def __init__(self, code, align=False, copy=False):
        del align, copy
        self.code = code

    @property
    def is_object(self) -> bool:
        return self.code in ("O8", "O")

    def resolve(self) -> np.dtype:
        if self.code not in _PLAIN_TYPES:
            raise pickle.UnpicklingError(f"values of type {self.code!r}")
        order = self.state[1] if self.state else "="
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {order!r}")
        return np.dtype(self.code).newbyteorder(order)


class _Array(_Record):
    """_reconstruct(numpy.ndarray, (0,), b"b"), then the state of `numpy.ndarray.__reduce__`."""

    def __init__(self, subtype, shape, typecode):
        del shape, typecode
        if subtype is not _NdarrayName:
            raise pickle.UnpicklingError("an array of a foreign class")

    @property
    def parts(self) -> tuple[tuple[int, ...], _Dtype, bool, Any]:
        _, shape, dtype, fortran_order, content = self.state
        if not isinstance(dtype, _Dtype) or not all(type(n) is int and n >= 0 for n in shape):
            raise pickle.UnpicklingError("a malformed array")
        return shape, dtype, bool(fortran_order), content

    def resolve(self) -> np.ndarray:
        shape, dtype, fortran_order, content = self.parts
        plain = dtype.resolve()
        if type(content) is not bytes or len(content) != math.prod(shape) * plain.itemsize:
            raise pickle.UnpicklingError("an array whose size and content differ")
        values = np.frombuffer(content, plain)
        return values.reshape(shape, order="F" if fortran_order else "C")


class _Scalar(_Record):
    """scalar(dtype, bytes)."""

    def __init__(self, dtype, content=None):
        del dtype, content


_NAMES: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _NdarrayName,
    ("numpy", "dtype"): _Dtype,
    **{
        (module, name): record
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name, record in (("_reconstruct", _Array), ("scalar", _Scalar))
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is no part of a numpy array"
            ) from None


def read_labelled_image(stream: BinaryIO, where: str) -> np.ndarray:
    """Reads the pickle of a DeepLense object array [image, label, …] and returns the image.

    The numbers that follow the image, its labels, are left out.

    Args:
      stream: positioned behind the .npy header.
      where: the file's name, for messages.

    Returns:
      The image, in the type it was stored with.

    Raises:
      UserError: if the pickle holds anything but one array of numbers and its labels. None of
        what it names is imported or called.
    """
    try:
        record = _ArrayUnpickler(stream).load()
        if not isinstance(record, _Array):
            raise pickle.UnpicklingError("it is not an array")
        _, dtype, _, content = record.parts
        if not dtype.is_object:
            return record.resolve()
        if type(content) is not list or not content or not isinstance(content[0], _Array):
            raise pickle.UnpicklingError("it is not [image, label]")
        if not all(isinstance(label, _Scalar | int | float) for label in content[1:]):
            raise pickle.UnpicklingError("it is not [image, label]")
        return content[0].resolve()
    # The bytes are foreign: whatever goes wrong in them, the file is not one of ours.
    except Exception as error:
        raise UserError(
            f"{where}: its pickled content is refused: {one_line(error)}; only DeepLense's "
            "[image, label] object arrays are read, save other images as plain arrays"
        ) from error
