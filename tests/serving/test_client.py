"""The client against stand-ins that speak REST and gRPC and answer as told."""

import base64
import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
import types
import urllib.parse
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest
import tensorflow as tf
from astropy.io import fits
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.apis.predict_pb2 import PredictResponse

from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import Manifest
from dlens_tf.inference.predictor import Predictor
from dlens_tf.serving import Client, client
from dlens_tf.serving.server.app import running
from dlens_tf.serving.server.options import ModelConfig, ServerOptions

IMAGES = np.random.default_rng(0).normal(size=(7, 64, 64, 1)).astype(np.float32)
DENSITY, MANIFEST = "serve_density_bytes", "serve_manifest"
STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class Refused(Exception):  # noqa: N818 (an answer)
    def __init__(self, code, message="told so"):
        super().__init__(message)
        self.code, self.message = code, message


class StandIn:
    """A server's models: versions of "dlens", each {signature: function of lists of strings}.

    Attributes:
      script: what the next requests of a signature meet, by signature: a `Refused`, a function of
        the outputs, or None for the true answer.
      asked: (signature, version or label or None, number of strings) of each request.
    """

    def __init__(self, versions):
        self.versions, self.labels = versions, {}
        self.script, self.asked = {}, []
        self.released = threading.Event()

    def stall(self, _):
        self.released.wait(60.0)
        return {}

    def choose(self, name, version, label):
        if label and label not in self.labels:
            raise Refused("INVALID_ARGUMENT", f"Unrecognized servable version label: {label}")
        version = self.labels[label] if label else version or max(self.versions)
        if name != "dlens" or version not in self.versions:
            raise Refused("NOT_FOUND", f"Servable not found for request: {name}")
        return version

    def answer(self, name, version, label, signature, inputs):
        [strings] = inputs.values()
        self.asked.append((signature, label or version, len(strings)))
        step = self.script.get(signature, []) and self.script[signature].pop(0)
        if isinstance(step, Refused):
            raise step
        version = self.choose(name, version, label)
        if signature not in self.versions[version]:
            message = f'Serving signature key "{signature}" not found.'
            raise Refused("FAILED_PRECONDITION", message)
        outputs = self.versions[version][signature](**inputs)
        return version, step(outputs) if step else outputs


class RestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        _, _, name, *rest = urllib.parse.unquote(self.path).strip("/").split("/")
        model = self.server.model
        try:
            versions = [model.choose(name, None, rest[1])] if rest else sorted(model.versions)
            model.choose(name, None, None)
        except Refused as refused:
            self.send(STATUS[refused.code], {"error": refused.message})
            return
        states = [{"version": str(version), "state": "AVAILABLE"} for version in versions]
        self.send(200, {"model_version_status": [*states, {"version": "99", "state": "LOADING"}]})

    def do_POST(self):
        _, _, name, _, version = self.path.strip("/").removesuffix(":predict").split("/")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        inputs = {
            key: [base64.b64decode(value["b64"]) for value in values]
            for key, values in body["inputs"].items()
        }
        try:
            _, outputs = self.server.model.answer(
                urllib.parse.unquote(name), int(version), None, body["signature_name"], inputs
            )
        except Refused as refused:
            self.send(STATUS[refused.code], {"error": refused.message})
            return
        columns = {
            key: [v.decode() for v in value] if value.dtype == object else value.tolist()
            for key, value in outputs.items()
        }
        # TensorFlow Serving leaves out the name of an output that is the only one.
        self.send(200, {"outputs": columns if len(columns) != 1 else next(iter(columns.values()))})

    def send(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, model):
        self.model = model

    def Predict(self, request, context):
        spec = request.model_spec
        inputs = {name: tf.make_ndarray(t).tolist() for name, t in request.inputs.items()}
        version = spec.version.value if spec.HasField("version") else None
        try:
            version, outputs = self.model.answer(
                spec.name, version, spec.version_label or None, spec.signature_name, inputs
            )
        except Refused as refused:
            context.abort(grpc.StatusCode[refused.code], refused.message)
        response = PredictResponse()
        response.model_spec.version.value = version
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response


