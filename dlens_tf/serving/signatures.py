"""The served signatures: what a bundle takes and gives, as TensorFlow functions.

    signature              input
    serving_default        image        float32 [N, H, W, C], raw flux
    serve_bytes            image_bytes  string [N], each the raw little-endian float32 of one image,
                                        row by row: several times faster to send than JSON numbers
    serve_examples         examples     string [N], records of our data sets: each a serialized
                                        tf.Example with the same bytes as its feature "image"
    serve_density          image        for those who want the whole posterior, as `Predictor` does
    serve_density_bytes    image_bytes
    serve_samples          image, seed  seed int64 [N]: the same seed gives the same draws
    serve_features         image
    serve_manifest         key          string [N], anything: what a client has to know

The first three give `mean` [N, P], `stddev` [N, P], `quantiles` [N, P, Q] and `ood_score` [N],
float32 in physical units. A point head has a mean only, and no score is given where none was
learnt.
serve_density and serve_density_bytes give `density` [N, D] too: the numbers that
`Posterior.from_outputs` makes the posterior of. serve_samples gives `samples` [N, S, P], draws from
the joint posterior; serve_features gives `features` [N, F], what the network gives to its head;
serve_manifest gives `manifest` string [N], JSON that `Manifest.from_served` reads.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import saved_model_pb2

from dlens_tf.evaluation.recalibration import Recalibration
from dlens_tf.inference.bundle import SAVED_MODEL
from dlens_tf.inference.out_of_distribution import Detector
from dlens_tf.serving.answers import answers, sampler

_ESTIMATES = ("mean", "stddev", "quantiles", "ood_score")
SIGNATURES = {
    "serving_default": _ESTIMATES,
    "serve_bytes": _ESTIMATES,
    "serve_examples": _ESTIMATES,
    "serve_density": (*_ESTIMATES, "density"),
    "serve_density_bytes": (*_ESTIMATES, "density"),
    "serve_samples": ("samples", "ood_score"),
    "serve_features": ("features", "ood_score"),
    "serve_manifest": ("manifest",),
}
"""What each signature gives of what there is; serve_samples is not there for a point head."""


def served(signature: str, outputs: dict) -> dict:
    """Those of a model's outputs that a signature gives."""
    return {name: outputs[name] for name in SIGNATURES[signature] if name in outputs}


def outputs_of(
    model: keras.Model,
    recalibration: Recalibration | None = None,
    detector: Detector | None = None,
) -> Callable:
    """A function from images [N, H, W, C] and seeds int64 [N] to all that signatures give.

    But the manifest. The reference that bundles are checked against.

    Args:
      model: images float32 [N, H, W, C] to a head's outputs.
      recalibration: maps that what is served goes through, see `answers`.
      detector: of images unlike the training images.
    """
    answer, draw = answers(model, recalibration, detector), sampler(model, recalibration)

    def outputs(images, seeds):
        result = answer(images)
        if "density" in result:
            result = result | {"samples": draw(result["density"], seeds)}
        return result

    return outputs


