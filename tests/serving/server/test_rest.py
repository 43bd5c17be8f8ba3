import base64
import json
import tracemalloc

import numpy as np
import pytest
import requests
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2

from dlens_tf.serving.server.errors import ServingError
from dlens_tf.serving.server.inputs import Signature, Spec
from dlens_tf.serving.server.json_tensors import decode_request

PREDICT = "/v1/models/small:predict"


def close(values, expected):
    np.testing.assert_allclose(np.array(values), expected, rtol=1e-5, atol=1e-5)


def b64(image):
    return {"b64": base64.b64encode(image.astype("<f4").tobytes()).decode()}


def test_rows(client, images, reference):
    answer = client.rest(PREDICT, {"instances": images[:3].tolist()})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("application/json")
    predictions = answer.json()["predictions"]
    assert len(predictions) == 3 and predictions[0].keys() == reference.keys()
    for name in reference:
        close([row[name] for row in predictions], reference[name][:3])


def test_rows_of_named_inputs_and_columns(client, images, reference):
    rows = [{"image": image.tolist()} for image in images[:2]]
    named = client.rest(PREDICT, {"instances": rows}).json()
    close([row["mean"] for row in named["predictions"]], reference["mean"][:2])
    for inputs in (images[:2].tolist(), {"image": images[:2].tolist()}):
        outputs = client.rest(PREDICT, {"inputs": inputs}).json()["outputs"]
        assert outputs.keys() == reference.keys()
        close(outputs["quantiles"], reference["quantiles"][:2])


@pytest.mark.parametrize("where", ["", "/versions/1", "/labels/stable"])
def test_bytes_by_version_and_label(client, images, reference, where):
    body = {"signature_name": "serve_bytes", "instances": [b64(images[0])]}
    path = f"/v1/models/small{where}:predict"
    close(client.rest(path, body).json()["predictions"][0]["mean"], reference["mean"][0])
    body["instances"] = [{"image_bytes": b64(images[1])}]
    close(client.rest(path, body).json()["predictions"][0]["mean"], reference["mean"][1])