@pytest.fixture(scope="module")
def bundle(exported_run):
    saved_model = tf.saved_model.load(str(exported_run / "export" / "1"))

    def of(signature):
        def answer(**inputs):
            outputs = signature(**{k: tf.constant(v, tf.string) for k, v in inputs.items()})
            return {name: value.numpy() for name, value in outputs.items()}

        return answer

    yield {name: of(saved_model.signatures[name]) for name in (DENSITY, MANIFEST)}


@pytest.fixture(scope="module")
def predictor(exported_run):
    return Predictor.load(exported_run / "export")


@pytest.fixture
def model(bundle):
    return StandIn({1: bundle})


@pytest.fixture
def rest_url(model):
    server = ThreadingHTTPServer(("127.0.0.1", 0), RestHandler)
    server.handle_error = lambda *_: None  # clients that have gone
    server.model = model
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    model.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def grpc_url(model):
    server = grpc.server(futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(model), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    model.released.set()
    server.stop(grace=None).wait()


@pytest.fixture(params=["rest_url", "grpc_url"])
def url(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def naps(monkeypatch):
    """The client's waits, which take no time."""
    waits = []
    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=waits.append)
    monkeypatch.setattr(client, "time", clock)
    return waits


def point_model(manifest, names):
    """A stand-in's version with a point head, whose estimates are 0, 1, …"""
    parameters = manifest.parameters.select(names).to_dicts()
    config = {**json.loads(manifest.to_served()), "parameters": parameters}
    config |= {"head": {"kind": "point"}, "quantile_levels": []}

    def density(image_bytes):
        return {"mean": np.tile(np.arange(len(names), dtype=np.float32), (len(image_bytes), 1))}

    def served_manifest(key):
        return {"manifest": np.array([json.dumps(config).encode()] * len(key), object)}

    return {DENSITY: density, MANIFEST: served_manifest}


def sizes(model):
    return [number for signature, _, number in model.asked if signature == DENSITY]


def test_import_is_cheap():
    code = (
        "import sys, dlens_tf.serving\n"
        "assert 'requests' not in sys.modules\n"
        "dlens_tf.serving.Client('http://localhost:1', 'dlens').close()\n"
        "assert not {'tensorflow', 'keras', 'grpc'} & set(sys.modules), 'too much'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_equals_the_predictor(url, model, predictor):
    with Client(url, "dlens") as asked:
        posterior = asked.predict(IMAGES, batch_size=3)
        assert asked.manifest == Manifest.from_served(predictor.manifest.to_served())
        assert asked.version == 1
        assert str(asked) == f"{url}, model 'dlens', version 1"
    expected = predictor.predict(IMAGES)
    assert posterior.parameters == expected.parameters
    np.testing.assert_allclose(posterior.mean, expected.mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(posterior.stddev, expected.stddev, rtol=1e-5)
    np.testing.assert_allclose(posterior.samples(3, seed=1), expected.samples(3, seed=1), atol=1e-5)
    assert sizes(model) == [3, 3, 1]
    versions = [version for signature, version, _ in model.asked if signature == DENSITY]
    assert versions[1:] == [1, 1]  # the first request's
    assert [signature for signature, _, _ in model.asked].count(MANIFEST) == 1


def test_scores_of_images_unlike_the_training_images(url, model, predictor):
    version = point_model(predictor.manifest, ["source_x"])
    density = version[DENSITY]

    def scored(image_bytes):
        scores = np.arange(len(image_bytes), dtype=np.float32)
        return {**density(image_bytes), "ood_score": scores}

    model.versions = {1: {**version, DENSITY: scored}}
    with Client(url, "dlens") as asked:
        posterior = asked.predict(IMAGES, batch_size=3)
    np.testing.assert_array_equal(posterior.ood_score, [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0])


def test_requests_stay_below_the_servers_limit(url, model, predictor, monkeypatch):
    monkeypatch.setattr(client, "MAX_REQUEST_BYTES", 2 * IMAGES[0].nbytes + 1)
    with Client(url, "dlens") as asked:
        asked.predict(IMAGES)
        assert sizes(model) == [2, 2, 2, 1]
        monkeypatch.setattr(client, "MAX_REQUEST_BYTES", 1)
        asked.predict(IMAGES[:2])
    assert sizes(model)[4:] == [1, 1]


def test_large_requests_fit_a_grpc_server_of_default_limits(grpc_url, model):
    largest = client.MAX_REQUEST_BYTES // IMAGES[0].nbytes
    images = np.broadcast_to(IMAGES[:1], (largest + 1, 64, 64, 1))
    model.versions[1] = point_model(
        Manifest.from_served(model.versions[1][MANIFEST](key=[b""])["manifest"][0]), ["source_x"]
    )
    with Client(grpc_url, "dlens") as asked:
        assert len(asked.predict(images, batch_size=10_000)) == largest + 1
    assert sizes(model) == [largest, 1]


def test_too_large_a_request_is_sent_once(grpc_url, model, naps, monkeypatch):
    monkeypatch.setattr(client, "MAX_REQUEST_BYTES", 2**30)
    images = np.broadcast_to(IMAGES[:1], (257, 64, 64, 1))
    with (
        Client(grpc_url, "dlens") as asked,
        pytest.raises(UserError, match=r"the request is too large for the server \(.*; lower"),
    ):
        asked.predict(images, batch_size=257)
    assert naps == []


def test_files_and_single_images(url, predictor, tmp_path):
    np.save(tmp_path / "a.npy", IMAGES[:2, :, :, 0])
    header = fits.Header({"PIXSCALE": predictor.manifest.image.pixel_scale})
    fits.PrimaryHDU(IMAGES[2, :, :, 0], header).writeto(tmp_path / "b.fits")
    header["PIXSCALE"] = 0.2
    fits.PrimaryHDU(IMAGES[2, :, :, 0], header).writeto(tmp_path / "coarse.fits")
    expected = predictor.predict(IMAGES[:3]).mean
    with Client(url, "dlens") as asked:
        several = asked.predict([tmp_path / "a.npy", str(tmp_path / "b.fits")])
        np.testing.assert_allclose(several.mean, expected, rtol=1e-6, atol=1e-6)
        for one in (tmp_path / "b.fits", IMAGES[2], IMAGES[2, :, :, 0].tolist()):
            np.testing.assert_allclose(asked.predict(one).mean, expected[2:], rtol=1e-6, atol=1e-6)
        with pytest.raises(UserError, match=r"coarse\.fits: 0\.2 arcsec per pixel, but the model"):
            asked.predict(tmp_path / "coarse.fits")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[:, :63], r"images: shape \[7, 63, 64, 1\], but the model takes \[64, 64, 1\]"),
        (np.full_like(IMAGES, np.nan), "NaN"),
        ([IMAGES[0], IMAGES[0, :9]], "images: they make no array"),
        ([], "is not an image"),
        (["none.npy"], r"none\.npy: no such file"),
    ],
)
def test_bad_images_are_not_sent(rest_url, model, images, message):
    with Client(rest_url, "dlens") as asked, pytest.raises(UserError, match=message):
        asked.predict(images)
    assert sizes(model) == []


