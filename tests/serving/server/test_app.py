import asyncio
import base64
import concurrent.futures
import contextlib
import json
import shutil
import socket
import threading

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf

from dlens_tf.errors import UserError
from dlens_tf.serving.server.app import Server, running
from dlens_tf.serving.server.bodies import BUSY
from dlens_tf.serving.server.models import ServedModel
from dlens_tf.serving.server.options import ModelConfig

PREDICT = "/v1/models/small:predict"


@pytest.fixture
def toy(write_version, tmp_path):
    """A folder whose version 1 answers with its number and each image's sum."""
    base = tmp_path / "toy"
    base.mkdir()
    write_version(base, 1)
    return base


@pytest.fixture
def gate(monkeypatch):
    """Holds up every model while it is closed: gate.open is an event, gate.entered another."""
    open_, entered = threading.Event(), threading.Event()
    open_.set()
    run = ServedModel.run

    def gated(self, signature, inputs):
        entered.set()
        assert open_.wait(60)
        return run(self, signature, inputs)

    monkeypatch.setattr(ServedModel, "run", gated)
    gated.open, gated.entered = open_, entered
    yield gated
    open_.set()


@contextlib.contextmanager
def serving(base, local_options, connect, **changes):
    with running(local_options([ModelConfig("small", base)], **changes)) as server:
        client = connect(server)
        client.server = server
        yield client
    client.channel.close()


def body(images):
    return {"instances": images.tolist()}


def test_many_clients_get_their_own_answers(server, connect, images, reference):
    client = connect(server)

    def by_grpc(i):
        answer = client.predictions.Predict(client.request(image=images[i : i + 1]), timeout=60)
        return tf.make_ndarray(answer.outputs["mean"])[0]

    def by_rest(i):
        string = {"b64": base64.b64encode(images[i].tobytes()).decode()}
        asked = {"signature_name": "serve_bytes", "instances": [string]}
        return client.rest(PREDICT, asked).json()["predictions"][0]["mean"]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for ask in (by_grpc, by_rest):
            means = list(pool.map(ask, [*range(40)] * 2))
            expected = np.tile(reference["mean"], (2, 1))
            np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-5)
    sizes = client.rest("/metrics").text.split("dlens_serving_batch_size_bucket{le=")[1:]
    alone = next(s for s in sizes if '"1.0"' in s and '"serving_default"' in s)
    every = next(s for s in sizes if '"+Inf"' in s and '"serving_default"' in s)
    assert float(alone.split()[1]) < float(every.split()[1])  # some went together
    client.channel.close()


