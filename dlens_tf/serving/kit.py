"""The TensorFlow Serving kit: the files that a server of some exported models is run with.

    models.config, batching_parameters.txt, monitoring.config   what the server reads
    ready.sh                                                     whether all models answer
    docker-compose.yml, docker-compose.gpu.yml                   on one machine
    kubernetes.yaml, kubernetes.gpu.yaml, models.Dockerfile      on a cluster
    README.md

Each is made of a template in kit_files/; docs/tf_serving.md explains the numbers in them. Of a
model are served: the stable version, the one before it, so that a rollback needs no loading, and
a canary if there is one. Needs no TensorFlow.

Reference: TF Serving guide, "TensorFlow Serving Configuration"; its batching guide.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from dlens_tf.commands import command_line
from dlens_tf.errors import UserError
from dlens_tf.hub import model_names
from dlens_tf.inference.bundle import SAVED_MODEL, versions
from dlens_tf.io.files import atomic_write, one_line

MODELS_CONFIG = "models.config"
CONFIG_FILES = (MODELS_CONFIG, "batching_parameters.txt", "monitoring.config", "ready.sh")
"""What a container finds in its folder of configurations."""
FILES = (
    *CONFIG_FILES,
    "docker-compose.yml",
    "docker-compose.gpu.yml",
    "kubernetes.yaml",
    "kubernetes.gpu.yaml",
    "models.Dockerfile",
    "README.md",
)

_TEMPLATES = Path(__file__).parent / "kit_files"
_MODELS_MOUNT, _CONFIG_MOUNT = "/models", "/config"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The numbers of a kit, explained in docs/tf_serving.md.

    Attributes:
      batch_sizes: those that the bundles are warmed up for, ascending.
      cpus: cores of a container.
      memory_gib: memory of a container, GiB.
      version: of TensorFlow Serving, the tag of its image; "-gpu" is added for the GPU variant.
      models_image: what the image of the models is called on a cluster.
      replicas: servers on a cluster.
      grpc_port: TCP port of gRPC.
      rest_port: TCP port of REST and of the metrics.
      metrics_path: where Prometheus finds the metrics.
      batch_timeout_micros: how long the first request of a batch waits for others.
      config_poll_seconds: between two looks at models.config.
      version_poll_seconds: between two looks for folders of versions.
      rest_timeout_seconds: within which a REST request is answered or given up.
      connection_age_seconds: after which a gRPC client has to connect again.
      startup_seconds: within which all models have to be loaded.
      drain_seconds: that a stopping server goes on answering.
    """

    batch_sizes: Sequence[int]
    cpus: int = 4
    memory_gib: int = 4
    version: str = "2.21.0"
    models_image: str = "registry.example.com/dlens-models:1"
    replicas: int = 2
    grpc_port: int = 8500
    rest_port: int = 8501
    metrics_path: str = "/monitoring/prometheus/metrics"
    batch_timeout_micros: int = 1000
    config_poll_seconds: int = 30
    version_poll_seconds: int = 10
    rest_timeout_seconds: int = 10
    connection_age_seconds: int = 300
    startup_seconds: int = 300
    drain_seconds: int = 15

    @property
    def image(self) -> str:
        """The server's image."""
        return f"tensorflow/serving:{self.version}"

    @property
    def gpu_image(self) -> str:
        """The server's image with CUDA."""
        return f"{self.image}-gpu"

    @property
    def max_enqueued_batches(self) -> int:
        """Batches that may wait for a signature; the next request is refused."""
        return 2 * self.cpus

    @property
    def request_threads(self) -> int:
        """Threads of REST and of gRPC: each request of a batch keeps one waiting."""
        return 2 * self.batch_sizes[-1]

    def flags(self) -> list[str]:
        """The flags of tensorflow_model_server."""
        values = {
            "port": self.grpc_port,
            "rest_api_port": self.rest_port,
            "model_config_file": f"{_CONFIG_MOUNT}/{MODELS_CONFIG}",
            "model_config_file_poll_wait_seconds": self.config_poll_seconds,
            "file_system_poll_wait_seconds": self.version_poll_seconds,
            "allow_version_labels_for_unavailable_models": "true",
            "num_load_threads": 1,
            "enable_batching": "true",
            "batching_parameters_file": f"{_CONFIG_MOUNT}/batching_parameters.txt",
            "monitoring_config_file": f"{_CONFIG_MOUNT}/monitoring.config",
            "rest_api_timeout_in_ms": 1000 * self.rest_timeout_seconds,
            "rest_api_num_threads": self.request_threads,
            "grpc_max_threads": self.request_threads,
            "grpc_channel_arguments": (
                f"grpc.max_connection_age_ms={1000 * self.connection_age_seconds}"
            ),
            "tensorflow_intra_op_parallelism": 1,
            "tensorflow_inter_op_parallelism": self.cpus,
        }
        return [f"--{name}={value}" for name, value in values.items()]


