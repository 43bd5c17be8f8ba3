"""A running server with the small bundle, and how the tests ask it."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from dlens_tf.inference.bundle import Manifest
from dlens_tf.serving.server.app import running
from dlens_tf.serving.server.options import ModelConfig, ServerOptions


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Different images, float32 [40, 64, 64, 1]."""
    return np.random.default_rng(0).normal(size=(40, 64, 64, 1)).astype(np.float32)


@pytest.fixture(scope="session")
def bundle(exported_run) -> Path:
    """The small bundle. Not to be changed."""
    return exported_run / "export" / "1"


@pytest.fixture(scope="session")
def reference(bundle, images):
    """The signature `serving_default` as TensorFlow itself answers it, image by image."""
    loaded = tf.saved_model.load(str(bundle))
    outputs = loaded.signatures["serving_default"](image=tf.constant(images))
    return {name: value.numpy() for name, value in outputs.items()}


@pytest.fixture(scope="session")
def write_version(bundle):
    """Writes a version that answers with its number and each image's sum: (base, version)."""

    def write(base: Path, version: int, size: int = 1) -> Path:
        module = tf.Module()
        module.number = tf.Variable(tf.fill([size], float(version)))

        @tf.function(input_signature=[tf.TensorSpec([None, 64, 64, 1], tf.float32, "image")])
        def answer(image):
            sums = tf.reduce_sum(image, axis=[1, 2, 3])
            return {"mean": tf.stack([tf.fill(tf.shape(sums), module.number[0]), sums], axis=1)}

        partial = base / f".partial-{version}"
        tf.saved_model.save(module, str(partial), signatures={"serving_default": answer})
        manifest = dataclasses.replace(Manifest.read(bundle), sha256={})
        manifest.write(partial)
        return partial.rename(base / str(version))

    return write


@pytest.fixture(scope="session")
def local_options():
    """Options of a server at ports that the system chooses: local_options(models, …)."""

    def make(models, **changes) -> ServerOptions:
        options = ServerOptions(models, rest_port=0, grpc_port=0, poll_seconds=0.0)
        return dataclasses.replace(options, **changes)

    return make


@pytest.fixture(scope="session")
def connect():
    """What asks a running server: connect(server) has url, rest, predict, models, request."""

    def make(server):
        channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        url = f"http://127.0.0.1:{server.rest_port}"

        def rest(path: str, body=None, **options):
            """GET, or POST of a body."""
            if body is None:
                return requests.get(url + path, timeout=60, **options)
            return requests.post(url + path, json=body, timeout=60, **options)

        def request(signature: str = "", **inputs) -> predict_pb2.PredictRequest:
            """A request for the model "small"."""
            message = predict_pb2.PredictRequest()
            message.model_spec.name = "small"
            message.model_spec.signature_name = signature
            for name, value in inputs.items():
                message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            return message

        return SimpleNamespace(
            url=url,
            rest=rest,
            request=request,
            channel=channel,
            predictions=prediction_service_pb2_grpc.PredictionServiceStub(channel),
            models=model_service_pb2_grpc.ModelServiceStub(channel),
        )

    return make


@pytest.fixture(scope="session")
def server(bundle, local_options):
    """A running server with the model "small", version 1, labelled "stable"."""
    model = ModelConfig("small", bundle.parent, labels={"stable": 1})
    with running(local_options([model])) as running_server:
        yield running_server


@pytest.fixture
def client(server, connect):
    """What asks the running server."""
    made = connect(server)
    yield made
    made.channel.close()
