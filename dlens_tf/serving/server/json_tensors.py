"""Tensors as TensorFlow Serving's JSON, in row and in column form.

Rows: {"instances": [{"image": …}, …]}, or bare values where the signature has one input; answered
by {"predictions": [{"mean": …, …}, …]}, or bare values if there is one output. Columns:
{"inputs": {"image": […]}}, or the bare value; answered by {"outputs": …}. Bytes are
{"b64": "…"}.

Reference: TensorFlow Serving, RESTful API.
"""

import base64
import binascii
import json
from typing import Any

import numpy as np
import tensorflow as tf

from dlens_tf.serving.server.errors import ServingError, invalid
from dlens_tf.serving.server.inputs import Signature, Spec, Tensors, check_names, check_shape

DEFAULT_SIGNATURE = "serving_default"
ROWS = "instances"
COLUMNS = "inputs"


def parse_body(body: bytes | bytearray, max_values: int) -> tuple[dict[str, Any], str]:
    """The request's object, and the name of the signature that it asks.

    Args:
      body: JSON.
      max_values: most values in it. A thread that reads JSON lets no other run; strings, however
        long, are read in no time.

    Raises:
      ServingError: INVALID_ARGUMENT if it is none, RESOURCE_EXHAUSTED if it has too many values.
    """
    if body.count(b",") >= max_values:
        raise ServingError(
            "RESOURCE_EXHAUSTED",
            f"the JSON has more than {max_values} values; send images as bytes, see serve_bytes",
            http_status=413,
        )
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "it can't be read"
        raise invalid(f"the body is no JSON: {reason}") from error
    if not isinstance(request, dict):
        raise invalid("the body is no JSON object")
    unknown = request.keys() - {ROWS, COLUMNS, "signature_name"}
    if unknown:
        raise invalid(f"the body has the unknown key {json.dumps(min(unknown))}")
    if (ROWS in request) == (COLUMNS in request):
        raise invalid(f'the body needs either "{ROWS}" or "{COLUMNS}"')
    signature = request.get("signature_name", DEFAULT_SIGNATURE)
    if not isinstance(signature, str):
        raise invalid("signature_name is no string")
    return request, signature or DEFAULT_SIGNATURE


def decode_request(request: dict[str, Any], signature: Signature) -> Tensors:
    """The input tensors of a request, of the right dtypes and shapes.

    Raises:
      ServingError: INVALID_ARGUMENT, naming the input.
    """
    values = _named_rows(request[ROWS], signature) if ROWS in request else request[COLUMNS]
    if not _is_named(values):
        if len(signature.inputs) > 1:
            names = ", ".join(sorted(signature.inputs))
            raise invalid(f"the signature has several inputs, which need their names: {names}")
        values = {next(iter(signature.inputs)): values}
    check_names(signature, list(values))
    return {name: _tensor(name, values[name], spec) for name, spec in signature.inputs.items()}


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() != {"b64"}


def _named_rows(rows: Any, signature: Signature) -> Any:
    """Rows of named inputs as columns; rows of bare values as they are."""
    if not isinstance(rows, list) or not rows:
        raise invalid(f'"{ROWS}" is no list of rows, or an empty one')
    if not any(_is_named(row) for row in rows):
        return rows
    for index, row in enumerate(rows):
        if not _is_named(row):
            raise invalid(f"row {index} does not name its inputs, as other rows do")
        if row.keys() != signature.inputs.keys():
            given = ", ".join(sorted(row)) or "nothing"
            takes = ", ".join(sorted(signature.inputs))
            raise invalid(f"row {index} has {given}; the signature takes {takes}")
    return {name: [row[name] for row in rows] for name in signature.inputs}


def _tensor(name: str, value: Any, spec: Spec) -> np.ndarray:
    strings = spec.dtype == tf.string
    uneven = invalid(f"input '{name}': its rows are not all of one shape")
    try:
        # Were the dtype NumPy's choice, one long string would make each number as long a string.
        array = np.array(_strings(name, value) if strings else value, object)
    except (ValueError, RecursionError) as error:
        raise uneven from error
    types = set(map(type, array.ravel().tolist()))
    if list in types:
        raise uneven
    check_shape(name, spec, array.shape)
    if strings:
        return array
    dtype = np.dtype(spec.dtype.as_numpy_dtype)
    if not types <= {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}}[dtype.kind]:
        raise invalid(f"input '{name}' has values that are not of type {spec.dtype.name}")
    try:
        with np.errstate(over="ignore"):  # infinity is found by the check of the values
            return array.astype(dtype)
    except OverflowError as error:
        raise invalid(f"input '{name}' has values outside {spec.dtype.name}") from error


def _strings(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_strings(name, item) for item in value]
    try:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, dict) and value.keys() == {"b64"}:
            return base64.b64decode(value["b64"], validate=True)
    except (UnicodeEncodeError, binascii.Error, TypeError, ValueError) as error:
        raise invalid(f"input '{name}': a string is not valid UTF-8 or base64") from error
    raise invalid(f'input \'{name}\' needs strings, or bytes as {{"b64": "…"}}')


def encode_answer(outputs: Tensors, rows: bool) -> bytes:
    """The body of an answer.

    Args:
      outputs: the output tensors.
      rows: whether in row form, in which all have the same first axis.
    """
    values = {name: _values(name, outputs[name].tolist()) for name in sorted(outputs)}
    if not rows:
        answer = values if len(values) > 1 else next(iter(values.values()))
        return json.dumps({"outputs": answer}).encode()
    if len(values) == 1:
        return json.dumps({"predictions": next(iter(values.values()))}).encode()
    predictions = [
        dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)
    ]
    return json.dumps({"predictions": predictions}).encode()


def _values(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_values(name, item) for item in value] if _has_bytes(value) else value
    if isinstance(value, bytes):
        if name.endswith("_bytes"):
            return {"b64": base64.b64encode(value).decode()}
        return value.decode()
    return value


def _has_bytes(value: Any) -> bool:
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, bytes)
