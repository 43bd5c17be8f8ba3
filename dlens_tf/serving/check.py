"""Checks that a bundle on disk answers as the Keras model it was made from, and travels.

When it is made, some images and the Keras model's answers are put into the bundle
(`write_golden`), so that the check needs nothing else and can be made anywhere, again and again
(`tools/export.py --check`). The bundle is loaded in both ways in use: `tf.saved_model.load`, as in
Python, and the graph and session of `tf.compat.v1.saved_model.loader`, as in TF Serving.
"""

import contextlib
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import predict_pb2

from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import (
    EXTRA,
    GOLDEN,
    MANIFEST,
    SAVED_MODEL,
    WARMUP_BATCH_SIZES,
    WARMUP_REQUESTS,
    Manifest,
)
from dlens_tf.io.files import one_line
from dlens_tf.serving.signatures import describe_signatures, served
from dlens_tf.serving.warmup import inputs_of, read_warmup_requests

TOLERANCE = 1e-5
"""Largest difference, in units of the width of a parameter's prior."""

FIT_TOLERANCE = 1e-3
"""The same where the model fits lenses: rounding grows in the fit's steps."""

_LOOSER = 10.0
"""How much larger a relative difference may be of numbers that are no parameter's values."""

BATCH_SIZES = (1, 7)

Outputs = dict[str, np.ndarray]
Runner = Callable[[str, Outputs], Outputs]
"""Answers (signature, inputs) with the outputs."""

_PYTHON_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
# Of an absolute path, as a C++ or Python file or a folder of a home has one.
_PATH = re.compile(rb"/(?:home|root|tmp|usr|opt|work|Users|mnt|srv)/[\w.+-]+/[\w./+-]{2,80}")


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


def write_golden(bundle: Path, images: np.ndarray, outputs: Outputs) -> None:
    """Puts images and what the Keras model answers to them into a bundle.

    Args:
      bundle: folder of the SavedModel.
      images: float32 [N, H, W, C].
      outputs: as `signatures.outputs_of` gives them for these and for seeds 0 … N - 1.
    """
    (bundle / EXTRA).mkdir(exist_ok=True)
    np.savez_compressed(bundle / EXTRA / GOLDEN, allow_pickle=False, image=images, **outputs)


def _read_golden(bundle: Path) -> tuple[np.ndarray, Outputs]:
    path = bundle / EXTRA / GOLDEN
    try:
        with np.load(path, allow_pickle=False) as arrays:
            outputs = {name: arrays[name] for name in arrays.files}
        images = outputs.pop("image")
        if not len(images):
            raise ValueError("no image")
        return images, outputs
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; export the model again") from error
    except Exception as error:  # a damaged archive fails in many ways
        raise UserError(f"{path} is damaged; export the model again") from error


def check_bundle(bundle: Path, foreign_paths: Sequence[str] = ()) -> list[str]:
    """Checks a bundle against the answers that were stored in it.

    All signatures are asked for batches of 1 and 7 images, and every warm-up request is replayed,
    through both loaders.

    Args:
      bundle: folder of the SavedModel.
      foreign_paths: paths of this machine that must not be in the bundle.

    Returns:
      What was checked, a line each.

    Raises:
      UserError: naming what is wrong: a file that is not as exported, a path of a machine, Python
        code, an op that TensorFlow does not have, or the loader, signature and output that differ.
    """
    manifest = Manifest.read(bundle)
    _check_files(bundle, manifest)
    manifest.verify(bundle)
    requests = _read_warmup(bundle, manifest)
    try:
        _check_portable(bundle, manifest, foreign_paths)
        _check_answers(bundle, manifest, requests)
    except (tf.errors.OpError, IndexError) as error:  # the latter of short files of variables
        raise UserError(
            f"export check failed: {bundle} can't be loaded or asked ({one_line(error)}); export "
            "the model again"
        ) from error
    return [
        f"files are as exported: {len(manifest.sha256)} checksums",
        f"graph: no Python code, no custom op, no path of a machine, {len(manifest.signatures)} "
        "signatures",
        f"answers: {', '.join(manifest.signatures)} for batches of "
        f"{' and '.join(map(str, BATCH_SIZES))}, through {' and '.join(RUNNERS)}, to "
        f"{manifest.tolerance:g} of the prior's width; other outputs to {_LOOSER:g} times that, in "
        "units of themselves or 1",
        f"warm-up: {len(requests)} requests replayed",
    ]


def _check_answers(
    bundle: Path, manifest: Manifest, requests: Sequence[predict_pb2.PredictRequest]
) -> None:
    """Asks for what is stored, and replays the warm-up, through both loaders."""
    images, golden = _read_golden(bundle)
    golden = golden | {"manifest": np.array([manifest.to_served().encode()] * len(images), object)}
    width = np.ptp(manifest.parameters.supports, axis=1)
    for loader, runner in RUNNERS.items():
        with runner(bundle) as run:
            for signature in manifest.signatures:
                for size in BATCH_SIZES:
                    rows = np.resize(np.arange(len(images)), size)
                    answer = run(signature, inputs_of(signature, images[rows], rows))
                    expected = served(signature, {k: v[rows] for k, v in golden.items()})
                    where = f"{signature} of {size} images through {loader}"
                    _compare(answer, expected, width, where, manifest.tolerance)
            for request in requests:
                inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
                run(request.model_spec.signature_name, inputs)