def test_asks_again_with_growing_waits(url, model, predictor, naps):
    passing = [Refused("UNAVAILABLE"), Refused("RESOURCE_EXHAUSTED"), Refused("UNAVAILABLE")]
    model.script = {DENSITY: list(passing), MANIFEST: [Refused("UNAVAILABLE")]}
    with Client(url, "dlens", seed=5) as asked:
        posterior = asked.predict(IMAGES)
    np.testing.assert_allclose(posterior.mean, predictor.predict(IMAGES).mean, rtol=1e-6, atol=1e-6)
    assert sizes(model) == [7] * 4
    for wait, nominal in zip(naps, [0.1, 0.1, 0.2, 0.4], strict=True):
        assert 0.5 * nominal <= wait <= 1.5 * nominal
    first, naps[:] = list(naps), []
    for seed, same in ((5, True), (6, False)):
        model.script = {DENSITY: list(passing), MANIFEST: [Refused("UNAVAILABLE")]}
        with Client(url, "dlens", seed=seed) as asked:
            asked.predict(IMAGES)
        assert (naps == first) == same
        naps.clear()


@pytest.mark.parametrize(
    ("code", "tries", "message"),
    [
        ("UNAVAILABLE", 3, r"not reachable \(told so\); see that a server runs there"),
        ("RESOURCE_EXHAUSTED", 3, r"the server is overloaded \(told so\); ask again later"),
        ("INVALID_ARGUMENT", 1, "the server refuses the request: told so"),
        ("INTERNAL", 1, r"the server failed \(.*told so\); its log may tell more"),
        ("DEADLINE_EXCEEDED", 1, r"no answer within 10 s \(told so\); allow a longer timeout"),
    ],
)
def test_gives_up(url, model, naps, code, tries, message):
    model.script = {DENSITY: [Refused(code)] * 9}
    with (
        Client(url, "dlens", retries=2) as asked,
        pytest.raises(UserError, match=f"^{url}, model 'dlens': {message}") as caught,
    ):
        asked.predict(IMAGES)
    assert "\n" not in str(caught.value)
    assert sizes(model) == [7] * tries
    assert len(naps) == tries - 1


