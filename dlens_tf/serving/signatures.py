"""The served signatures: what a bundle takes and gives, as TensorFlow functions.

serving_default: `image` float32 [N, H, W, C] in raw flux.
serve_bytes: `image_bytes` string [N], each the raw little-endian float32 of one image, row by
row: several times smaller and faster to send than JSON numbers.
serve_density: `image` again, for those who want the whole posterior, as `Predictor` does.

All give `mean` [N, P] and, for a head with an uncertainty, `stddev` [N, P] and `quantiles`
[N, P, Q], float32 in physical units. serve_density then gives `density` [N, D] too: the numbers
that `Posterior.from_outputs` makes the posterior of.
"""

import math
from pathlib import Path

import keras
import tensorflow as tf

from dlens_tf.evaluation.recalibration import Recalibration
from dlens_tf.serving.answers import answers

SIGNATURES = {
    "serving_default": ("mean", "stddev", "quantiles"),
    "serve_bytes": ("mean", "stddev", "quantiles"),
    "serve_density": ("mean", "stddev", "quantiles", "density"),
}
"""What each signature gives of a model's outputs."""


def served(signature: str, outputs: dict) -> dict:
    """Those of a model's outputs that a signature gives."""
    return {name: outputs[name] for name in SIGNATURES[signature] if name in outputs}


def write_saved_model(
    model: keras.Model,
    image_shape: tuple[int, int, int],
    path: Path,
    recalibration: Recalibration | None = None,
) -> None:
    """Writes a model with its signatures as a SavedModel.

    Args:
      model: images float32 [N, H, W, C] to a head's outputs.
      image_shape: height, width, channels.
      path: folder to write.
      recalibration: maps that what is served goes through, see `answers`.
    """
    num_bytes = 4 * math.prod(image_shape)
    layout = "×".join(str(n) for n in image_shape)
    image_spec = tf.TensorSpec([None, *image_shape], tf.float32, "image")
    # One function that all signatures call, so that the graph is in the file once.
    answer = tf.function(answers(model, recalibration), input_signature=[image_spec])

    def serving_default(image):
        return served("serving_default", answer(image))

    def serve_density(image):
        return served("serve_density", answer(image))

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
        return served("serve_bytes", answer(tf.reshape(values, [-1, *image_shape])))

    module = tf.Module()
    # keras.export.ExportArchive tracks Keras's variables beside these and writes each twice.
    module.model_variables = [variable.value for variable in model.variables]
    bytes_spec = tf.TensorSpec([None], tf.string, "image_bytes")
    tf.saved_model.save(
        module,
        str(path),
        signatures={
            "serving_default": tf.function(serving_default, input_signature=[image_spec]),
            "serve_density": tf.function(serve_density, input_signature=[image_spec]),
            "serve_bytes": tf.function(serve_bytes, input_signature=[bytes_spec]),
        },
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )


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
