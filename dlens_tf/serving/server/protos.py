"""The messages that REST and gRPC both answer with, REST as JSON."""

import json

from google.protobuf import json_format
from google.protobuf.message import Message
from tensorflow.core.protobuf import error_codes_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from dlens_tf.serving.server.models import ServedModel, VersionStatus

SIGNATURE_DEF = "signature_def"


def status_response(
    statuses: list[VersionStatus],
) -> get_model_status_pb2.GetModelStatusResponse:
    """The states of a model's versions."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for status in statuses:
        item = response.model_version_status.add()
        item.version = status.version
        item.state = get_model_status_pb2.ModelVersionStatus.State.Value(status.state)
        item.status.error_code = error_codes_pb2.Code.Value(status.code)
        item.status.error_message = status.message
    return response


def metadata_response(model: ServedModel) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """The signatures of a model."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = model.name
    response.model_spec.version.value = model.version
    response.metadata[SIGNATURE_DEF].Pack(model.signature_def)
    return response


def to_json(message: Message) -> bytes:
    """A message as TensorFlow Serving writes it: proto names, and zeros as well."""
    fields = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for packed in fields.get("metadata", {}).values():
        del packed["@type"]
    return json.dumps(fields, indent=1).encode()