@dataclasses.dataclass(frozen=True)
class ModelVersions:
    """The versions of a model that are served.

    Attributes:
      name: what requests call the model, and the name of its folder.
      versions: those to load, ascending.
      stable: the one with the label "stable".
      canary: the one with the label "canary", None without.
    """

    name: str
    versions: tuple[int, ...]
    stable: int
    canary: int | None = None

    @property
    def labels(self) -> dict[str, int]:
        """Version of each label."""
        labels = {"stable": self.stable, "canary": self.canary}
        return {label: version for label, version in labels.items() if version is not None}


def parse_versions(flag: str, values: Iterable[str]) -> dict[str, int]:
    """What a flag of the form <model>:<version>,… says.

    Raises:
      UserError: if it says it otherwise.
    """
    chosen: dict[str, int] = {}
    for value in values:
        match = re.fullmatch(r"([^:]+):([0-9]+)", value)
        if not match:
            raise UserError(f"--{flag}={value}: write <model>:<version>, for example dlens:2")
        if match[1] in chosen:
            raise UserError(f"--{flag} names {match[1]} twice")
        chosen[match[1]] = int(match[2])
    return chosen


def find_models(
    folder: str | Path, stable: Mapping[str, int] = {}, canary: Mapping[str, int] = {}
) -> list[ModelVersions]:
    """What to serve of the models in a folder.

    Args:
      folder: holds a folder of versions for each model.
      stable: stable version of models; by default the highest that is not the canary.
      canary: canary version of models; by default none.

    Raises:
      UserError: if there are no models, or not the ones that are named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the folder that holds the models")
    if versions(folder):
        raise UserError(f"{folder} is one model; name the folder that holds it, {folder.parent}")
    names = model_names(folder)
    if not names:
        raise UserError(f"{folder} holds no exported model; a model is exported by tools/export.py")
    for flag, chosen in (("stable", stable), ("canary", canary)):
        for name in chosen:
            if name not in names:
                raise UserError(f"--{flag}: {folder} has no model '{name}', but {', '.join(names)}")
    return [_choose(folder / name, stable.get(name), canary.get(name)) for name in names]


def _choose(base: Path, stable: int | None, canary: int | None) -> ModelVersions:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", base.name):
        raise UserError(
            f"{base}: a served model's name has letters, digits, '_', '.' and '-' alone; "
            "rename the folder"
        )
    found = sorted(n for n, path in versions(base).items() if (path / SAVED_MODEL).is_file())
    for version in (stable, canary):
        if version is not None and version not in found:
            raise UserError(f"{base} has no version {version}, but {', '.join(map(str, found))}")
    if stable is None:
        others = [n for n in found if n != canary]
        if not others:
            raise UserError(f"{base} has no version that could be stable beside the canary")
        stable = others[-1]
    if stable == canary:
        raise UserError(f"{base.name}: version {stable} can't be both stable and canary")
    before = [n for n in found if n < stable][-1:]
    served = {*before, stable} | ({canary} if canary is not None else set())
    return ModelVersions(base.name, tuple(sorted(served)), stable, canary)


def kit_files(
    models: Sequence[ModelVersions], models_path: str, settings: Settings
) -> dict[str, str]:
    """The contents of a kit's files.

    Args:
      models: what is served.
      models_path: folder of the models, as seen from the kit's.
      settings: the numbers.

    Returns:
      The text of each of `FILES`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    files: dict[str, str] = {}
    for name in FILES:
        files[name] = environment.get_template(name).render(
            models=models,
            models_path=models_path,
            models_mount=_MODELS_MOUNT,
            config_mount=_CONFIG_MOUNT,
            settings=settings,
            flags=settings.flags(),
            config_files=CONFIG_FILES,
            files=files,  # the ConfigMap has the first of them inside
        )
    return files


