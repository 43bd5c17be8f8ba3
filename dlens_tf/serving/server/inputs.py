"""What a request's tensors have to be: checked before TensorFlow sees them.

A wrong request is refused with one line that names the input and, where it is one image that is
wrong, its row. So it can't spoil a batch, and a NaN is no answer's cause.
"""

import asyncio
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from dlens_tf.serving.server.errors import invalid

Tensors = dict[str, np.ndarray]

_SMALL = 2**16
"""Bytes that are handled at once; more would hold up other requests."""


async def offload(size: int, function: Callable, *arguments: Any) -> Any:
    """Calls a function here, or in a thread if the bytes it works through are many."""
    if size <= _SMALL:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


def num_bytes(tensors: Tensors) -> int:
    """Size of the contents of some tensors."""
    return sum(
        sum(map(len, value.flat)) if value.dtype == object else value.nbytes
        for value in tensors.values()
    )


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape as the documentation writes it, [N, 64, 64, 1]."""
    return "[" + ", ".join("N" if size is None else str(size) for size in shape) + "]"


@dataclasses.dataclass(frozen=True)
class Spec:
    """Type of a tensor.

    Attributes:
      dtype: of its elements; `tf.string` are objects of type bytes in NumPy.
      shape: its sizes, None where any will do; None if not even the rank is given.
    """

    dtype: tf.DType
    shape: tuple[int | None, ...] | None

    @property
    def batched(self) -> bool:
        """Whether the first axis may have any size."""
        return bool(self.shape) and self.shape[0] is None

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor may have a shape."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            size == n if n is not None else size >= 0
            for size, n in zip(shape, self.shape, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a signature takes and gives, by name."""

    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec]

    @classmethod
    def of(cls, function: tf.types.experimental.ConcreteFunction) -> "Signature":
        """That of a loaded SavedModel."""

        def specs(tensors: Mapping[str, tf.TensorSpec]) -> dict[str, Spec]:
            return {
                name: Spec(t.dtype, None if t.shape.rank is None else tuple(t.shape))
                for name, t in tensors.items()
            }

        return cls(
            specs(function.structured_input_signature[1]), specs(function.structured_outputs)
        )

    @property
    def batched(self) -> bool:
        """Whether requests can be joined along a first axis that all tensors have."""
        return all(spec.batched for spec in (*self.inputs.values(), *self.outputs.values()))


def find_signature(model: Any, name: str) -> Signature:
    """A signature of a served model.

    Raises:
      ServingError: INVALID_ARGUMENT if it has none of this name.
    """
    if name not in model.signatures:
        known = ", ".join(sorted(model.signatures))
        raise invalid(f"model '{model.name}' has no signature '{name}'; it has {known}")
    return model.signatures[name]


def check_names(signature: Signature, names: Sequence[str]) -> None:
    """Raises a `ServingError` unless these are the inputs of a signature."""
    expected = sorted(signature.inputs)
    if sorted(names) != expected:
        given = ", ".join(sorted(names)) or "none"
        raise invalid(f"the inputs are {given}; the signature takes {', '.join(expected)}")


def check_shape(name: str, spec: Spec, shape: Sequence[int]) -> None:
    """Raises a `ServingError` unless an input may have a shape."""
    if not spec.fits(shape):
        takes = shape_text(spec.shape)
        raise invalid(f"input '{name}' has shape {shape_text(shape)}; the signature takes {takes}")
    if spec.batched and shape[0] == 0:
        raise invalid(f"input '{name}' is empty")


def check_inputs(model: Any, signature_name: str, inputs: Tensors, max_rows: int) -> None:
    """Checks names, dtypes, shapes, numbers of rows, lengths and values.

    Args:
      model: a `ServedModel`.
      signature_name: the signature that is asked.
      inputs: its tensors.
      max_rows: most rows of a request: answers may be much larger than what asks for them.

    Raises:
      ServingError: INVALID_ARGUMENT, naming input and row.
    """
    signature = find_signature(model, signature_name)
    check_names(signature, list(inputs))
    for name, spec in signature.inputs.items():
        value = inputs[name]
        if tf.as_dtype(value.dtype) != spec.dtype:
            given = tf.as_dtype(value.dtype).name
            raise invalid(f"input '{name}' is {given}; the signature takes {spec.dtype.name}")
        check_shape(name, spec, value.shape)
        if spec.batched and len(value) > max_rows:
            raise invalid(f"input '{name}' has {len(value)} rows; send {max_rows} at most")
        if spec.dtype.is_floating:
            _check_finite(name, value)
        elif name in _IMAGES:
            for row, string in enumerate(value):
                _check_image(name, row, string, model.manifest.image.shape)
    if signature.batched:
        rows = {name: len(value) for name, value in inputs.items()}
        if len(set(rows.values())) > 1:
            counts = ", ".join(f"'{name}' {n}" for name, n in sorted(rows.items()))
            raise invalid(f"the inputs have different numbers of rows: {counts}")


def _check_finite(name: str, value: np.ndarray) -> None:
    if not np.isfinite(value).all():
        where = f"input '{name}'"
        if value.ndim:
            good = np.isfinite(value).reshape(len(value), -1).all(axis=1)
            where += f", row {int(np.argmin(good))}"
        raise invalid(f"{where}: NaN or infinite")


def _raw_image(string: bytes) -> np.ndarray:
    if len(string) % 4:
        raise ValueError(f"{len(string)} bytes are not whole float32 numbers")
    return np.frombuffer(string, "<f4")


def _example_image(string: bytes) -> np.ndarray:
    try:
        feature = tf.train.Example.FromString(string).features.feature
    except DecodeError as error:
        raise ValueError("not a serialized tf.Example") from error
    strings = feature["image"].bytes_list.value if "image" in feature else ()
    if len(strings) != 1:
        raise ValueError("the tf.Example has no feature 'image' of one string")
    return _raw_image(strings[0])


_IMAGES = {"image_bytes": _raw_image, "examples": _example_image}
"""Inputs of strings that each hold an image, and how."""


def _check_image(name: str, row: int, string: bytes, shape: Sequence[int]) -> None:
    where = f"input '{name}', row {row}"
    try:
        values = _IMAGES[name](string)
    except ValueError as error:
        raise invalid(f"{where}: {error}") from error
    if values.size != math.prod(shape):
        raise invalid(
            f"{where}: {values.size} float32 numbers; an image {shape_text(shape)} has "
            f"{math.prod(shape)}"
        )
    if not np.isfinite(values).all():
        raise invalid(f"{where}: NaN or infinite")
