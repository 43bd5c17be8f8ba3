"""Warm-up requests, which TF Serving replays before it takes a new version into service.

A TFRecord of `PredictionLog` protos in the bundle's assets.extra/. One request per signature
and batch size, with simulated lenses, so that the first user's request finds every kernel
ready. The largest batch is asked of serve_bytes alone, where it costs no more than one image in
the file; all signatures run the same kernels.

Reference: TF Serving guide, "SavedModel Warmup".
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from dlens_tf.inference.bundle import EXTRA, WARMUP_REQUESTS
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.simulator import Simulator

BATCH_SIZES = {"serving_default": (1, 8), "serve_density": (1,), "serve_bytes": (1, 8, 32)}
_NUM_LENSES = 8
_MODEL_NAME = "dlens"


def example_images(recipe: str, dm_class: str) -> np.ndarray:
    """A few simulated lenses of a recipe, float32 [8, H, W, C], the same on every call."""
    lenses = Simulator(get_recipe(recipe)).simulate_many(dm_class, 0, range(_NUM_LENSES))
    return np.stack([lens.image for lens in lenses])


def to_bytes(images: np.ndarray) -> list[bytes]:
    """Images as the signature serve_bytes takes them: raw little-endian float32, row by row."""
    return [image.astype("<f4").tobytes() for image in images]


def _request(signature: str, key: str, tensor) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = _MODEL_NAME
    request.model_spec.signature_name = signature
    request.inputs[key].CopyFrom(tensor)
    return request


def warmup_requests(images: np.ndarray) -> Iterator[predict_pb2.PredictRequest]:
    """The requests for each signature and batch size, made of some images [N, H, W, C]."""
    for signature in ("serving_default", "serve_density"):
        for size in BATCH_SIZES[signature]:
            batch = np.resize(images, (size, *images.shape[1:]))
            yield _request(signature, "image", tf.make_tensor_proto(batch))
    for size in BATCH_SIZES["serve_bytes"]:
        # One string stands for all of the batch, which keeps the file small.
        tensor = tf.make_tensor_proto(
            to_bytes(images[:1]), dtype=tf.string, shape=[size], allow_broadcast=True
        )
        yield _request("serve_bytes", "image_bytes", tensor)


def write_warmup_requests(bundle: Path, images: np.ndarray) -> None:
    """Writes the requests into a bundle."""
    (bundle / EXTRA).mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(bundle / EXTRA / WARMUP_REQUESTS)) as writer:
        for request in warmup_requests(images):
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())


def read_warmup_requests(bundle: Path) -> list[predict_pb2.PredictRequest]:
    """The requests in a bundle."""
    records = tf.data.TFRecordDataset(str(bundle / EXTRA / WARMUP_REQUESTS))
    return [
        prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        for record in records.as_numpy_iterator()
    ]
