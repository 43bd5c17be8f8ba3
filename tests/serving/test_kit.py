"""The kit, read back as TensorFlow Serving, compose and Kubernetes read it."""

import http.server
import inspect
import json
import re
import shlex
import subprocess
import threading
from pathlib import Path

import pytest
import yaml
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import WARMUP_BATCH_SIZES as BATCH_SIZES
from dlens_tf.serving import client, kit
from dlens_tf.serving.warmup import read_warmup_requests

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "serving"
DOCUMENT = ROOT / "docs" / "tf_serving.md"


def message_class(name: str):
    """A proto of TensorFlow Serving that its Python package leaves out.

    Fields, numbers and types of servables/tensorflow/session_bundle_config.proto and
    config/monitoring_config.proto.
    """
    wrapped = "max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"
    number = ".google.protobuf.Int64Value"
    messages = {
        "BatchingParameters": [
            *[(field, i + 1, "TYPE_MESSAGE", number) for i, field in enumerate(wrapped)],
            ("thread_pool_name", 5, "TYPE_MESSAGE", ".google.protobuf.StringValue"),
            ("allowed_batch_sizes", 6, "TYPE_INT64", None),
            ("pad_variable_length_inputs", 7, "TYPE_BOOL", None),
        ],
        "PrometheusConfig": [("enable", 1, "TYPE_BOOL", None), ("path", 2, "TYPE_STRING", None)],
        "MonitoringConfig": [
            ("prometheus_config", 1, "TYPE_MESSAGE", ".tensorflow.serving.PrometheusConfig")
        ],
    }
    file = descriptor_pb2.FileDescriptorProto(
        name="kit.proto", package="tensorflow.serving", syntax="proto3"
    )
    file.dependency.append("google/protobuf/wrappers.proto")
    for message, fields in messages.items():
        added = file.message_type.add(name=message)
        for field, index, kind, type_name in fields:
            repeated = field == "allowed_batch_sizes"
            label = descriptor_pb2.FieldDescriptorProto.Label.Value(
                "LABEL_REPEATED" if repeated else "LABEL_OPTIONAL"
            )
            kind = descriptor_pb2.FieldDescriptorProto.Type.Value(kind)
            added.field.add(name=field, number=index, label=label, type=kind, type_name=type_name)
    pool = descriptor_pool.DescriptorPool()
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    pool.Add(wrappers)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))


def models_config(text: str) -> dict[str, tuple[list[int], dict[str, int]]]:
    """Versions and labels of each model of a models.config."""
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    return {
        model.name: (
            list(model.model_version_policy.specific.versions),
            dict(model.version_labels),
        )
        for model in config.model_config_list.config
    }


def make_models(folder: Path, **versions: list[int]) -> Path:
    """A folder of models, with as much of each version as the kit looks at."""
    for name, numbers in versions.items():
        for number in numbers:
            (folder / name / str(number)).mkdir(parents=True)
            (folder / name / str(number) / "saved_model.pb").touch()
    return folder