def test_refuses_when_the_queue_is_full(toy, gate, local_options, connect):
    image = np.zeros((1, 64, 64, 1), np.float32)
    with (
        serving(toy, local_options, connect, max_enqueued=1, workers=1) as client,
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
        gate.entered.clear()
        gate.open.clear()
        tasks = [pool.submit(client.rest, PREDICT, body(image))]
        assert gate.entered.wait(60)
        tasks.append(pool.submit(client.rest, PREDICT, body(image)))
        while "queue_depth 1.0" not in client.rest("/metrics").text:
            pass
        refused = client.rest(PREDICT, body(image))
        assert refused.status_code == 429
        assert "1 requests are waiting already" in refused.json()["error"]
        with pytest.raises(grpc.RpcError) as caught:
            client.predictions.Predict(client.request(image=image), timeout=60)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        gate.open.set()
        assert [task.result().status_code for task in tasks] == [200, 200]


def test_gives_up_at_the_deadline(toy, gate, local_options, connect):
    image = np.zeros((1, 64, 64, 1), np.float32)
    with serving(toy, local_options, connect, request_seconds=0.2) as client:
        gate.open.clear()
        answer = client.rest(PREDICT, body(image))
        assert (answer.status_code, answer.json()["error"]) == (504, "no answer within 0.2 s")
        with pytest.raises(grpc.RpcError) as caught:
            client.predictions.Predict(client.request(image=image), timeout=0.1)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        gate.open.set()
        assert client.rest(PREDICT, body(image)).status_code == 200


def test_request_size_is_limited(toy, local_options, connect):
    large = b"[" * 200_000
    image = np.zeros((8, 64, 64, 1), np.float32)
    with serving(toy, local_options, connect, max_request_bytes=100_000) as client:
        for data in (large, iter([large])):  # with a length, and in chunks
            answer = requests.post(client.url + PREDICT, data, timeout=60)
            assert answer.status_code == 413
            assert answer.json() == {"error": "the request is larger than 100000 bytes"}
        with pytest.raises(grpc.RpcError) as caught:
            client.predictions.Predict(client.request(image=image), timeout=60)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert client.rest(PREDICT, body(image[:1])).status_code == 200


def test_what_all_requests_hold_is_limited(toy, gate, local_options, connect):
    image = np.zeros((1, 64, 64, 1), np.float32)
    size = len(json.dumps(body(image)))
    with (
        serving(toy, local_options, connect, max_bytes_in_flight=size + 9000) as client,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        gate.entered.clear()
        gate.open.clear()
        task = pool.submit(client.rest, PREDICT, body(image))
        assert gate.entered.wait(60)
        refused = client.rest(PREDICT, body(image))
        assert refused.status_code == 429
        assert refused.json()["error"].endswith("bytes are being answered already; try later")
        with pytest.raises(grpc.RpcError) as caught:
            client.predictions.Predict(client.request(image=image), timeout=60)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        gate.open.set()
        assert task.result().status_code == 200
        assert client.rest(PREDICT, body(image)).status_code == 200


def test_values_of_json_are_limited_but_not_bytes(bundle, images, local_options, connect):
    with serving(bundle.parent, local_options, connect, max_json_values=8192) as client:
        assert client.rest(PREDICT, body(images[:1])).status_code == 200
        answer = client.rest(PREDICT, body(images[:3]))
        assert answer.status_code == 413
        assert answer.json()["error"] == (
            "the JSON has more than 8192 values; send images as bytes, see serve_bytes"
        )
        strings = [{"b64": base64.b64encode(image.tobytes()).decode()} for image in images[:4]]
        asked = {"signature_name": "serve_bytes", "instances": strings}
        assert client.rest(PREDICT, asked).status_code == 200


HALF = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{{".encode()


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def stubborn(port, data, half_closed=False):
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(data)
    if half_closed:
        connection.shutdown(socket.SHUT_WR)
    return connection


def received(connection):
    with contextlib.suppress(ConnectionError):
        return connection.recv(1000)
    return b""


def test_slow_and_half_closed_clients_hold_nothing(toy, local_options, connect):
    image = np.zeros((1, 64, 64, 1), np.float32)
    with serving(toy, local_options, connect, read_seconds=0.5) as client:
        port = client.server.rest_port
        slow = [stubborn(port, HALF) for _ in range(20)]
        half = [stubborn(port, HALF, half_closed=True) for _ in range(20)]
        idle = [stubborn(port, data) for data in (b"", b"POST /v1", HALF[:60]) * 7]
        assert client.rest(PREDICT, body(image)).status_code == 200
        for connection in slow:
            assert received(connection).startswith(b"HTTP/1.1 408")
        for connection in (*half, *idle):
            assert received(connection) == b""  # closed
        for connection in (*slow, *half, *idle):
            connection.close()
        assert client.rest(PREDICT, body(image)).status_code == 200


def test_calls_whose_message_never_comes_hold_nothing(toy, local_options, connect):
    image = np.zeros((1, 64, 64, 1), np.float32)
    limits = {"max_enqueued": 1, "workers": 1, "max_batch_size": 1, "read_seconds": 1.0}
    end = threading.Event()
    with serving(toy, local_options, connect, **limits) as client:
        call = client.channel.stream_unary(
            "/tensorflow.serving.PredictionService/Predict", lambda message: message
        )
        calls = [call.future((end.wait(60) for _ in range(1)), timeout=60) for _ in range(5)]
        client.predictions.Predict(client.request(image=image), timeout=60)
        for half_sent in calls:
            assert half_sent.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert half_sent.details() == "the request did not arrive within 1 s"
        end.set()


def test_calls_in_flight_are_limited(toy, gate, local_options, connect):
    image = np.zeros((1, 64, 64, 1), np.float32)
    limits = {"max_enqueued": 1, "workers": 1, "max_batch_size": 1}
    with serving(toy, local_options, connect, **limits) as client:
        request = client.request(image=image)
        gate.entered.clear()
        gate.open.clear()
        calls = [client.predictions.Predict.future(request, timeout=60)]
        assert gate.entered.wait(60)
        calls.append(client.predictions.Predict.future(request, timeout=60))
        while "queue_depth 1.0" not in client.rest("/metrics").text:
            pass
        with pytest.raises(grpc.RpcError) as caught:
            client.predictions.Predict(request, timeout=60)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "too many requests" in caught.value.details()
        gate.open.set()
        assert all(call.result() for call in calls)


def test_connections_are_limited(toy, gate, local_options, connect):
    limits = {"max_connections": 3, "read_seconds": 60.0}
    content = json.dumps(body(np.zeros((1, 64, 64, 1)))).encode()
    whole = HALF.replace(b"99", str(len(content)).encode())[:-1] + content
    with serving(toy, local_options, connect, **limits) as client:
        port = client.server.rest_port
        idle = [stubborn(port, HEALTH) for _ in range(3)]
        assert all(received(connection) for connection in idle)  # each counts by now
        idle.append(stubborn(port, HEALTH))
        assert received(idle[3])
        assert received(idle[0]) == b""  # closed for it
        expecting = HALF.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
        slow = [stubborn(port, expecting) for _ in range(3)]
        assert all(received(connection).startswith(b"HTTP/1.1 100") for connection in slow)
        assert [received(connection) for connection in idle[1:]] == [b""] * 3
        with stubborn(port, HEALTH) as probe:
            assert received(probe).startswith(b"HTTP/1.1 200")
            assert received(slow[0]) == b""  # closed for it
        gate.open.clear()
        busy = [stubborn(port, whole) for _ in range(3)]
        while len(client.server._runner.app[BUSY]) < 3:
            pass
        with stubborn(port, HEALTH) as newcomer:
            assert received(newcomer) == b""
        gate.open.set()
        assert all(received(connection).startswith(b"HTTP/1.1 200") for connection in busy)
        for connection in (*idle, *slow, *busy):
            connection.close()
        while True:  # until the server has seen them close
            with contextlib.suppress(requests.ConnectionError):
                assert client.rest("/healthz").text == "ok\n"
                break


def test_reload_under_load_loses_nothing(toy, write_version, local_options, connect):
    stop = threading.Event()
    with serving(toy, local_options, connect, poll_seconds=0.1) as client:

        def ask(seed):
            """Asks until the end; the versions that answered, each checked."""
            random = np.random.default_rng(seed)
            seen = []
            while not stop.is_set():
                image = random.integers(-9, 9, (1, 64, 64, 1)).astype(np.float32)
                if seed % 2:
                    answer = client.predictions.Predict(client.request(image=image), timeout=60)
                    version, total = tf.make_ndarray(answer.outputs["mean"])[0]
                    assert answer.model_spec.version.value == version
                else:
                    answer = client.rest(PREDICT, body(image))
                    assert answer.status_code == 200
                    version, total = answer.json()["predictions"][0]
                assert total == image.sum()
                seen.append(int(version))
            return seen

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            tasks = [pool.submit(ask, seed) for seed in range(4)]
            try:
                for version in (2, 3):
                    write_version(toy, version)
                    # The old one ends: nothing that it was asked is left.
                    while states(client).get(str(version - 1)) != "END":
                        assert not any(task.done() for task in tasks)
                    assert states(client)[str(version)] == "AVAILABLE"
            finally:
                stop.set()
            for task in tasks:
                seen = task.result()
                assert seen == sorted(seen)
                assert {1, 2, 3} >= set(seen) and len(set(seen)) > 1


def states(client):
    statuses = client.rest("/v1/models/small").json()["model_version_status"]
    return {status["version"]: status["state"] for status in statuses}


def test_broken_version_is_reported_while_the_old_one_answers(toy, local_options, connect):
    image = np.ones((1, 64, 64, 1), np.float32)
    with serving(toy, local_options, connect, poll_seconds=0.1) as client:
        shutil.copytree(toy / "1", toy / ".2")
        (toy / ".2" / "saved_model.pb").write_bytes(b"\xff\xff")
        (toy / ".2").rename(toy / "2")
        while states(client).get("2") != "END":
            pass
        status = client.rest("/v1/models/small/versions/2").json()["model_version_status"][0]
        assert status["status"]["error_code"] == "UNKNOWN" and status["status"]["error_message"]
        assert 'version_error{code="UNKNOWN",model="small",version="2"} 1.0' in (
            client.rest("/metrics").text
        )
        assert client.rest("/readyz").status_code == 200
        assert client.rest(PREDICT, body(image)).json() == {"predictions": [[1.0, 4096.0]]}


def test_start_fails_in_one_line(toy, local_options):
    (toy / "1" / "assets.extra" / "dlens_manifest.json").unlink()
    model = ModelConfig("small", toy)
    with (
        pytest.raises(UserError, match=r"no model could be loaded: small version 1: .* has no"),
        running(local_options([model])),
    ):
        pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name in ("rest_port", "grpc_port"):
            with (
                pytest.raises(UserError, match=f"port {port}; choose another --{name}"),
                running(local_options([model], **{name: port})),
            ):
                pass


def test_the_end_waits_for_what_is_in_flight(toy, gate, local_options, connect):
    image = np.ones((1, 64, 64, 1), np.float32)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        with serving(toy, local_options, connect, workers=1) as client:
            gate.entered.clear()
            gate.open.clear()
            task = pool.submit(client.rest, PREDICT, body(image))
            request = client.request(image=image)
            other = client.predictions.Predict.future(request, timeout=60)
            assert gate.entered.wait(60)
            while "queue_depth 1.0" not in client.rest("/metrics").text:
                pass
            threading.Timer(0.5, gate.open.set).start()
        assert task.result().json() == {"predictions": [[1.0, 4096.0]]}
        assert other.result().model_spec.version.value == 1
        with pytest.raises(requests.ConnectionError):
            client.rest("/healthz")


def test_the_end_comes_while_models_are_loaded(bundle, local_options, monkeypatch):
    calls = []

    async def main():
        server = Server(local_options([ModelConfig("small", bundle.parent)]))
        loop, ended = asyncio.get_running_loop(), threading.Event()

        def run(self, signature, inputs):
            calls.append(signature)
            loop.call_soon_threadsafe(starting.cancel)
            assert ended.wait(60)

        monkeypatch.setattr(ServedModel, "run", run)
        starting = asyncio.create_task(server.start())
        await asyncio.wait({starting})
        ended.set()
        await asyncio.to_thread(server._loader.shutdown)
        assert starting.cancelled()

    asyncio.run(main())
    assert len(calls) == 1  # of many warm-up requests
