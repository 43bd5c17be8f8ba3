"""A mixed load with hot reloads: no lost or wrong answer, and memory that stays."""

import concurrent.futures
import contextlib
import re
import socket
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf

from dlens_tf.serving.server.app import running
from dlens_tf.serving.server.options import ModelConfig

VARIABLES = 10_000_000  # 40 MB a version, so that one that stays in memory shows
SECONDS = 10.0  # of load before the first reload, and after each


@pytest.mark.slow
def test_mixed_load(bundle, reference, images, write_version, local_options, connect, tmp_path):
    write_version(tmp_path, 1, VARIABLES)
    models = [ModelConfig("small", bundle.parent), ModelConfig("toy", tmp_path)]
    stop = threading.Event()
    with running(local_options(models, poll_seconds=0.2, read_seconds=1.0)) as server:
        client = connect(server)

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

        def wrong_client(random):
            answer = client.rest("/v1/models/small:predict", {"inputs": [[[[None]]]]})
            assert answer.status_code == 400
            with pytest.raises(grpc.RpcError):  # gone before it is answered
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

        kinds = [grpc_client, bytes_client, rest_client, wrong_client, slow_client]
        with concurrent.futures.ThreadPoolExecutor(len(kinds)) as pool:
            tasks = [pool.submit(repeat, ask, seed) for seed, ask in enumerate(kinds)]
            try:
                watch(tasks)
                before = memory(client)
                for version in (2, 3, 4):
                    write_version(tmp_path, version, VARIABLES)
                    watch(tasks)
                after = memory(client)
            finally:
                stop.set()
            versions = tasks[0].result()
            assert all(task.result() for task in tasks)
        assert versions == sorted(versions)
        assert set(versions) == {1, 2, 3, 4}
        assert abs(after / before - 1.0) < 0.05, f"{before} bytes became {after}"
        client.channel.close()


def watch(tasks):
    """Lets the load go on for a while."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(0.1)
        assert not any(task.done() for task in tasks)


def memory(client):
    text = client.rest("/metrics").text
    return float(re.search(r"^process_resident_memory_bytes (\S+)$", text, re.M).group(1))
