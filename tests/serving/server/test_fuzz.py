"""Whatever clients send, the server neither fails nor dies."""

import base64
import json
import socket
import urllib.parse

import grpc
import hypothesis
import numpy as np
import pytest
import requests
import tensorflow as tf
from google.protobuf.message import Message
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2

PREDICT = "/v1/models/small:predict"
SIGNATURES = ["serving_default", "serve_bytes", "serve_examples", "serve_samples", "x", ""]
IMAGE = np.random.default_rng(0).normal(size=(1, 64, 64, 1)).astype(np.float32)
RAW = IMAGE.tobytes()

amounts = pytest.mark.parametrize(
    "number", [25, pytest.param(1000, marks=pytest.mark.slow)], ids=["few", "many"]
)

LONG = "x" * 20_000

texts = st.text(max_size=8) | st.sampled_from(
    ["image", "image_bytes", "examples", "seed", "b64", LONG]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)
deep = st.tuples(values, st.integers(30, 900)).map(lambda inner: nested(*inner))
strings = st.binary(max_size=64) | st.sampled_from([None, -1]).map(lambda end: RAW[:end])
encoded = strings.map(lambda string: {"b64": base64.b64encode(string).decode()})
near_images = st.tuples(
    st.sampled_from([0.0, 1e39, float("nan"), None, "x", True, 10**400, LONG]), st.integers(0, 4095)
).map(lambda spoil: spoilt(*spoil))
rows = st.lists(values | encoded | near_images | deep, max_size=3)
named = st.dictionaries(
    texts, values | rows | deep | st.lists(st.integers(), max_size=3), max_size=3
)
requests_ = st.fixed_dictionaries(
    {},
    optional={
        "instances": rows | st.lists(named, max_size=3) | values,
        "inputs": named | rows | values,
        "signature_name": st.sampled_from(SIGNATURES) | values,
    },
)
bodies = (
    st.binary(max_size=200)
    | values.map(json.dumps)
    | st.one_of(requests_, requests_).map(json.dumps)
)


def nested(value, levels):
    for _ in range(levels):
        value = [value]
    return value


def spoilt(value, where):
    pixels = [0.0] * 4096
    pixels[where] = value
    return [[[pixel] for pixel in pixels[i : i + 64]] for i in range(0, 4096, 64)]


@pytest.fixture(scope="module", autouse=True)
def hypothesis_home(tmp_path_factory):
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


@pytest.fixture(autouse=True)
def still_answers(client, reference, images):
    """The server is as well after a test as before it."""
    yield
    answer = client.predictions.Predict(client.request(image=images[:1]), timeout=60)
    mean = tf.make_ndarray(answer.outputs["mean"])
    np.testing.assert_allclose(mean, reference["mean"][:1], rtol=1e-5, atol=1e-5)
    assert client.rest("/readyz").status_code == 200


def fuzz(number, strategy, check):
    """Calls check(example) with some examples, the same on every run."""
    settings = hypothesis.settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    settings(hypothesis.given(strategy)(check))()


@amounts
def test_bodies(client, number):
    with requests.Session() as session:

        def check(body):
            answer = session.post(client.url + PREDICT, body, timeout=60)
            assert answer.status_code in (200, 400)
            if answer.status_code == 400:
                assert answer.json().keys() == {"error"}
                assert len(answer.json()["error"]) <= 500

        fuzz(number, bodies, check)


@amounts
def test_paths_and_methods(client, number):
    parts = st.sampled_from(
        [
            "v1",
            "models",
            "small",
            "versions",
            "labels",
            "1",
            "metadata",
            "..",
            ":predict",
            "%2e",
            "",
        ]
    )
    paths = st.lists(parts | st.text(max_size=6), max_size=7).map("/".join)
    methods = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "X"])
    with requests.Session() as session:

        def check(example):
            method, path, quote = example
            prepared = requests.Request(method, client.url, data=b"{}").prepare()
            safe = "/:%." if quote else "/:."
            prepared.url = f"{client.url}/{urllib.parse.quote(path, safe=safe, errors='replace')}"
            answer = session.send(prepared, timeout=60, allow_redirects=False)
            assert answer.status_code < 500

        fuzz(number, st.tuples(methods, paths, st.booleans()), check)


@amounts
def test_bytes_that_are_no_http(client, server, number):
    lines = [b" HTTP/1.1\r\n", b"Host: x\r\n", b"Content-Length: 3\r\n", b"\r\n", b"5\r\n"]
    lines += [b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n"]
    pieces = st.sampled_from([b"POST ", PREDICT.encode(), *lines])
    streams = st.lists(pieces | st.binary(max_size=20), max_size=12).map(b"".join)

    def check(stream):
        with socket.create_connection(("127.0.0.1", server.rest_port), timeout=60) as connection:
            connection.sendall(stream)
            connection.shutdown(socket.SHUT_WR)
            try:
                answer = connection.recv(4096)
            except ConnectionError:
                return
        assert answer == b"" or answer[9:10] in b"24"

    fuzz(number, streams, check)


def tensor(fields, shape):
    proto = tensor_pb2.TensorProto(**fields)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


tensors = st.builds(
    tensor,
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from([0, 1, 7, 9, 23]),
            "tensor_content": strings,
            "float_val": st.lists(st.floats(width=32), max_size=3),
            "string_val": st.lists(strings, max_size=3),
            "int64_val": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
        },
    ),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.sampled_from([1, 64]), max_size=5),
)


def predict_request(signature, inputs, output_filter, version):
    request = predict_pb2.PredictRequest(output_filter=output_filter)
    request.model_spec.name = "small"
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    for name, tensor in inputs.items():
        request.inputs[name].CopyFrom(tensor)
    return request


messages = st.binary(max_size=200) | st.builds(
    predict_request,
    st.sampled_from([*SIGNATURES, LONG]),
    st.dictionaries(st.sampled_from(["image", "image_bytes", "examples", "seed", "x"]), tensors),
    st.lists(st.sampled_from(["mean", "stddev", "x", LONG]), max_size=2),
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.just(1),
)


@amounts
def test_messages(client, number):
    call = client.channel.unary_unary(
        "/tensorflow.serving.PredictionService/Predict",
        request_serializer=lambda m: m.SerializeToString() if isinstance(m, Message) else m,
    )
    allowed = {"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}

    def check(message):
        try:
            call(message, timeout=60)
        except grpc.RpcError as error:
            assert error.code().name in allowed, error.details()
            assert "metadata size" not in error.details()

    fuzz(number, messages, check)