@pytest.fixture
def models(tmp_path) -> Path:
    return make_models(tmp_path / "models", first=[1], second=[3, 7, 20])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A kit of two models, one of them with a canary."""
    folder = make_models(tmp_path_factory.mktemp("models"), first=[1], second=[3, 7, 20])
    found = kit.find_models(folder, canary={"second": 20})
    return kit.kit_files(found, "../models", kit.Settings(BATCH_SIZES, cpus=3, memory_gib=5))


def served_flags(command: list[str]) -> dict[str, str]:
    return dict(flag.removeprefix("--").split("=", 1) for flag in command)


def compose(files: dict[str, str]) -> dict:
    return yaml.safe_load(files["docker-compose.yml"])["services"]["tf-serving"]


def kubernetes(files: dict[str, str]) -> dict[str, dict]:
    return {d["kind"]: d for d in yaml.safe_load_all(files["kubernetes.yaml"])}


@pytest.mark.parametrize(
    ("stable", "canary", "expected"),
    [
        ({}, {}, ((7, 20), 20, None)),
        ({}, {"second": 20}, ((3, 7, 20), 7, 20)),
        ({"second": 7}, {}, ((3, 7), 7, None)),
        ({"second": 3}, {}, ((3,), 3, None)),
        ({"second": 20}, {"second": 3}, ((3, 7, 20), 20, 3)),
    ],
)
def test_choice_of_versions(models, stable, canary, expected):
    first, second = kit.find_models(models, stable, canary)
    assert first == kit.ModelVersions("first", (1,), 1, None)
    assert (second.versions, second.stable, second.canary) == expected


def test_versions_are_those_that_can_be_loaded(models):
    (models / "second" / "21").mkdir()  # an export that has not got its saved_model.pb
    (models / "second" / ".partial-1").mkdir()
    (models / ".partial-2" / "1").mkdir(parents=True)
    (models / "notes").mkdir()
    assert [model.stable for model in kit.find_models(models)] == [1, 20]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([{"third": 1}], "--stable: {models} has no model 'third', but first, second"),
        ([{}, {"third": 1}], "--canary: {models} has no model 'third', but first, second"),
        ([{"second": 4}], "{models}/second has no version 4, but 3, 7, 20"),
        ([{}, {"first": 1}], "{models}/first has no version that could be stable"),
        ([{"first": 1}, {"first": 1}], "first: version 1 can't be both stable and canary"),
    ],
)
def test_wrong_choices(models, arguments, message):
    with pytest.raises(UserError) as caught:
        kit.find_models(models, *arguments)
    assert str(caught.value).startswith(message.format(models=models))


def test_wrong_folders(models, tmp_path):
    make_models(tmp_path / "odd", **{"a b": [1]})
    (tmp_path / "empty").mkdir()
    for folder, message in [
        (tmp_path / "none", "there is no folder"),
        (models / "first", "is one model; name the folder that holds it"),
        (tmp_path / "empty", "holds no exported model"),
        (tmp_path / "odd", "rename the folder"),
    ]:
        with pytest.raises(UserError, match=message):
            kit.find_models(folder)


def test_flags_of_versions():
    assert kit.parse_versions("stable", ["a:1", "b:20"]) == {"a": 1, "b": 20}
    for values in (["a"], ["a:"], ["a:-1"], ["a:b"], [":1"], ["a:1:2"], ["a:1", "a:2"]):
        with pytest.raises(UserError, match="--stable"):
            kit.parse_versions("stable", values)


def test_models_config(files):
    config = text_format.Parse(files["models.config"], model_server_config_pb2.ModelServerConfig())
    [first, second] = config.model_config_list.config
    assert models_config(files["models.config"]) == {
        "first": ([1], {"stable": 1}),
        "second": ([3, 7, 20], {"stable": 7, "canary": 20}),
    }
    assert (first.base_path, second.base_path) == ("/models/first", "/models/second")
    assert {first.model_platform, second.model_platform} == {"tensorflow"}


def test_batching_parameters_are_those_of_the_warmup(files, exported_run):
    batching = text_format.Parse(
        files["batching_parameters.txt"], message_class("BatchingParameters")()
    )
    sizes: dict[str, set[int]] = {}
    for request in read_warmup_requests(exported_run / "export" / "1"):
        [shape, *_] = [tensor.tensor_shape.dim[0].size for tensor in request.inputs.values()]
        sizes.setdefault(request.model_spec.signature_name, set()).add(shape)
    assert "serving_default" in sizes
    for signature, warmed in sizes.items():
        assert sorted(warmed) == list(batching.allowed_batch_sizes), signature
    assert batching.max_batch_size.value == batching.allowed_batch_sizes[-1] == BATCH_SIZES[-1]
    assert batching.num_batch_threads.value == 3
    assert batching.max_enqueued_batches.value >= batching.num_batch_threads.value
    assert batching.max_batch_size.value >= client.BATCH_SIZE


def test_monitoring(files):
    monitoring = text_format.Parse(files["monitoring.config"], message_class("MonitoringConfig")())
    assert monitoring.prometheus_config.enable
    pod = kubernetes(files)["Deployment"]["spec"]["template"]
    assert pod["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": served_flags(compose(files)["command"])["rest_api_port"],
        "prometheus.io/path": monitoring.prometheus_config.path,
    }


def test_compose_and_kubernetes_run_the_same_server(files):
    service = compose(files)
    pod = kubernetes(files)["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == service["image"]
    assert re.fullmatch(r"tensorflow/serving:\d+\.\d+\.\d+", service["image"])
    assert container["command"] == service["entrypoint"] == ["tensorflow_model_server"]
    assert container["args"] == service["command"]
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"] == {"cpu": service["cpus"], "memory": "5Gi"}
    assert service["mem_limit"] == "5g"
    threads = served_flags(service["command"])
    assert int(threads["tensorflow_inter_op_parallelism"]) == 3
    assert int(threads["tensorflow_intra_op_parallelism"]) == 1


def test_gpu_variants(files):
    image = f"{compose(files)['image']}-gpu"
    over = yaml.safe_load(files["docker-compose.gpu.yml"])["services"]["tf-serving"]
    patch = yaml.safe_load(files["kubernetes.gpu.yaml"])["spec"]["template"]["spec"]
    [container] = patch["containers"]
    [own] = kubernetes(files)["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert over["image"] == container["image"] == image
    assert container["name"] == own["name"]  # by which the patch is merged
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
    [device] = over["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert over["environment"] == {entry["name"]: entry["value"] for entry in container["env"]}


def test_ports(files):
    service = compose(files)
    flags = served_flags(service["command"])
    ports = {"grpc": int(flags["port"]), "rest": int(flags["rest_api_port"])}
    assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports.values()]
    objects = kubernetes(files)
    [container] = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert {p["name"]: p["containerPort"] for p in container["ports"]} == ports
    assert {p["name"]: p["port"] for p in objects["Service"]["spec"]["ports"]} == ports
    assert all(p["targetPort"] == p["name"] for p in objects["Service"]["spec"]["ports"])
    assert container["livenessProbe"]["httpGet"] == {"path": "/v1/models/first", "port": "rest"}
    assert f"${{1:-{ports['rest']}}}" in files["ready.sh"]


def test_the_server_finds_its_files(files):
    service = compose(files)
    mounts = dict(volume.split(":")[1::-1] for volume in service["volumes"])
    assert mounts == {"/models": "../models", "/config": "."}
    objects = kubernetes(files)
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert {m["mountPath"] for m in container["volumeMounts"]} == set(mounts)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(volumes) == {m["name"] for m in container["volumeMounts"]}
    config_map = objects["ConfigMap"]
    assert volumes["config"]["configMap"]["name"] == config_map["metadata"]["name"]
    named = [v for v in served_flags(service["command"]).values() if v.startswith("/config/")]
    probes = [container[probe]["exec"]["command"] for probe in ("startupProbe", "readinessProbe")]
    assert probes == [service["healthcheck"]["test"][1:]] * 2 == [["bash", "/config/ready.sh"]] * 2
    for path in [*named, "/config/ready.sh"]:
        name = path.removeprefix("/config/")
        assert config_map["data"][name] == files[name]
    assert set(config_map["data"]) == set(kit.CONFIG_FILES)


def test_selectors_match(files):
    objects = kubernetes(files)
    deployment = objects["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == objects["Service"]["spec"]["selector"] == labels


def test_a_stopping_pod_answers_what_it_has(files):
    pod = kubernetes(files)["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [program, seconds] = container["lifecycle"]["preStop"]["exec"]["command"]
    timeout = int(served_flags(container["args"])["rest_api_timeout_in_ms"]) / 1000
    assert program == "sleep"
    assert timeout < int(seconds) < pod["terminationGracePeriodSeconds"]
    assert timeout == inspect.signature(client.Client).parameters["timeout"].default


def test_the_models_image_has_all_versions_served(files):
    served = {
        f"{name}/{version}"
        for name, (versions, _) in models_config(files["models.config"]).items()
        for version in versions
    }
    copied = re.findall(r"^COPY (\S+) (\S+)$", files["models.Dockerfile"], re.MULTILINE)
    assert dict(copied) == {path: f"/saved_models/{path}" for path in served}
    [init] = kubernetes(files)["Deployment"]["spec"]["template"]["spec"]["initContainers"]
    assert init["command"] == ["cp", "-r", "/saved_models/.", "/models"]
    assert init["volumeMounts"] == [{"name": "models", "mountPath": "/models"}]
    assert f"--tag {init['image']} ../models" in files["README.md"]


class Status(http.server.BaseHTTPRequestHandler):
    """The model-status endpoint."""

    states: dict[str, str]

    def do_GET(self):
        state = self.states.get(self.path)
        status = {"error_code": "OK" if state == "AVAILABLE" else "UNAVAILABLE"}
        version = self.path.rsplit("/", 1)[1]
        body = {"model_version_status": [{"version": version, "state": state, "status": status}]}
        text = json.dumps(body, indent=1).encode()
        self.send_response(200 if state else 404)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(
    ("second", "error"),
    [
        ("AVAILABLE", ""),
        ("LOADING", "second/versions/7 is not available\n"),
        ("END", "second/versions/7 is not available\n"),
        (None, "second/versions/7 is not available\n"),
    ],
)
def test_ready(files, tmp_path, second, error):
    script = tmp_path / "ready.sh"
    script.write_text(files["ready.sh"])
    states = {"/v1/models/first/versions/1": "AVAILABLE", "/v1/models/second/versions/7": second}
    handler = type("Handler", (Status,), {"states": states})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        command = ["bash", script, str(server.server_address[1])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        server.shutdown()
        thread.join()
    assert (done.returncode, done.stderr) == (1 if error else 0, error)
    gone = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert gone.returncode == 1  # nobody listens any more


class LabelledServer:
    """How TensorFlow Serving takes a models.config, labels and versions of one model.

    A label in use moves only to a loaded version; otherwise nothing of the file is taken.
    """

    def __init__(self, text: str):
        [(self.loaded, self.labels)] = models_config(text).values()

    def reload(self, text: str) -> None:
        [(versions, labels)] = models_config(text).values()
        for label, version in labels.items():
            assert self.labels.get(label, version) == version or version in self.loaded
        self.loaded, self.labels = versions, labels


def test_canary_promotion_and_rollback(tmp_path):
    models, output = make_models(tmp_path / "models", dlens=[1]), tmp_path / "serving"

    def write(**choice) -> str:
        files = kit.kit_files(
            kit.find_models(models, **choice), "../models", kit.Settings(BATCH_SIZES)
        )
        kit.write_kit(files, output, replace=True)
        return (output / "models.config").read_text()

    server = LabelledServer(write())
    make_models(models, dlens=[2])
    before = (output / "models.config").read_bytes()
    with pytest.raises(UserError, match="--canary=dlens:2 and wait"):
        write()
    assert (output / "models.config").read_bytes() == before
    server.reload(write(canary={"dlens": 2}))
    assert server.labels == {"stable": 1, "canary": 2}
    server.reload(write())
    assert (server.labels, server.loaded) == ({"stable": 2}, [1, 2])
    server.reload(write(stable={"dlens": 1}))
    assert (server.labels, server.loaded) == ({"stable": 1}, [1])
    make_models(models, dlens=[3, 4])
    server.reload(write(stable={"dlens": 1}, canary={"dlens": 3}))
    with pytest.raises(UserError, match="without a canary and wait"):
        write(stable={"dlens": 1}, canary={"dlens": 4})
    server.reload(write(stable={"dlens": 3}))
    assert (server.labels, server.loaded) == ({"stable": 3}, [2, 3])
    server.reload(write(canary={"dlens": 4}))
    assert (server.labels, server.loaded) == ({"stable": 3, "canary": 4}, [2, 3, 4])


def test_writing(files, tmp_path):
    output = tmp_path / "serving"
    assert kit.write_kit(files, output) == [output / name for name in kit.FILES]
    assert {p.name for p in output.iterdir()} == set(kit.FILES)
    kit.check_kit(files, output)
    assert kit.write_kit(files, output) == []
    (output / "notes.txt").write_text("mine")
    (output / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"README\.md is not what would be written now"):
        kit.check_kit(files, output)
    with pytest.raises(UserError, match=r"README\.md exists and differs; give --replace"):
        kit.write_kit(files, output)
    assert (output / "README.md").read_text() == "mine"
    inode = output.stat().st_ino
    assert kit.write_kit(files, output, replace=True) == [output / "README.md"]
    assert output.stat().st_ino == inode  # a container has it mounted
    assert (output / "notes.txt").read_text() == "mine"
    kit.check_kit(files, output)
    (output / "models.config").write_text("no proto")
    with pytest.raises(UserError, match="is no ModelServerConfig"):
        kit.write_kit(files, output, replace=True)
    with pytest.raises(UserError, match="there is no folder"):
        kit.write_kit(files, tmp_path / "none" / "serving")


def test_compose_takes_the_models_for_a_path(tmp_path):
    for models, path in [("models", "../models"), ("serving/models", "./models")]:
        assert kit.path_between(tmp_path / "serving", tmp_path / models) == path


@pytest.fixture(scope="module")
def committed() -> dict[str, str]:
    return {name: (COMMITTED / name).read_text() for name in kit.FILES}


def test_the_committed_kit_serves_the_ready_to_use_models(committed):
    published = {p.parent.name for p in (ROOT / "saved_models").glob("*/README.md")}
    for name, (versions, labels) in models_config(committed["models.config"]).items():
        assert labels["stable"] in versions
        assert all((ROOT / "saved_models" / name / str(v)).is_dir() for v in versions)
        published.remove(name)
    assert not published


def documented(header: str) -> dict[str, str]:
    """First two cells of the rows of a table in the document."""
    rows = DOCUMENT.read_text().split(f"| {header} | value | why |\n|---|---|---|\n", 1)[1]
    cells = [line.split(" | ") for line in rows.split("\n\n", 1)[0].splitlines()]
    return {name.strip("| `"): value.strip("`") for name, value, *_ in cells}


def test_the_document_has_the_committed_numbers(committed):
    flags = compose(committed)["command"]
    assert documented("flag of the server") == served_flags(flags)
    batching = text_format.Parse(
        committed["batching_parameters.txt"], message_class("BatchingParameters")()
    )
    values = {field.name: value for field, value in batching.ListFields()}
    sizes = ", ".join(map(str, values.pop("allowed_batch_sizes")))
    numbers = {name: str(value.value) for name, value in values.items()}
    assert documented("batching parameter") == {"allowed_batch_sizes": sizes} | numbers
    text = DOCUMENT.read_text()
    [command] = re.findall(r"docker run .*?(?:[^\\]\n)", text, re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    image = words.index(compose(committed)["image"])
    assert sorted(words[image + 1 :]) == sorted(flags)
    gpu = yaml.safe_load(committed["docker-compose.gpu.yml"])["services"]["tf-serving"]["image"]
    assert set(re.findall(r"tensorflow/serving:[\w.-]+", text)) == {words[image], gpu}
    [init] = kubernetes(committed)["Deployment"]["spec"]["template"]["spec"]["initContainers"]
    assert f"--tag {init['image']} saved_models" in text


def test_the_metrics_path_is_documented(committed):
    monitoring = text_format.Parse(
        committed["monitoring.config"], message_class("MonitoringConfig")()
    )
    assert f":8501{monitoring.prometheus_config.path}`" in DOCUMENT.read_text()
