"""Every signature of a bundle, by both protocols, as TensorFlow itself answers it."""

import base64

import numpy as np
import pytest
import tensorflow as tf

from dlens_tf.serving.signatures import SIGNATURES
from dlens_tf.serving.warmup import inputs_of

NUM_IMAGES = 3


@pytest.fixture(scope="module")
def loaded(bundle):
    return tf.saved_model.load(str(bundle))


@pytest.fixture(params=SIGNATURES)
def asked(request, loaded, images):
    """A signature, its inputs, and TensorFlow's outputs."""
    seeds = np.arange(5, 5 + NUM_IMAGES, dtype=np.int64)
    inputs = inputs_of(request.param, images[:NUM_IMAGES], seeds)
    outputs = loaded.signatures[request.param](
        **{
            name: tf.constant(value, tf.string if value.dtype == object else None)
            for name, value in inputs.items()
        }
    )
    return request.param, inputs, {name: value.numpy() for name, value in outputs.items()}


def check(answer, expected):
    assert answer.keys() == expected.keys()
    for name, value in expected.items():
        if value.dtype == object:
            assert list(answer[name]) == list(value)
        else:
            np.testing.assert_allclose(answer[name], value, rtol=1e-4, atol=1e-5)


def test_by_grpc(client, asked):
    signature, inputs, expected = asked
    answer = client.predictions.Predict(client.request(signature, **inputs), timeout=60)
    check({name: tf.make_ndarray(value) for name, value in answer.outputs.items()}, expected)


def test_by_rest(client, asked):
    signature, inputs, expected = asked

    def encoded(value):
        if value.dtype == object:
            return [{"b64": base64.b64encode(string).decode()} for string in value]
        return value.tolist()

    columns = {name: encoded(value) for name, value in inputs.items()}
    body = {"signature_name": signature, "inputs": columns}
    outputs = client.rest("/v1/models/small:predict", body).json()["outputs"]
    if len(expected) == 1:
        outputs = {next(iter(expected)): outputs}
    check(
        {
            name: np.array([v.encode() for v in value], object)
            if expected[name].dtype == object
            else np.array(value)
            for name, value in outputs.items()
        },
        expected,
    )