def path_between(output: str | Path, models: str | Path) -> str:
    """The models' folder as seen from the kit's, which compose needs to begin with a dot."""
    path = os.path.relpath(models, output)
    return path if path.startswith(".") else f"./{path}"


def write_kit(files: Mapping[str, str], output: str | Path, replace: bool = False) -> list[Path]:
    """Writes those of the files that are not there as they should be.

    Each is put in place as a whole, and the one that a running server looks at again last. The
    folder itself stays, since a container has it mounted.

    Args:
      files: as `kit_files` gives them.
      output: folder of the kit; made if only it is missing.
      replace: whether files that differ may be replaced.

    Returns:
      The files written.

    Raises:
      UserError: if files differ and may not be replaced, or a server that runs with the present
        models.config would refuse the new one; nothing is changed then.
    """
    output = Path(output)
    changed = _differing(files, output)
    taken = [output / name for name in changed if (output / name).exists()]
    if taken and not replace:
        raise UserError(f"{taken[0]} exists and differs; give --replace to replace it")
    if output / MODELS_CONFIG in taken:
        _check_transition(output / MODELS_CONFIG, files[MODELS_CONFIG])
    if not output.parent.is_dir():
        raise UserError(f"can't make {output}: there is no folder {output.parent}")
    output.mkdir(exist_ok=True)
    for name in sorted(changed, key=lambda name: name == MODELS_CONFIG):
        with atomic_write(output / name) as partial:
            partial.write_text(files[name], encoding="utf-8")
    return [output / name for name in changed]


def check_kit(files: Mapping[str, str], output: str | Path) -> None:
    """Raises a `UserError` unless a kit's files are as `kit_files` gives them."""
    changed = _differing(files, Path(output))
    if changed:
        command = command_line("serving_kit", output=output)
        raise UserError(
            f"{Path(output) / changed[0]} is not what would be written now; run {command} --replace"
        )


def _differing(files: Mapping[str, str], folder: Path) -> list[str]:
    def differs(name: str) -> bool:
        try:
            return (folder / name).read_bytes() != files[name].encode()
        except FileNotFoundError:
            return True

    return [name for name in files if differs(name)]


def _parse_config(text: str, where: Path) -> dict[str, model_server_config_pb2.ModelConfig]:
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise UserError(
            f"{where} is no ModelServerConfig ({one_line(error)}); mend or remove it"
        ) from error
    return {model.name: model for model in config.model_config_list.config}


def _check_transition(path: Path, text: str) -> None:
    """Raises a `UserError` if a server would refuse the new models.config.

    It takes a label to another version only when it has that version loaded; otherwise it refuses
    the whole file, and goes on with the old one.
    """
    old = _parse_config(path.read_text(encoding="utf-8", errors="replace"), path)
    for name, model in _parse_config(text, path).items():
        before = old.get(name, model_server_config_pb2.ModelConfig())
        for label, version in model.version_labels.items():
            served = before.version_labels.get(label, version)
            if served != version and version not in before.model_version_policy.specific.versions:
                first = (
                    f"with --canary={name}:{version}" if label == "stable" else "without a canary"
                )
                raise UserError(
                    f"a server that runs with {path} would refuse to move the label '{label}' of "
                    f"{name} to version {version}, which it has not loaded; write the kit {first} "
                    "and wait until the server has taken it"
                )