def test_stalled_server_meets_the_deadline(url, model):
    model.script = {DENSITY: [model.stall]}
    with Client(url, "dlens", timeout=60.0) as asked:
        assert asked.manifest
        asked._timeout = 0.5  # for the stalled request alone
        with pytest.raises(UserError, match=r"no answer within 0\.5 s"):
            asked.predict(IMAGES)


def test_does_not_wait_past_the_deadline(url, model, naps, monkeypatch):
    monkeypatch.setattr(client, "_FIRST_WAIT", 300.0)
    monkeypatch.setattr(client, "_LONGEST_WAIT", 300.0)
    model.script = {DENSITY: [Refused("UNAVAILABLE")] * 100}
    with (
        Client(url, "dlens", retries=99, timeout=60.0) as asked,
        pytest.raises(UserError, match="not reachable"),
    ):
        asked.predict(IMAGES)
    assert naps == []


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_no_server(scheme, naps):
    # A port that was free a moment ago, and that nothing listens at.
    with ThreadingHTTPServer(("127.0.0.1", 0), RestHandler) as server:
        address = f"{scheme}://127.0.0.1:{server.server_port}"
    with Client(address, "dlens", retries=1) as asked:
        assert not asked.ready()
        with pytest.raises(
            UserError, match=rf"^{address}, model 'dlens': not reachable \(.*[Cc]onnection refused"
        ):
            asked.predict(IMAGES)
    assert len(naps) == 1


def test_models_that_are_not_there(url, model, bundle):
    for arguments, name in [
        ({"model": "other"}, "model 'other'"),
        ({"model": "dlens", "version": 3}, "model 'dlens', version 3"),
        ({"model": "dlens", "label": "canary"}, "model 'dlens', label 'canary'"),
    ]:
        with Client(url, **arguments) as asked:
            assert not asked.ready()
            with pytest.raises(UserError, match=f"^{url}, {name}: the server has no such model"):
                asked.predict(IMAGES)
    model.versions = {1: {DENSITY: bundle[DENSITY]}}  # of an export without a manifest
    with Client(url, "dlens") as asked:
        for ask in (asked.ready, lambda: asked.manifest):
            with pytest.raises(UserError, match=r"; export it again with tools/export\.py$"):
                ask()


def test_version_and_label(url, model, bundle, predictor):
    model.versions[2] = point_model(predictor.manifest, ["source_x"])
    model.labels = {"stable": 1}
    for choice, number in [({}, 1), ({"version": 1}, 2), ({"label": "stable"}, 2)]:
        with Client(url, "dlens", **choice) as asked:
            assert asked.ready()
            assert len(asked.predict(IMAGES).parameters) == number
            assert asked.version == (2 if number == 1 else 1)


