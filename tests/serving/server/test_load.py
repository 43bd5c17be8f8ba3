"""A mixed load with hot reloads: no lost or wrong answer, and memory that stays.

It takes some minutes; DLENS_LOAD_SECONDS=420 makes it half an hour:

    DLENS_LOAD_SECONDS=420 python -m pytest -s -m slow tests/serving/server/test_load.py
"""

import concurrent.futures
import contextlib
import os
import re
import shutil
import socket
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf

from dlens_tf import hub
from dlens_tf.inference.bundle import EXTRA, GOLDEN, Manifest
from dlens_tf.serving import Client
from dlens_tf.serving.server.app import running
from dlens_tf.serving.server.options import ModelConfig

VARIABLES = 10_000_000  # 40 MB a version, so that one that stays in memory shows
SECONDS = float(os.environ.get("DLENS_LOAD_SECONDS", 20))
"""Of load before the first reload, and after each."""


@pytest.mark.slow
def test_mixed_load(bundle, reference, images, write_version, local_options, connect, tmp_path):
    toys, lenses = tmp_path / "toys", tmp_path / "lenses"
    published = hub.find_model("axion_model_ii")
    golden = dict(np.load(published / EXTRA / GOLDEN, allow_pickle=False))
    manifest = Manifest.read(published)
    largest = manifest.tolerance * np.ptp(manifest.parameters.supports, axis=1)

    def write_versions(version):
        toys.mkdir(exist_ok=True)
        write_version(toys, version, VARIABLES)
        shutil.copytree(published, lenses / ".partial").rename(lenses / str(version))

    write_versions(1)
    models = [
        ModelConfig("small", bundle.parent),
        ModelConfig("toy", toys),
        ModelConfig("lenses", lenses),
    ]
    stop = threading.Event()
    options = local_options(models, poll_seconds=0.2, read_seconds=5.0)
    with running(options) as server, contextlib.ExitStack() as stack:
        client = connect(server)
        lens = stack.enter_context(
            Client(f"grpc://127.0.0.1:{server.grpc_port}", "lenses", timeout=60.0)
        )

        def grpc_client(random):
            image = random.integers(-9, 9, (1, 64, 64, 1)).astype(np.float32)
            request = client.request(image=image)
            request.model_spec.name = "toy"
            version, total = tf.make_ndarray(
                client.predictions.Predict(request, timeout=60).outputs["mean"]
            )[0]
            assert total == image.sum()
            return int(version)

        def bytes_client(random):
            chosen = random.integers(0, len(images), random.integers(1, 9))
            request = client.request(
                "serve_bytes", image_bytes=[images[i].tobytes() for i in chosen]
            )
            mean = tf.make_ndarray(client.predictions.Predict(request, timeout=60).outputs["mean"])
            np.testing.assert_allclose(mean, reference["mean"][chosen], rtol=1e-5, atol=1e-5)

        def rest_client(random):
            i = random.integers(0, len(images))
            answer = client.rest("/v1/models/small:predict", {"inputs": images[i : i + 1].tolist()})
            mean = answer.json()["outputs"]["mean"]
            np.testing.assert_allclose(mean, reference["mean"][i : i + 1], rtol=1e-5, atol=1e-5)

        def lens_client(random):
            chosen = random.integers(0, len(golden["image"]), random.integers(1, 9))
            mean = lens.predict(golden["image"][chosen]).mean
            assert (abs(mean - golden["mean"][chosen]) <= largest).all()

        def wrong_client(random):
            answer = client.rest("/v1/models/small:predict", {"inputs": [[[[None]]]]})
            assert answer.status_code == 400
            with contextlib.suppress(grpc.RpcError):  # mostly gone before it is answered
                client.predictions.Predict(client.request(image=images), timeout=0.001)

        def slow_client(random):
            with contextlib.closing(socket.create_connection(("127.0.0.1", server.rest_port))) as s:
                s.sendall(
                    b"POST /v1/models/small:predict HTTP/1.1\r\nHost: x\r\n"
                    b"Content-Length: 9\r\n\r\n{"
                )
                assert s.recv(100).startswith(b"HTTP/1.1 408")

        def repeat(ask, seed):
            random = np.random.default_rng(seed)
            answers = []
            while not stop.is_set():
                answers.append(ask(random))
            return answers

        kinds = [grpc_client, bytes_client, rest_client, lens_client, wrong_client, slow_client]
        with concurrent.futures.ThreadPoolExecutor(len(kinds)) as pool:
            tasks = [pool.submit(repeat, ask, seed) for seed, ask in enumerate(kinds)]
            try:
                watch(tasks)
                sizes = [memory(client)]
                for version in (2, 3, 4):
                    write_versions(version)
                    watch(tasks)
                    sizes.append(memory(client))
            finally:
                stop.set()
            versions = tasks[0].result()
            counts = {
                ask.__name__: len(task.result()) for ask, task in zip(kinds, tasks, strict=True)
            }
        print(f"answers {counts}; memory {[round(size / 1e6) for size in sizes]} MB")
        assert all(counts.values())
        assert versions == sorted(versions)
        assert set(versions) == {1, 2, 3, 4}
        assert client.rest("/v1/models/lenses").json()["model_version_status"][0]["version"] == "4"
        # At the first reload two versions are there for the first time; what that takes stays.
        assert abs(sizes[-1] / sizes[1] - 1.0) < 0.05, f"memory in bytes: {sizes}"
        client.channel.close()


def watch(tasks):
    """Lets the load go on for a while."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(0.1)
        for task in tasks:
            assert not task.done(), task.exception()


def memory(client):
    text = client.rest("/metrics").text
    return float(re.search(r"^process_resident_memory_bytes (\S+)$", text, re.M).group(1))