def check_with_cli(bundle: Path) -> str:
    """Shows a bundle by TensorFlow's saved_model_cli, as an engineer would.

    Returns:
      What was checked, one line.

    Raises:
      UserError: if it fails, or shows other signatures than the manifest has.
    """
    module = "tensorflow.python.tools.saved_model_cli"
    command = [sys.executable, "-m", module, "show", "--dir", str(bundle), "--all"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    names = set(re.findall(r"signature_def\['(\w+)'\]", shown.stdout)) - {"__saved_model_init_op"}
    if shown.returncode or names != Manifest.read(bundle).signatures.keys():
        raise UserError(
            f"check failed: saved_model_cli shows the signatures {', '.join(sorted(names))}; "
            "export the model again"
        )
    return f"saved_model_cli: shows {len(names)} signatures"


def _compare(
    answer: Outputs, expected: Outputs, width: np.ndarray, where: str, tolerance: float
) -> None:
    if answer.keys() != expected.keys():
        raise UserError(
            f"export check failed: {where} gives {', '.join(sorted(answer))}, the model gives "
            f"{', '.join(sorted(expected))}"
        )
    for name, value in answer.items():
        if value.shape != expected[name].shape or value.dtype != expected[name].dtype:
            raise UserError(
                f"export check failed: {name} from {where} is {value.dtype} {value.shape}, "
                f"expected {expected[name].dtype} {expected[name].shape}"
            )
        if value.dtype == object:
            if not np.array_equal(value, expected[name]):
                raise UserError(f"export check failed: {name} from {where} is another")
            continue
        difference = np.abs(value.astype(np.float64) - expected[name])
        if name in ("mean", "stddev", "quantiles", "samples"):
            difference /= width[:, np.newaxis] if name == "quantiles" else width
            largest, unit = tolerance, " of the prior's width"
        else:
            difference /= np.maximum(1.0, np.abs(expected[name]))
            largest, unit = _LOOSER * tolerance, ""
        if not difference.max() <= largest:  # NaN fails too
            raise UserError(
                f"export check failed: {name} from {where} differs from the model by "
                f"{difference.max():.2g}{unit}, more than {largest:g}"
            )


def _read_warmup(bundle: Path, manifest: Manifest) -> list[predict_pb2.PredictRequest]:
    """The warm-up requests: one for each signature and batch size, or a `UserError`."""
    try:
        requests = read_warmup_requests(bundle)
        found = {
            (r.model_spec.signature_name, tf.make_ndarray(next(iter(r.inputs.values()))).shape[0])
            for r in requests
        }
    except (tf.errors.OpError, DecodeError, ValueError, StopIteration, IndexError) as error:
        raise UserError(
            f"export check failed: {bundle / EXTRA / WARMUP_REQUESTS} is damaged "
            f"({one_line(error)}); export the model again"
        ) from error
    for signature, size in itertools.product(manifest.signatures, WARMUP_BATCH_SIZES):
        if (signature, size) not in found:
            raise UserError(
                f"export check failed: there is no warm-up request of {size} images for "
                f"{signature}; export the model again"
            )
    return requests


def _check_files(bundle: Path, manifest: Manifest) -> None:
    """Raises a `UserError` unless the manifest lists all files, and these are a bundle's."""
    names = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    names.discard(f"{EXTRA}/{MANIFEST}")
    needed = {SAVED_MODEL, f"{EXTRA}/{WARMUP_REQUESTS}", f"{EXTRA}/{GOLDEN}"}
    for name in sorted(needed - names):
        raise UserError(f"{bundle / name} is missing; export the model again")
    for name in sorted(names - manifest.sha256.keys()):
        raise UserError(f"{bundle / name} is not among the files of the manifest; remove it")


def _check_portable(bundle: Path, manifest: Manifest, foreign_paths: Sequence[str]) -> None:
    """Refuses a bundle that would need a machine: its paths, Python code, or ops of its own.

    Or whose signatures are not those of its manifest.
    """
    content = (bundle / SAVED_MODEL).read_bytes() + manifest.to_served().encode()
    found = [path for path in foreign_paths if path.encode() in content]
    found += [path.decode() for path in _PATH.findall(content)]
    if found:
        raise UserError(f"export check failed: the bundle holds a path of this machine, {found[0]}")
    saved_model = tf.saved_model.load(str(bundle))
    for name, signature in saved_model.signatures.items():
        definition = signature.graph.as_graph_def()
        nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
        python = _PYTHON_OPS & {node.op for node in nodes}
        if python:
            raise UserError(
                f"export check failed: signature {name} calls Python ({', '.join(python)}), which "
                "TF Serving can't"
            )
        functions = {f.signature.name for f in definition.library.function}
        custom = {node.op for node in nodes} - functions - set(dir(tf.raw_ops))
        if custom:
            raise UserError(
                f"export check failed: signature {name} needs ops that TensorFlow does not have "
                f"({', '.join(sorted(custom))})"
            )
    if describe_signatures(saved_model) != manifest.signatures:
        raise UserError(
            "export check failed: the signatures are not those of the manifest; export the model "
            "again"
        )
