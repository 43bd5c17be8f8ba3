"""The served signatures: what a bundle takes and gives, as TensorFlow functions.

serving_default: `image` float32 [N, H, W, C] in raw flux.
serve_bytes: `image_bytes` string [N], each the raw little-endian float32 of one image, row by
row: several times smaller and faster to send than JSON numbers.

Both give `mean` [N, P] and, for a head with an uncertainty, `stddev` [N, P] and `quantiles`
[N, P, Q], float32 in physical units.
"""

import math
from pathlib import Path

import keras
import tensorflow as tf
from scipy import special

from dlens_tf.inference.posterior import QUANTILE_LEVELS


def add_quantiles(outputs: dict) -> dict:
    """A model's outputs with the `quantiles` of its Gaussian marginals, if it has a width."""
    if "stddev" not in outputs:
        return {"mean": outputs["mean"]}
    mean, stddev = outputs["mean"], outputs["stddev"]
    scores = tf.constant(special.ndtri(QUANTILE_LEVELS), tf.float32)
    quantiles = mean[..., tf.newaxis] + stddev[..., tf.newaxis] * scores
    return {"mean": mean, "stddev": stddev, "quantiles": quantiles}


def write_saved_model(model: keras.Model, image_shape: tuple[int, int, int], path: Path) -> None:
    """Writes a model with its signatures as a SavedModel.

    Args:
      model: images float32 [N, H, W, C] to a dict of "mean" and perhaps "stddev", [N, P].
      image_shape: height, width, channels.
      path: folder to write.
    """
    num_bytes = 4 * math.prod(image_shape)
    layout = "×".join(str(n) for n in image_shape)

    def serving_default(image):
        return add_quantiles(model(image, training=False))

    def serve_bytes(image_bytes):
        right_length = tf.debugging.assert_equal(
            tf.strings.length(image_bytes),
            num_bytes,
            message=(
                f"image_bytes: each string must be the {num_bytes} bytes of a {layout} image in "
                "little-endian float32"
            ),
        )
        with tf.control_dependencies([right_length]):
            values = tf.io.decode_raw(image_bytes, tf.float32, little_endian=True)
        return serving_default(tf.reshape(values, [-1, *image_shape]))

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        serving_default,
        input_signature=[tf.TensorSpec([None, *image_shape], tf.float32, "image")],
    )
    archive.add_endpoint(
        "serve_bytes",
        serve_bytes,
        input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")],
    )
    archive.write_out(str(path), verbose=False)


def describe_signatures(saved_model) -> dict:
    """Keys, dtypes and shapes of a loaded SavedModel's signatures, JSON-ready."""

    def describe(specs: dict) -> dict:
        return {
            name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
            for name, spec in sorted(specs.items())
        }

    return {
        name: {
            "inputs": describe(signature.structured_input_signature[1]),
            "outputs": describe(signature.structured_outputs),
        }
        for name, signature in sorted(saved_model.signatures.items())
    }
