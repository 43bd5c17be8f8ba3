"""The warm-up file is what TF Serving's guide describes: a TFRecord of PredictionLog."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from dlens_tf.serving.signatures import SIGNATURES
from dlens_tf.serving.warmup import example_images, write_warmup_requests


@pytest.fixture(scope="module")
def logs(exported_run):
    path = exported_run / "export" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


def test_one_request_per_signature_and_batch_size(logs):
    assert all(log.WhichOneof("log_type") == "predict_log" for log in logs)
    requests = [log.predict_log.request for log in logs]
    seen = [
        (
            r.model_spec.signature_name,
            *sorted(r.inputs),
            r.inputs[next(iter(r.inputs))].tensor_shape.dim[0].size,
        )
        for r in requests
    ]
    keys = {
        "serve_bytes": ["image_bytes"],
        "serve_density": ["image"],
        "serve_density_bytes": ["image_bytes"],
        "serve_examples": ["examples"],
        "serve_features": ["image"],
        "serve_manifest": ["key"],
        "serve_samples": ["image", "seed"],
        "serving_default": ["image"],
    }
    expected = [(name, *key, size) for name, key in keys.items() for size in (1, 8, 32)]
    assert sorted(seen) == sorted(expected)


def test_file_of_large_images_is_small(tmp_path):
    images = np.random.default_rng(0).normal(size=(8, 150, 150, 1)).astype(np.float32)
    write_warmup_requests(tmp_path, images, SIGNATURES)
    assert (tmp_path / "assets.extra" / "tf_serving_warmup_requests").stat().st_size < 1.3e6


def test_replay(exported_run, logs):
    loaded = tf.saved_model.load(str(exported_run / "export" / "1"))
    for log in logs:
        request = log.predict_log.request
        feeds = {key: tf.constant(tf.make_ndarray(v)) for key, v in request.inputs.items()}
        size = next(iter(feeds.values())).shape[0]
        served = loaded.signatures[request.model_spec.signature_name](**feeds)
        assert all(len(values) == size for values in served.values())
        if "quantiles" in served:
            assert np.isfinite(served["quantiles"]).all()


def test_images_are_lenses(logs):
    request = next(
        log.predict_log.request
        for log in logs
        if log.predict_log.request.model_spec.signature_name == "serving_default"
    )
    image = tf.make_ndarray(request.inputs["image"])[0]
    np.testing.assert_array_equal(image, example_images("model_ii_instrument", "axion")[0])
    assert image.max() > 10 * np.median(np.abs(image))
