"""Checks that a bundle on disk answers as the Keras model it was made from.

It is loaded in both ways in use: `tf.saved_model.load`, as in Python, and the graph and session
of `tf.compat.v1.saved_model.loader`, as in TF Serving.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import SAVED_MODEL
from dlens_tf.parameters import ParameterSet
from dlens_tf.serving.signatures import served
from dlens_tf.serving.warmup import read_warmup_requests, to_bytes

TOLERANCE = 1e-5
"""Largest difference, in units of the width of a parameter's prior."""

DENSITY_TOLERANCE = 1e-4
"""Largest difference of the numbers of a density, which are of order one."""

FIT_ROUNDING = 100.0
"""How much larger both may be where the model fits lenses: rounding grows in the fit's steps."""

BATCH_SIZES = (1, 7)

Outputs = dict[str, np.ndarray]
Runner = Callable[[str, Outputs], Outputs]
"""Answers (signature, inputs) with the outputs."""

_PYTHON_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


@contextlib.contextmanager
def _eager_runner(bundle: Path) -> Iterator[Runner]:
    loaded = tf.saved_model.load(str(bundle))

    def run(signature: str, inputs: Outputs) -> Outputs:
        tensors = {key: tf.constant(value) for key, value in inputs.items()}
        return {k: v.numpy() for k, v in loaded.signatures[signature](**tensors).items()}

    yield run


@contextlib.contextmanager
def _no_deprecation_notice() -> Iterator[None]:
    """The session loader is deprecated for Python, but it is the one that TF Serving has."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _session_runner(bundle: Path) -> Iterator[Runner]:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        with _no_deprecation_notice():
            graph = tf.compat.v1.saved_model.loader.load(
                session, [tf.saved_model.SERVING], str(bundle)
            )

        def run(signature: str, inputs: Outputs) -> Outputs:
            definition = graph.signature_def[signature]
            feeds = {definition.inputs[key].name: value for key, value in inputs.items()}
            return session.run({k: v.name for k, v in definition.outputs.items()}, feeds)

        yield run


RUNNERS = {"tf.saved_model.load": _eager_runner, "saved_model.loader": _session_runner}


def check_bundle(
    bundle: Path,
    model: Callable[[np.ndarray], Outputs],
    parameters: ParameterSet,
    images: np.ndarray,
    foreign_paths: tuple[str, ...] = (),
    rounding: float = 1.0,
) -> None:
    """Checks a bundle against a model.

    All signatures are asked for batches of 1 and 7 images, and every warm-up request is replayed,
    through both loaders.

    Args:
      bundle: folder of the SavedModel.
      model: images float32 [N, H, W, C] to all outputs expected.
      parameters: the inferred parameters; their priors set the scale of the tolerance.
      images: some images, float32 [N, H, W, C].
      foreign_paths: paths of this machine that must not be in the bundle.
      rounding: factor on the tolerances, `FIT_ROUNDING` for models that fit lenses.

    Raises:
      UserError: naming the loader, signature and output that differ.
    """
    _check_portable(bundle, foreign_paths)
    width = np.ptp(parameters.supports, axis=1)
    cases = []
    for size in BATCH_SIZES:
        batch = np.resize(images, (size, *images.shape[1:]))
        cases.append(("serving_default", {"image": batch}, batch))
        cases.append(("serve_density", {"image": batch}, batch))
        cases.append(("serve_bytes", {"image_bytes": np.array(to_bytes(batch), object)}, batch))
    for request in read_warmup_requests(bundle):
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        batch = inputs.get("image")
        if batch is None:
            strings = b"".join(inputs["image_bytes"])
            batch = np.frombuffer(strings, "<f4").reshape(-1, *images.shape[1:])
        cases.append((request.model_spec.signature_name, inputs, batch))
    expectations = [served(signature, model(batch)) for signature, _, batch in cases]
    for loader, runner in RUNNERS.items():
        with runner(bundle) as run:
            for (signature, inputs, batch), expected in zip(cases, expectations, strict=True):
                where = f"{signature} of {len(batch)} images through {loader}"
                _compare(run(signature, inputs), expected, width, where, rounding)


def _compare(
    answer: Outputs, expected: Outputs, width: np.ndarray, where: str, rounding: float
) -> None:
    if answer.keys() != expected.keys():
        raise UserError(
            f"export check failed: {where} gives {', '.join(sorted(answer))}, the model gives "
            f"{', '.join(sorted(expected))}"
        )
    for name, value in answer.items():
        if value.shape != expected[name].shape or value.dtype != np.float32:
            raise UserError(
                f"export check failed: {name} from {where} is {value.dtype} {value.shape}, "
                f"expected float32 {expected[name].shape}"
            )
        difference = np.abs(value.astype(np.float64) - expected[name])
        if name == "density":
            difference /= np.maximum(1.0, np.abs(expected[name]))
            tolerance, unit = rounding * DENSITY_TOLERANCE, ""
        else:
            difference /= width[:, np.newaxis] if value.ndim == 3 else width
            tolerance, unit = rounding * TOLERANCE, " of the prior's width"
        if not difference.max() <= tolerance:  # NaN fails too
            raise UserError(
                f"export check failed: {name} from {where} differs from the model by "
                f"{difference.max():.2g}{unit}, more than {tolerance:g}"
            )


def _check_portable(bundle: Path, foreign_paths: tuple[str, ...]) -> None:
    """Refuses a bundle that would need this machine: its paths, or Python code."""
    content = (bundle / SAVED_MODEL).read_bytes()
    for path in foreign_paths:
        if path.encode() in content:
            raise UserError(
                f"export check failed: {SAVED_MODEL} holds a path of this machine, {path}"
            )
    for name, signature in tf.saved_model.load(str(bundle)).signatures.items():
        definition = signature.graph.as_graph_def()
        nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
        python = _PYTHON_OPS & {node.op for node in nodes}
        if python:
            raise UserError(
                f"export check failed: signature {name} calls Python ({', '.join(python)}), which "
                "TF Serving can't"
            )
