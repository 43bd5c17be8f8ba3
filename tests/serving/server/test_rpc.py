import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)


def arrays(answer):
    return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}


def test_predict(client, images, reference):
    answer = client.predictions.Predict(client.request(image=images[:5]), timeout=60)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("small", 1)
    assert answer.model_spec.signature_name == "serving_default"
    outputs = arrays(answer)
    assert outputs.keys() == reference.keys()
    for name, value in outputs.items():
        np.testing.assert_allclose(value, reference[name][:5], rtol=1e-5, atol=1e-5)


def test_version_label_bytes_and_filter(client, images, reference):
    strings = [image.tobytes() for image in images[:2]]
    request = client.request("serve_bytes", image_bytes=strings)
    request.model_spec.version_label = "stable"
    request.output_filter.append("mean")
    answer = client.predictions.Predict(request, timeout=60)
    assert answer.model_spec.version.value == 1
    assert list(answer.outputs) == ["mean"]
    np.testing.assert_allclose(arrays(answer)["mean"], reference["mean"][:2], rtol=1e-5, atol=1e-5)
    request.model_spec.version.value = 1  # instead of the label
    assert client.predictions.Predict(request, timeout=60) == answer


def test_one_string_may_stand_for_all(client, images, reference):
    request = client.request(
        "serve_bytes",
    )
    tensor = tf.make_tensor_proto(
        [images[3].tobytes()], dtype=tf.string, shape=[4], allow_broadcast=True
    )
    request.inputs["image_bytes"].CopyFrom(tensor)
    mean = arrays(client.predictions.Predict(request, timeout=60))["mean"]
    np.testing.assert_allclose(mean, np.tile(reference["mean"][3], (4, 1)), rtol=1e-5, atol=1e-5)


def test_metadata_and_status(client, bundle):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "small"
    answer = client.predictions.GetModelMetadata(request, timeout=60)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("small", 1)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    saved = saved_model_pb2.SavedModel.FromString((bundle / "saved_model.pb").read_bytes())
    assert dict(signatures.signature_def) == dict(saved.meta_graphs[0].signature_def)

    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "small"
    (status,) = client.models.GetModelStatus(request, timeout=60).model_version_status
    assert (status.version, status.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)


def wrong(change):
    """A request that `change` has spoilt."""

    def make(client):
        request = client.request(image=np.zeros((2, 64, 64, 1), np.float32))
        change(request)
        return request

    return make


def put(value, name="image"):
    def change(request):
        request.inputs[name].CopyFrom(value)

    return wrong(change)


def huge(request):
    # One value stands for all, so that few bytes ask for terabytes.
    request.inputs["image"].CopyFrom(
        tf.make_tensor_proto([0.0], tf.float32, [1], allow_broadcast=True)
    )
    del request.inputs["image"].tensor_shape.dim[:]
    for size in (10**9, 64, 64, 1):
        request.inputs["image"].tensor_shape.dim.add(size=size)


def endless(request):
    # Of strings without a single byte.
    request.model_spec.signature_name = "serve_manifest"
    request.inputs.clear()
    request.inputs["key"].CopyFrom(
        tf.make_tensor_proto([b""], tf.string, [1], allow_broadcast=True)
    )
    request.inputs["key"].tensor_shape.dim[0].size = 10**12


def many(request):
    endless(request)
    request.inputs["key"].tensor_shape.dim[0].size = 20_000


def negative(request):
    request.inputs["image"].tensor_shape.dim[0].size = -1


def too_many(request):
    request.inputs["image"].tensor_shape.dim[0].size = 3


@pytest.mark.parametrize(
    "make, code, message",
    [
        (wrong(lambda r: r.ClearField("model_spec")), "INVALID_ARGUMENT", "name is missing"),
        (wrong(lambda r: setattr(r.model_spec, "name", "x")), "NOT_FOUND", "no model 'x'"),
        (wrong(lambda r: setattr(r.model_spec.version, "value", 9)), "NOT_FOUND", "version 9"),
        (
            wrong(lambda r: setattr(r.model_spec, "version_label", "x")),
            "INVALID_ARGUMENT",
            "label 'x'",
        ),
        (
            wrong(lambda r: setattr(r.model_spec, "signature_name", "x")),
            "INVALID_ARGUMENT",
            "signature 'x'",
        ),
        (
            wrong(lambda r: setattr(r.model_spec, "signature_name", "x\ny" * 9999)),
            "INVALID_ARGUMENT",
            "signature 'x yx",
        ),
        (wrong(lambda r: r.output_filter.append("x")), "INVALID_ARGUMENT", "output 'x'"),
        (wrong(lambda r: r.output_filter.extend(["mean"] * 2)), "INVALID_ARGUMENT", "twice"),
        (wrong(lambda r: r.inputs.clear()), "INVALID_ARGUMENT", "the inputs are none"),
        (put(tf.make_tensor_proto(1.0), "x"), "INVALID_ARGUMENT", "the inputs are image, x"),
        (put(tf.make_tensor_proto(np.zeros((1, 64, 64, 1)))), "INVALID_ARGUMENT", "type float32"),
        (put(tf.make_tensor_proto(np.zeros((1, 64, 64), "f4"))), "INVALID_ARGUMENT", "[1, 64, 64]"),
        (put(tf.make_tensor_proto(np.zeros((0, 64, 64, 1), "f4"))), "INVALID_ARGUMENT", "is empty"),
        (wrong(negative), "INVALID_ARGUMENT", "[-1, 64, 64, 1]"),
        (wrong(too_many), "INVALID_ARGUMENT", "do not fill its shape [3, 64, 64, 1]"),
        (wrong(huge), "RESOURCE_EXHAUSTED", "input 'image' is larger than"),
        (wrong(endless), "RESOURCE_EXHAUSTED", "input 'key' is larger than"),
        (wrong(many), "INVALID_ARGUMENT", "input 'key' has 20000 rows; send 1024 at most"),
        (
            put(tf.make_tensor_proto(np.full((1, 64, 64, 1), np.nan, "f4"))),
            "INVALID_ARGUMENT",
            "input 'image', row 0: NaN or infinite",
        ),
        (
            wrong(lambda r: setattr(r.inputs["image"].tensor_shape, "unknown_rank", True)),
            "INVALID_ARGUMENT",
            "has no shape",
        ),
    ],
)
def test_wrong_requests_are_one_clear_line(client, make, code, message):
    with pytest.raises(grpc.RpcError) as caught:
        client.predictions.Predict(make(client), timeout=60)
    assert caught.value.code() == grpc.StatusCode[code]
    assert message in caught.value.details() and "\n" not in caught.value.details()


def test_damaged_messages(client):
    call = client.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff", timeout=60)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_calls_without_a_message(client):
    call = client.channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
    with pytest.raises(grpc.RpcError) as caught:
        call(iter(()), timeout=60)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "the call has no message"


def test_other_methods_are_unimplemented(client):
    with pytest.raises(grpc.RpcError) as caught:
        client.predictions.Classify(classification_pb2.ClassificationRequest(), timeout=60)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_metrics_know_grpc(client, images):
    client.predictions.Predict(client.request(image=images[:1]), timeout=60)
    with pytest.raises(grpc.RpcError):
        client.predictions.Predict(predict_pb2.PredictRequest(), timeout=60)
    text = client.rest("/metrics").text
    counts = "dlens_serving_requests_total"
    assert (
        f'{counts}{{code="OK",model="small",protocol="grpc",signature="serving_default"}}' in text
    )
    assert f'{counts}{{code="INVALID_ARGUMENT",model="",protocol="grpc",signature=""}}' in text