def test_status(client):
    expected = {
        "model_version_status": [
            {
                "version": "1",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    for where in ("", "/versions/1", "/labels/stable"):
        assert client.rest(f"/v1/models/small{where}").json() == expected


def test_metadata_is_the_saved_models(client, bundle):
    answer = client.rest("/v1/models/small/versions/1/metadata").json()
    assert answer["model_spec"] == {"name": "small", "signature_name": "", "version": "1"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    saved = saved_model_pb2.SavedModel.FromString((bundle / "saved_model.pb").read_bytes())
    saved = saved.meta_graphs[0].signature_def
    assert signatures.keys() == set(saved)
    for name, signature in signatures.items():
        parsed = json_format.ParseDict(signature, type(saved[name])())
        assert parsed == saved[name]
    image = signatures["serving_default"]["inputs"]["image"]
    assert image["dtype"] == "DT_FLOAT"
    assert [dim["size"] for dim in image["tensor_shape"]["dim"]] == ["-1", "64", "64", "1"]


ZERO = np.zeros((64, 64, 1)).tolist()


def with_nan(value):
    image = np.zeros((64, 64, 1)).tolist()
    image[3][4][0] = value
    return image


def nested(value, levels):
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "body, message",
    [
        ("{", "the body is no JSON"),
        ("[" * 100_000, "the body is no JSON"),
        ("1" * 5000, "the body is no JSON"),
        (b"\xff\xfe\xfd", "the body is no JSON"),
        ([1], "no JSON object"),
        ({}, 'either "instances" or "inputs"'),
        ({"instances": [ZERO], "inputs": [ZERO]}, 'either "instances" or "inputs"'),
        ({"instances": [ZERO], "more": 1}, 'unknown key "more"'),
        ({"instances": []}, "an empty one"),
        ({"inputs": []}, "input 'image' has shape [0]; the signature takes [N, 64, 64, 1]"),
        ({"instances": [ZERO], "signature_name": 3}, "signature_name is no string"),
        ({"instances": [ZERO], "signature_name": "x"}, "no signature 'x'; it has serve_"),
        ({"instances": [[1.0, 2.0]]}, "'image' has shape [1, 2]; the signature takes [N, 64,"),
        ({"instances": [[1.0], [1.0, 2.0]]}, "input 'image': its rows are not all of one shape"),
        ({"instances": [{"image": ZERO, "x": 1}]}, "row 0 has image, x; the signature takes"),
        ({"instances": [{"image": ZERO}, ZERO]}, "row 1 does not name its inputs"),
        ({"inputs": {"img": [ZERO]}}, "the inputs are img; the signature takes image"),
        ({"instances": [with_nan("1.0")]}, "input 'image' has values that are not of type float"),
        ({"instances": [with_nan(None)]}, "input 'image' has values that are not of type float"),
        ({"instances": [with_nan(True)]}, "input 'image' has values that are not of type float"),
        ({"instances": [with_nan(10**400)]}, "input 'image' has values outside float32"),
        ({"inputs": nested(1.0, 50)}, "input 'image' has shape [1, 1,"),
        ({"inputs": nested(1.0, 400)}, "input 'image': its rows are not all of one shape"),
        ({"instances": [ZERO], "é" * 9999: 1}, 'unknown key "'),
        ({"instances": [ZERO], "signature_name": "x\ny" * 9999}, "no signature 'x yx"),
        ({"instances": [ZERO, with_nan(float("nan"))]}, "input 'image', row 1: NaN or infinite"),
        ({"instances": [with_nan(float("inf"))]}, "input 'image', row 0: NaN or infinite"),
        ({"instances": [with_nan(1e300)]}, "input 'image', row 0: NaN or infinite"),
    ],
)  # fmt: skip
def test_wrong_requests_are_one_clear_line(client, body, message):
    data = body if isinstance(body, (str, bytes)) else json.dumps(body)
    answer = requests.post(client.url + PREDICT, data, timeout=60)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error and "\n" not in error and len(error) <= 500


def test_a_long_string_makes_no_number_large():
    signature = Signature({"image": Spec(tf.float32, (None, None))}, {})
    request = {"inputs": [["x" * 25_000] + [1] * 2000]}
    tracemalloc.start()
    with pytest.raises(ServingError, match="not of type float32"):
        decode_request(request, signature)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize("value", [2**63, 10**400, 1.0, True, "1", None])
def test_integers_that_are_none(client, value):
    asked = {"image": [ZERO], "seed": [value]}
    answer = client.rest(PREDICT, {"signature_name": "serve_samples", "inputs": asked})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("input 'seed' has values")


@pytest.mark.parametrize("levels", [33, 400])
def test_deep_strings(client, levels):
    asked = {"signature_name": "serve_manifest", "inputs": nested("a", levels)}
    answer = client.rest(PREDICT, asked)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("input 'key'")


@pytest.mark.parametrize(
    "instances, message",
    [
        ([{"b64": "AAAA"}], "row 0: 3 bytes are not whole float32 numbers"),
        ([{"b64": "AAAAAA=="}], "row 0: 1 float32 numbers; an image [64, 64, 1] has 4096"),
        ([{"b64": "$"}], "not valid UTF-8 or base64"),
        ([{"b64": 3}], "not valid UTF-8 or base64"),
        (["AAAA"] * 1025, "has 1025 rows; send 1024 at most"),
        ([3], 'needs strings, or bytes as {"b64": "…"}'),
        ([["AAAA"], "AAAA"], "not all of one shape"),
        (["\ud800"], "not valid UTF-8 or base64"),
        ([b64(np.zeros(4096)), b64(np.full(4096, np.inf))], "row 1: NaN or infinite"),
    ],
)
def test_wrong_bytes(client, instances, message):
    answer = client.rest(PREDICT, {"signature_name": "serve_bytes", "instances": instances})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("input 'image_bytes'")
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/models/small/versions/2", 404),
        ("GET", "/v1/models/small/labels/none", 400),
        ("GET", "/v1/models/small/versions/2/metadata", 404),
        ("POST", "/v1/models/none:predict", 404),
        ("POST", "/v1/models/..%2F..%2Fetc%2Fpasswd:predict", 400),
        ("POST", "/v1/models/small/versions/" + "9" * 5000 + ":predict", 400),
        ("POST", "/v1/models/small:classify", 400),
        ("GET", "/v1/models/small:predict", 400),
        ("POST", "/v1/models/small", 400),
        ("GET", "/v1/../../etc/passwd", 400),
        ("GET", "/etc/passwd", 404),
        ("DELETE", "/healthz", 405),
    ],
)
def test_wrong_paths(client, method, path, status):
    prepared = requests.Request(method, client.url).prepare()
    prepared.url = client.url + path  # as it is, with its dots
    with requests.Session() as session:
        answer = session.send(prepared, timeout=60)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}


def test_health_and_metrics(client, images):
    assert client.rest("/healthz").text == "ok\n"
    assert client.rest("/readyz").text == "ready\n"
    client.rest(PREDICT, {"instances": images[:2].tolist()})
    client.rest(PREDICT, {"instances": 3})
    text = client.rest("/metrics").text
    labels = 'protocol="rest",signature="serving_default"'
    assert f'dlens_serving_requests_total{{code="OK",model="small",{labels}}}' in text
    assert f'dlens_serving_requests_total{{code="INVALID_ARGUMENT",model="small",{labels}}}' in text
    assert f'dlens_serving_request_seconds_bucket{{le="+Inf",model="small",{labels}}}' in text
    assert 'dlens_serving_batch_size_bucket{le="2.0",model="small",' in text
    assert 'dlens_serving_version_in_service{model="small",version="1"} 1.0' in text
    assert "dlens_serving_queue_depth 0.0" in text
    assert "process_resident_memory_bytes" in text
