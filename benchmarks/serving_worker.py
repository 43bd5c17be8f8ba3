"""What the processes of the serving benchmark do: ask a model of their own, or a server.

Bundles are asked for serve_density or serve_density_bytes, as `Predictor` and `Client` do. A
measurement begins with a request that is not counted, and then counts those of some seconds.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from dlens_tf.benchmarks.processes import peak_memory_mb
from tqdm import tqdm

from dlens_tf.inference.bundle import EXTRA, GOLDEN, Manifest
from dlens_tf.quiet import silence_tensorflow
from dlens_tf.simulation.generate import follow_parent

MODEL, VERSION = "benchmark", 1
"""What the servers know the model by."""
KERAS, PREDICTOR, SIGNATURE = "Keras model.predict", "Predictor.predict", "in process"
JSON, BASE64, GRPC = "REST, JSON numbers", "REST, base64", "gRPC"
_TIMEOUT = 120.0  # seconds

Ask = Callable[[np.ndarray], object]
"""Answers images float32 [N, H, W, C]."""
_ways: dict[str, Ask] = {}


class Measured(NamedTuple):
    """Some requests.

    Attributes:
      latencies: seconds of each.
      seconds: from the start of the first to the end of the last.
    """

    latencies: list[float]
    seconds: float


class Start(NamedTuple):
    """What it takes to load a model: seconds, and the highest memory."""

    seconds: float
    memory_mb: float


def start(operation_threads: int = 0) -> None:
    """Begins a process.

    Args:
      operation_threads: that TensorFlow gives to one operation; 0 for one for each core.
    """
    follow_parent()
    silence_tensorflow()
    if operation_threads:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(operation_threads)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a process must not leave


def images_of(bundle: Path, number: int) -> np.ndarray:
    """Simulated lenses, float32 [N, H, W, C]: the few of a bundle, again and again."""
    with np.load(bundle / EXTRA / GOLDEN, allow_pickle=False) as golden:
        lenses = golden["image"]
    return np.resize(lenses, (number, *lenses.shape[1:]))


def load_bundle(bundle: Path) -> Start:
    """Imports TensorFlow, loads a bundle, and answers an image with it."""
    begin = time.perf_counter()
    import tensorflow as tf

    from dlens_tf.inference.predictor import Predictor

    saved_model = tf.saved_model.load(str(bundle))
    predictor = Predictor(bundle, Manifest.read(bundle), saved_model)
    signature = saved_model.signatures["serve_density_bytes"]

    def ask(images: np.ndarray) -> object:
        strings = tf.constant([image.tobytes() for image in images])
        return {name: value.numpy() for name, value in signature(image_bytes=strings).items()}

    _ways.update({SIGNATURE: ask, PREDICTOR: predictor.predict})
    ask(images_of(bundle, 1))
    return Start(time.perf_counter() - begin, peak_memory_mb())


def load_keras(path: Path) -> None:
    """Loads the same model as Keras saved it."""
    import keras

    import dlens_tf.models  # noqa: F401 (registers the layers)

    model = keras.models.load_model(path, compile=False)
    _ways[KERAS] = lambda images: model.predict(images, verbose=0)


def measure(way: str, images: np.ndarray, callers: int, seconds: float) -> Measured:
    """Asks what was loaded, by some threads at once; each one request after the other."""
    return _measure(lambda: _ways[way], images, callers, seconds)


def measure_server(
    protocol: str, url: str, images: np.ndarray, clients: int, seconds: float
) -> Measured:
    """Asks a server, by some clients at once; each waits for its answer before it asks again.

    What it takes to write requests and to read answers is included.
    """
    return _measure(lambda: _client(protocol, url), images, clients, seconds)


def _measure(
    connect: Callable[[], Ask], images: np.ndarray, clients: int, seconds: float
) -> Measured:
    ready = threading.Barrier(clients)

    def run(_: int) -> tuple[float, list[float]]:
        ask, latencies = connect(), []
        ask(images)
        ready.wait()
        begin = now = time.perf_counter()
        while not latencies or now < begin + seconds:
            before = now
            ask(images)
            now = time.perf_counter()
            latencies.append(now - before)
        return begin, latencies

    with ThreadPoolExecutor(clients) as pool:
        runs = list(pool.map(run, range(clients)))
    first = min(begin for begin, _ in runs)
    last = max(begin + sum(latencies) for begin, latencies in runs)
    return Measured([latency for _, latencies in runs for latency in latencies], last - first)


def _client(protocol: str, url: str) -> Ask:
    """A connection of its own."""
    if protocol == JSON:
        import requests

        session, path = requests.Session(), f"{url}/v1/models/{MODEL}/versions/{VERSION}:predict"

        def ask(images: np.ndarray) -> object:
            body = {"signature_name": "serve_density", "inputs": images.tolist()}
            answer = session.post(path, json=body, timeout=_TIMEOUT)
            answer.raise_for_status()
            return answer.json()

        return ask

    from dlens_tf.serving.transport import ModelName, open_transport

    transport, model = open_transport(url), ModelName(MODEL, VERSION)

    def ask_bytes(images: np.ndarray) -> object:
        inputs = {"image_bytes": [image.tobytes() for image in images]}
        return transport.ask(model, "serve_density_bytes", inputs, time.monotonic() + _TIMEOUT)

    return ask_bytes