def test_new_version_is_answered_by_its_own_manifest(url, model, predictor):
    with Client(url, "dlens") as asked:
        assert asked.predict(IMAGES).stddev is not None
        model.versions = {2: point_model(predictor.manifest, ["source_x"])}
        posterior = asked.predict(IMAGES)
        assert posterior.parameters.names == ["source_x"]
        np.testing.assert_array_equal(posterior.mean, np.zeros((7, 1)))
        assert asked.version == 2


def test_new_version_between_the_requests_of_a_call(url, model, predictor):
    new = point_model(predictor.manifest, ["source_x", "log10_m_axion"])

    def replace(outputs):
        model.versions = {2: new}
        return outputs

    model.script = {DENSITY: [None, replace]}
    with Client(url, "dlens") as asked:
        posterior = asked.predict(IMAGES, batch_size=3)
    assert posterior.parameters.names == ["source_x", "log10_m_axion"]
    np.testing.assert_array_equal(posterior.mean, np.tile([0.0, 1.0], (7, 1)))


def test_new_version_between_status_and_request(rest_url, model, predictor):
    new = point_model(predictor.manifest, ["source_x"])

    def gone(_):
        model.versions = {2: new}
        raise Refused("NOT_FOUND", "version 1 is gone")

    model.script = {MANIFEST: [gone]}
    with Client(rest_url, "dlens", retries=0) as asked:
        assert asked.version == 2


def test_new_version_of_another_image_size(url, model, predictor):
    new = point_model(predictor.manifest, ["source_x"])
    config = json.loads(new[MANIFEST](key=[b""])["manifest"][0])
    config["image"]["shape"] = [32, 32, 1]
    new[MANIFEST] = lambda key: {"manifest": np.array([json.dumps(config).encode()], object)}
    with Client(url, "dlens") as asked:
        assert asked.manifest
        model.versions = {2: new}
        model.script = {DENSITY: [Refused("INVALID_ARGUMENT", "image_bytes: each string must …")]}
        with pytest.raises(UserError, match=r"but the model takes \[32, 32, 1\]"):
            asked.predict(IMAGES)


def changed(name, value):
    return lambda outputs: {**outputs, name: value}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda outputs: {"mean": outputs["mean"]}, "outputs of a gaussian head lack"),
        (lambda outputs: {}, "there are no outputs in it"),
        (changed("mean", np.zeros((7, 3), np.float32)), r"'mean' has shape \[7, 3\] for 7 images"),
        (changed("density", np.zeros((6, 4), np.float32)), r"'density' has shape \[6, 4\]"),
        (changed("density", np.zeros((7, 1), np.float32)), r"density has shape \(7, 1\)"),
        (changed("stddev", np.array([b"a"] * 7, object)), "'stddev' is no array of numbers"),
    ],
)
def test_damaged_answer(url, model, step, message):
    model.script = {DENSITY: [step]}
    with (
        Client(url, "dlens") as asked,
        pytest.raises(UserError, match=f"^{url}, model 'dlens': the answer is damaged: {message}"),
    ):
        asked.predict(IMAGES)


def test_damaged_manifest(url, model):
    for value, message in [
        ("{", "the model's served manifest is damaged"),
        ('{"format": 99}', "is of format 99"),
    ]:
        model.script = {MANIFEST: [changed("manifest", np.array([value.encode()], object))]}
        with (
            Client(url, "dlens") as asked,
            pytest.raises(UserError, match=f"^{url}, model 'dlens': .*{message}"),
        ):
            asked.predict(IMAGES)


