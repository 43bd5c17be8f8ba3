"""gRPC: the PredictionService of TensorFlow Serving. Its protos import TensorFlow."""

from collections.abc import Mapping, Sequence

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from dlens_tf.io.files import one_line
from dlens_tf.serving.transport import Answer, ModelName, ServerError, seconds_left

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_retries", 0),  # the client retries, whatever the protocol
    # Without this, a lost connection is not tried again before a second has passed. The least
    # back-off is not for this: it is also what a connection may take to be made.
    ("grpc.initial_reconnect_backoff_ms", 100),
]


class GrpcTransport:
    """A `Transport` over gRPC.

    Args:
      target: host:port.
    """

    def __init__(self, target: str):
        self._channel = grpc.insecure_channel(target, _OPTIONS)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def ask(
        self,
        model: ModelName,
        signature: str,
        inputs: Mapping[str, Sequence[bytes]],
        deadline: float,
    ) -> Answer:
        """See `Transport`."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model.name
        request.model_spec.signature_name = signature
        if model.version is not None:
            request.model_spec.version.value = model.version
        elif model.label is not None:
            request.model_spec.version_label = model.label
        for name, values in inputs.items():
            tensor = request.inputs[name]
            tensor.dtype = tf.string.as_datatype_enum
            tensor.tensor_shape.dim.add().size = len(values)
            tensor.string_val.extend(values)
        try:
            response = self._stub.Predict(request, timeout=seconds_left(deadline))
        except grpc.RpcError as error:
            code, message = error.code().name, error.details() or ""
            if code == "RESOURCE_EXHAUSTED" and "larger than" in message:
                code = "TOO_LARGE"  # asking again would not help
            raise ServerError(code, message) from error
        try:
            outputs = {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
        except (TypeError, ValueError) as error:
            raise ServerError("DATA_LOSS", one_line(error)) from error
        if not outputs:
            raise ServerError("DATA_LOSS", "there are no outputs in it")
        spec = response.model_spec
        return Answer(outputs, spec.version.value if spec.HasField("version") else None)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()