def write_saved_model(
    model: keras.Model,
    image_shape: tuple[int, int, int],
    path: Path,
    manifest: str,
    recalibration: Recalibration | None = None,
    detector: Detector | None = None,
) -> None:
    """Writes a model with its signatures as a SavedModel.

    Args:
      model: images float32 [N, H, W, C] to a head's outputs.
      image_shape: height, width, channels.
      path: folder to write.
      manifest: what serve_manifest gives.
      recalibration: maps that what is served goes through, see `answers`.
      detector: of images unlike the training images.
    """
    image_spec = tf.TensorSpec([None, *image_shape], tf.float32, "image")
    # One function that all signatures call, so that the graph is in the file once.
    answer = tf.function(answers(model, recalibration, detector), input_signature=[image_spec])
    draw = sampler(model, recalibration)
    gives_density = "density" in model.output

    def of_images(signature):
        return (lambda image: served(signature, answer(image))), [image_spec]

    def of_bytes(signature):
        def serve(image_bytes):
            return served(signature, answer(_decoded(image_bytes, image_shape, "image_bytes")))

        return serve, [tf.TensorSpec([None], tf.string, "image_bytes")]

    def serve_examples(examples):
        parsed = tf.io.parse_example(examples, {"image": tf.io.FixedLenFeature([], tf.string)})
        images = _decoded(parsed["image"], image_shape, "image")
        return served("serve_examples", answer(images))

    def serve_samples(image, seed):
        outputs = answer(image)
        return served("serve_samples", outputs | {"samples": draw(outputs["density"], seed)})

    def serve_manifest(key):
        return {"manifest": tf.fill(tf.shape(key), manifest)}

    functions = {
        "serving_default": of_images("serving_default"),
        "serve_density": of_images("serve_density"),
        "serve_features": of_images("serve_features"),
        "serve_bytes": of_bytes("serve_bytes"),
        "serve_density_bytes": of_bytes("serve_density_bytes"),
        "serve_examples": (serve_examples, [tf.TensorSpec([None], tf.string, "examples")]),
        "serve_manifest": (serve_manifest, [tf.TensorSpec([None], tf.string, "key")]),
    }
    if gives_density:
        seed_spec = tf.TensorSpec([None], tf.int64, "seed")
        functions["serve_samples"] = (serve_samples, [image_spec, seed_spec])
    module = tf.Module()
    # keras.export.ExportArchive tracks Keras's variables beside these and writes each twice.
    module.model_variables = [variable.value for variable in model.variables]
    tf.saved_model.save(
        module,
        str(path),
        signatures={
            name: tf.function(function, input_signature=specs)
            for name, (function, specs) in functions.items()
        },
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )
    _shrink(path)


def _shrink(path: Path) -> None:
    """Takes from a SavedModel what loaders don't need, the larger part of the graph.

    That is the shape of each op's outputs, hints that every loader infers again, and the long names
    of the ops inside functions. The fingerprint, which is of the file as it was before, goes with
    them; it is optional.
    """
    file = path / SAVED_MODEL
    saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for function in saved_model.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            node.attr.pop("_output_shapes", None)
        _shorten_names(function)
    # One order of what maps hold, so that the same model gives the same bytes.
    file.write_bytes(saved_model.SerializeToString(deterministic=True))
    (path / "fingerprint.pb").unlink(missing_ok=True)


def _shorten_names(function: function_pb2.FunctionDef) -> None:
    """Gives the ops inside a function numbers for names; only the function itself knows them."""
    arguments = {argument.name for argument in function.signature.input_arg}
    unused = (name for i in itertools.count() if (name := f"n{i}") not in arguments)
    short = dict(zip((node.name for node in function.node_def), unused, strict=False))

    def renamed(reference: str) -> str:
        control = "^" if reference.startswith("^") else ""
        name, colon, output = reference.removeprefix("^").partition(":")
        return f"{control}{short.get(name, name)}{colon}{output}"

    for node in function.node_def:
        node.name = short[node.name]
        node.input[:] = [renamed(reference) for reference in node.input]
        if "_class" in node.attr:  # of ops to be placed together
            together = node.attr["_class"].list.s
            names = [place.decode().removeprefix("loc:@") for place in together]
            together[:] = [f"loc:@{short.get(name, name)}".encode() for name in names]
    for output, reference in list(function.ret.items()):
        function.ret[output] = renamed(reference)
    for output, name in list(function.control_ret.items()):
        function.control_ret[output] = short[name]


def _decoded(strings: tf.Tensor, image_shape: tuple[int, int, int], name: str) -> tf.Tensor:
    """Images of the bytes of each."""
    num_bytes = 4 * math.prod(image_shape)
    layout = "×".join(str(n) for n in image_shape)
    right_length = tf.debugging.assert_equal(
        tf.strings.length(strings),
        num_bytes,
        message=(
            f"{name}: each string must be the {num_bytes} bytes of a {layout} image in "
            "little-endian float32"
        ),
    )
    with tf.control_dependencies([right_length]):
        values = tf.io.decode_raw(strings, tf.float32, little_endian=True)
    return tf.reshape(values, [-1, *image_shape])


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
