"""Warm-up requests, which TF Serving replays before it takes a new version into service.

A TFRecord of `PredictionLog` protos in the bundle's assets.extra/. One request per signature
and allowed batch size, so that the first user's request finds every kernel ready. serving_default
is asked for a simulated lens; else images are of one number, or one string stands for all, which
keeps the file small.

Reference: TF Serving guide, "SavedModel Warmup".
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from dlens_tf.inference.bundle import EXTRA, WARMUP_BATCH_SIZES, WARMUP_REQUESTS

FIRST = "serving_default"
_NUM_LENSES = 3
_MODEL_NAME = "dlens"


def example_images(recipe: str, dm_class: str) -> np.ndarray:
    """A few simulated lenses of a recipe, float32 [3, H, W, C], the same on every call."""
    # Who only replays requests needs no simulator.
    from dlens_tf.simulation.recipes import get_recipe
    from dlens_tf.simulation.simulator import Simulator

    lenses = Simulator(get_recipe(recipe)).simulate_many(dm_class, 0, range(_NUM_LENSES))
    return np.stack([lens.image for lens in lenses])


def to_bytes(images: np.ndarray) -> list[bytes]:
    """Images as the signature serve_bytes takes them: raw little-endian float32, row by row."""
    return [image.astype("<f4").tobytes() for image in images]


def to_examples(images: np.ndarray) -> list[bytes]:
    """Images as the signature serve_examples takes them: serialized tf.Examples."""

    def example(image: bytes) -> tf.train.Example:
        feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))
        return tf.train.Example(features=tf.train.Features(feature={"image": feature}))

    return [example(image).SerializeToString() for image in to_bytes(images)]


def inputs_of(signature: str, images: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
    """What a signature takes for some images.

    Args:
      signature: one of `signatures.SIGNATURES`.
      images: float32 [N, H, W, C].
      seeds: int64 [N].
    """
    match signature:
        case "serve_bytes" | "serve_density_bytes":
            return {"image_bytes": np.array(to_bytes(images), object)}
        case "serve_examples":
            return {"examples": np.array(to_examples(images), object)}
        case "serve_samples":
            return {"image": images, "seed": seeds}
        case "serve_manifest":
            return {"key": np.array([b""] * len(images), object)}
        case _:
            return {"image": images}


def warmup_requests(
    images: np.ndarray, signatures: Iterable[str]
) -> Iterator[predict_pb2.PredictRequest]:
    """The requests for each signature and batch size, made of some images [N, H, W, C]."""
    for signature in signatures:
        one = inputs_of(signature, images[:1], np.zeros(1, np.int64))
        is_first = signature == FIRST
        for size in WARMUP_BATCH_SIZES:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = _MODEL_NAME
            request.model_spec.signature_name = signature
            for key, values in one.items():
                is_string = values.dtype == object
                request.inputs[key].CopyFrom(
                    tf.make_tensor_proto(
                        values if is_string or (size == 1 and is_first) else values.ravel()[:1],
                        dtype=tf.string if is_string else values.dtype,
                        shape=[size, *values.shape[1:]],
                        allow_broadcast=True,
                    )
                )
            yield request


def write_warmup_requests(bundle: Path, images: np.ndarray, signatures: Iterable[str]) -> None:
    """Writes the requests for a bundle's signatures into it."""
    (bundle / EXTRA).mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(bundle / EXTRA / WARMUP_REQUESTS)) as writer:
        for request in warmup_requests(images, signatures):
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
