"""TensorFlow Serving's gRPC interface: PredictionService and ModelService.

Predict, GetModelMetadata and GetModelStatus are answered; gRPC itself answers all others with
UNIMPLEMENTED.

Messages are parsed here, and not by gRPC, so that a damaged one is INVALID_ARGUMENT and not the
server's fault.
"""

import asyncio
import functools
import math
from collections.abc import Awaitable, Callable, Mapping

import grpc
import numpy as np
import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError, Message
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from dlens_tf.serving.server import protos
from dlens_tf.serving.server.bodies import Budget
from dlens_tf.serving.server.errors import ServingError, invalid
from dlens_tf.serving.server.inputs import (
    Signature,
    Spec,
    Tensors,
    check_names,
    check_shape,
    find_signature,
    offload,
)
from dlens_tf.serving.server.json_tensors import DEFAULT_SIGNATURE
from dlens_tf.serving.server.metrics import Metrics
from dlens_tf.serving.server.models import ModelStore
from dlens_tf.serving.server.options import ServerOptions
from dlens_tf.serving.server.rest import Predict

_PACKAGE = "tensorflow.serving"


def make_server(
    store: ModelStore, predict: Predict, options: ServerOptions, metrics: Metrics, budget: Budget
) -> grpc.aio.Server:
    """The gRPC server, without a port yet.

    Args:
      store: the models.
      predict: what answers a signature.
      options: limits.
      metrics: what counts requests.
      budget: what the messages in flight may take.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", options.max_request_bytes),
            ("grpc.max_send_message_length", -1),
            # Without this, a second server at the same port would take half of the requests.
            ("grpc.so_reuseport", 0),
        ],
    )
    # As many as can wait and be computed.
    slots = asyncio.Semaphore(options.max_enqueued + options.workers * options.max_batch_size)
    method = functools.partial(_method, budget, slots, options.read_seconds)
    services = _Services(store, predict, options, metrics)
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                f"{_PACKAGE}.PredictionService",
                {
                    "Predict": method(predict_pb2.PredictRequest, services.predict),
                    "GetModelMetadata": method(
                        get_model_metadata_pb2.GetModelMetadataRequest, services.metadata
                    ),
                },
            ),
            grpc.method_handlers_generic_handler(
                f"{_PACKAGE}.ModelService",
                {
                    "GetModelStatus": method(
                        get_model_status_pb2.GetModelStatusRequest, services.status
                    )
                },
            ),
        ]
    )
    return server


def _method(
    budget: Budget,
    slots: asyncio.Semaphore,
    read_seconds: float,
    request_type: type[Message],
    answer: Callable[[Message, int], Awaitable[Message]],
) -> grpc.RpcMethodHandler:
    """A method that parses its request, and turns a `ServingError` into a status."""

    async def handle(_, context: grpc.aio.ServicerContext) -> Message:
        try:
            data = await _received(context, read_seconds)
            if slots.locked():
                raise ServingError(
                    "RESOURCE_EXHAUSTED", "too many requests are being answered already; try later"
                )
            async with slots:
                with budget.account() as take:
                    take(len(data))
                    try:
                        request = request_type.FromString(data)
                    except DecodeError as error:
                        name = request_type.DESCRIPTOR.name
                        raise invalid(f"the message is no {name}") from error
                    return await answer(request, len(data))
        except ServingError as error:
            failure = (grpc.StatusCode[error.code], error.message)
        except Exception:
            logging.exception("a request failed")
            failure = (grpc.StatusCode.INTERNAL, "the server failed; its log says how")
        return await context.abort(*failure)

    # On the wire a stream of one message is the same; only of a stream is the call known before
    # its message, which may never come.
    return grpc.stream_unary_rpc_method_handler(
        handle, response_serializer=lambda message: message.SerializeToString()
    )


async def _received(context: grpc.aio.ServicerContext, read_seconds: float) -> bytes:
    try:
        async with asyncio.timeout(read_seconds):
            data = await context.read()
    except TimeoutError as error:
        raise ServingError(
            "DEADLINE_EXCEEDED", f"the request did not arrive within {read_seconds:g} s"
        ) from error
    if data is grpc.aio.EOF:
        raise invalid("the call has no message")
    return data


class _Services:
    """Answers the methods; each takes its request and the number of bytes that it had."""

    def __init__(
        self, store: ModelStore, predict: Predict, options: ServerOptions, metrics: Metrics
    ):
        self._store = store
        self._predict = predict
        self._max_bytes = options.max_request_bytes
        self._metrics = metrics

    async def predict(
        self, request: predict_pb2.PredictRequest, num_bytes: int
    ) -> predict_pb2.PredictResponse:
        """PredictionService.Predict."""
        spec = request.model_spec
        name = spec.signature_name or DEFAULT_SIGNATURE
        with (
            self._metrics.request("grpc") as asked,
            self._store.get(*_which(request)) as model,
        ):
            asked.model = model.name
            signature = find_signature(model, name)
            asked.signature = name
            outputs = _filtered(signature, request.output_filter)
            inputs = await offload(num_bytes, _decode, request.inputs, signature, self._max_bytes)
            answer = await self._predict(model, name, inputs)
            response = predict_pb2.PredictResponse()
            response.model_spec.name = model.name
            response.model_spec.version.value = model.version
            response.model_spec.signature_name = name
            for output in outputs:
                _write(answer[output], response.outputs[output])
            return response

    async def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, num_bytes: int
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """PredictionService.GetModelMetadata."""
        del num_bytes
        if list(request.metadata_field) != [protos.SIGNATURE_DEF]:
            raise invalid(f"metadata_field has to be {protos.SIGNATURE_DEF}, once")
        with self._store.get(*_which(request)) as model:
            return protos.metadata_response(model)

    async def status(
        self, request: get_model_status_pb2.GetModelStatusRequest, num_bytes: int
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """ModelService.GetModelStatus."""
        del num_bytes
        return protos.status_response(self._store.status(*_which(request)))


def _which(request: Message) -> tuple[str, int | None, str | None]:
    """Name, version and label that a request asks."""
    spec: model_pb2.ModelSpec = request.model_spec
    if not spec.name:
        raise invalid("model_spec.name is missing")
    match spec.WhichOneof("version_choice"):
        case "version":
            return spec.name, spec.version.value, None
        case "version_label":
            return spec.name, None, spec.version_label
    return spec.name, None, None


def _filtered(signature: Signature, names: list[str]) -> list[str]:
    """The outputs to answer with."""
    for name in names:
        if name not in signature.outputs:
            known = ", ".join(sorted(signature.outputs))
            raise invalid(f"output_filter has the unknown output '{name}'; there are {known}")
    if len(set(names)) < len(names):
        raise invalid("output_filter names an output twice")
    return list(names) or list(signature.outputs)


def _write(value: np.ndarray, tensor: tensor_pb2.TensorProto) -> None:
    """Writes an output. `tf.make_tensor_proto` would take half of all the time of a request."""
    tensor.dtype = tf.as_dtype(value.dtype).as_datatype_enum
    for size in value.shape:
        tensor.tensor_shape.dim.add().size = size
    if value.dtype == object:  # of bytes
        tensor.string_val.extend(value.flat)
    else:
        tensor.tensor_content = value.tobytes()


def _decode(
    tensors: Mapping[str, tensor_pb2.TensorProto], signature: Signature, max_bytes: int
) -> Tensors:
    check_names(signature, list(tensors))
    return {
        name: _array(name, tensors[name], spec, max_bytes)
        for name, spec in signature.inputs.items()
    }


def _array(name: str, tensor: tensor_pb2.TensorProto, spec: Spec, max_bytes: int) -> np.ndarray:
    """An input's values. Its type and size are checked first: one value may stand for all."""
    if tensor.dtype != spec.dtype.as_datatype_enum:
        raise invalid(f"input '{name}' is not of the signature's type {spec.dtype.name}")
    if tensor.tensor_shape.unknown_rank:
        raise invalid(f"input '{name}' has no shape")
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    check_shape(name, spec, shape)
    element = spec.dtype.size
    if spec.dtype == tf.string:  # an empty one takes a pointer still
        element = max([8, *map(len, tensor.string_val)])
    if math.prod(shape) * element > max_bytes:
        raise ServingError("RESOURCE_EXHAUSTED", f"input '{name}' is larger than {max_bytes} bytes")
    try:
        return tf.make_ndarray(tensor)
    except (ValueError, TypeError) as error:
        raise invalid(f"input '{name}': its values do not fill its shape {shape}") from error