def test_image_without_an_answer_is_named(url, model, tmp_path):
    def poison(outputs):
        outputs["mean"][1, 0] = np.nan
        return outputs

    np.save(tmp_path / "a.npy", IMAGES)
    with Client(url, "dlens") as asked:
        for images, name in [(IMAGES, "image 4"), (tmp_path / "a.npy", r"a\.npy\[4\]")]:
            model.script = {DENSITY: [None, poison]}
            with pytest.raises(UserError, match=f"{name}: the model's mean is nan"):
                asked.predict(images, batch_size=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "localhost:8501"}, "'localhost:8501' is not a server's URL; valid are http://"),
        ({"url": "ftp://host"}, "is not a server's URL"),
        ({"url": "http://"}, "is not a server's URL"),
        ({"url": "http://host:port"}, "is not a server's URL: Port could not"),
        ({"url": "http://host/?a=1"}, "is not a server's URL"),
        ({"url": "grpc://host"}, "is not a host and a port, as in grpc://host:8500"),
        ({"url": "http://me:secret@host"}, r"no user or password; put them into ~/\.netrc"),
        ({"model": ""}, "name the model as the server knows it"),
        ({"version": 1, "label": "stable"}, "a version or a label, not both"),
        ({"version": -1}, "a version is a whole number, not -1"),
        ({"version": "1"}, "a version is a whole number, not '1'"),
        ({"timeout": 0.0}, "timeout must be a positive number"),
        ({"timeout": float("inf")}, "timeout must be a positive number"),
        ({"retries": -1}, "retries must be at least 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        Client(**{"url": "http://localhost:8501", "model": "dlens", **arguments})
    assert "secret" not in str(caught.value)


@contextlib.contextmanager
def local_server(base, **labels):
    """The local server with the model "dlens" of a folder."""
    model = ModelConfig("dlens", base, labels=labels)
    options = ServerOptions([model], rest_port=0, grpc_port=0, poll_seconds=0.0)
    with running(options) as server:
        yield server


def url_of(server, scheme):
    port = server.rest_port if scheme == "http" else server.grpc_port
    return f"{scheme}://127.0.0.1:{port}"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_local_server(exported_run, predictor, scheme):
    images = np.resize(IMAGES, (40, 64, 64, 1))
    expected = predictor.predict(images)
    with local_server(exported_run / "export", stable=1) as server:
        for choice in ({}, {"version": 1}, {"label": "stable"}):
            with Client(url_of(server, scheme), "dlens", timeout=60.0, **choice) as asked:
                assert asked.ready()
                posterior = asked.predict(images, batch_size=40)
                assert asked.version == 1
            np.testing.assert_allclose(posterior.mean, expected.mean, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(posterior.quantiles(), expected.quantiles(), atol=1e-5)
        for choice in ({"version": 2}, {"label": "canary"}):
            with Client(url_of(server, scheme), "dlens", timeout=60.0, **choice) as asked:
                assert not asked.ready()
                with pytest.raises(UserError, match=r"the server has no such model \(.*; name one"):
                    asked.predict(IMAGES)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_local_server_changes_the_version(exported_run, predictor, tmp_path, scheme):
    base = tmp_path / "dlens"
    shutil.copytree(exported_run / "export" / "1", base / "1")
    expected = predictor.predict(IMAGES).mean
    with (
        local_server(base) as server,
        Client(url_of(server, scheme), "dlens", timeout=60.0) as asked,
        futures.ThreadPoolExecutor(1) as pool,
    ):

        def reload():
            for version in ("2", "3"):
                shutil.copytree(base / "1", tmp_path / version)
                (tmp_path / version).rename(base / version)
                server.store.refresh()

        reloading = pool.submit(reload)
        while not reloading.done():
            posterior = asked.predict(IMAGES, batch_size=2)
            np.testing.assert_allclose(posterior.mean, expected, rtol=1e-6, atol=1e-6)
        reloading.result()
        asked.predict(IMAGES)
        assert asked.version == 3
        assert server.store.in_service("dlens") == [3]


def test_bad_batch_size():
    with (
        Client("http://localhost:1", "dlens") as asked,
        pytest.raises(UserError, match="batch size"),
    ):
        asked.predict(IMAGES, batch_size=0)
