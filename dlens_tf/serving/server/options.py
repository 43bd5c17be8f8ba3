"""What the server is told: its options, and which folders hold which models.

Needs no TensorFlow, so that a wrong flag is answered at once.
"""

import dataclasses
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import SAVED_MODEL, versions
from dlens_tf.io.files import check_readable, one_line

MODELS_ROOT = "/models"
"""Where the container of TensorFlow Serving has its models."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model to serve.

    Attributes:
      name: what requests call it.
      base: folder of its versions.
      versions: those to serve; None for the highest.
      num_latest: how many of the highest versions to serve; None for all.
      labels: version of each label; such a version is served as well.
    """

    name: str
    base: Path
    versions: frozenset[int] | None = None
    num_latest: int | None = 1
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def wanted(self, found: Collection[int]) -> set[int]:
        """The versions to serve of those found, and those that are named but not found."""
        chosen = self.versions
        if chosen is None:
            chosen = sorted(found)
            chosen = chosen if self.num_latest is None else chosen[-self.num_latest :]
        return {*chosen, *self.labels.values()}


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """How the server works.

    Attributes:
      models: what it serves.
      host: address to listen at.
      rest_port: TCP port of REST; 0 lets the system choose.
      grpc_port: TCP port of gRPC; 0 lets the system choose.
      max_batch_size: most images that go through a network together.
      batch_timeout_micros: how long a batch waits for clients that were there a moment ago.
      max_enqueued: most requests that wait for a model; the next one is refused. One of more rows
        than a batch has counts as several, but is never refused where none waits.
      max_rows: most rows of a request.
      max_request_bytes: largest request.
      max_json_values: most values of a JSON body: while they are read, nothing else is.
      max_bytes_in_flight: bytes of all requests that are being received or answered.
      max_connections: most open REST connections; for the next one the oldest is closed whose
        request has not come yet.
      poll_seconds: between two looks for new versions.
      read_seconds: that a client has to send a request's header, its body or message, and to take
        the answer; a REST connection that asks nothing for as long is closed.
      request_seconds: within which a request is answered or given up.
      grace_seconds: that requests in flight get at shutdown.
      workers: batches that are computed at the same time; one for each core by default.
    """

    models: Sequence[ModelConfig]
    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int = 8500
    max_batch_size: int = 32
    batch_timeout_micros: int = 5000
    max_enqueued: int = 256
    max_rows: int = 1024
    max_request_bytes: int = 16 * 2**20
    max_json_values: int = 2**18
    max_bytes_in_flight: int = 256 * 2**20
    max_connections: int = 512
    poll_seconds: float = 2.0
    read_seconds: float = 10.0
    request_seconds: float = 30.0
    grace_seconds: float = 15.0
    workers: int = dataclasses.field(default_factory=lambda: len(os.sched_getaffinity(0)))


def find_models(bases: Iterable[str | Path], name: str | None = None) -> list[ModelConfig]:
    """The models in some folders, each served with its highest version.

    Args:
      bases: folders of a model's versions, or folders of such folders.
      name: what to call the one model found; None takes the name of its folder.

    Raises:
      UserError: if a folder holds no model, or two models have the same name.
    """
    folders = [folder for base in bases for folder in _model_folders(Path(base))]
    if name is not None and len(folders) != 1:
        raise UserError(f"{len(folders)} models can't all be named '{name}'; serve one of them")
    return _distinct([ModelConfig(name or p.absolute().name, p) for p in folders])


def _model_folders(base: Path) -> list[Path]:
    if not base.is_dir():
        state = "is a file" if base.exists() else "does not exist"
        raise UserError(f"{base} {state}; name the folder of an exported model's versions")
    if (base / SAVED_MODEL).is_file():
        raise UserError(f"{base} is one version; name the folder of versions, {base.parent}")
    if versions(base):
        return [base]
    found = [p for p in sorted(base.iterdir()) if p.name[0] not in "._" and versions(p)]
    if not found:
        raise UserError(f"{base} holds no exported model; a model is exported by tools/export.py")
    return found


def _distinct(models: list[ModelConfig]) -> list[ModelConfig]:
    known: dict[str, ModelConfig] = {}
    for model in models:
        other = known.setdefault(model.name, model)
        if other is not model:
            raise UserError(f"{other.base} and {model.base} are both named '{model.name}'")
    return models


def read_models_config(
    path: str | Path, models_root: str | Path = MODELS_ROOT
) -> list[ModelConfig]:
    """The models of a TensorFlow Serving models.config, a ModelServerConfig text proto.

    Args:
      path: the file; folders in it that are not absolute are relative to it.
      models_root: the folder that /models of the server's container is here.

    Raises:
      UserError: if it can't be read, or asks for what this server does not do.
    """
    path = Path(path)
    check_readable(path)
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no ModelServerConfig: {one_line(error)}") from error
    if not config.model_config_list.config:
        raise UserError(f"{path} has no model_config_list with a model")
    models = [
        _read_model(model, path, Path(models_root)) for model in config.model_config_list.config
    ]
    return _distinct(models)


def _read_model(
    model: model_server_config_pb2.ModelConfig, path: Path, models_root: Path
) -> ModelConfig:
    where = f"{path}: model '{model.name}'"
    if not (model.name and model.base_path):
        raise UserError(f"{where} needs a name and a base_path")
    if model.model_platform not in ("", "tensorflow"):
        raise UserError(f"{where} is of platform '{model.model_platform}', not tensorflow")
    if model.HasField("logging_config"):
        raise UserError(f"{where} has a logging_config; TensorFlow Serving alone logs requests")
    base = Path(model.base_path)
    in_root = base.is_relative_to(MODELS_ROOT)
    base = models_root / base.relative_to(MODELS_ROOT) if in_root else path.parent / base
    if not base.is_dir():
        advice = f"; name the folder that holds {MODELS_ROOT} by --models_root" if in_root else ""
        raise UserError(f"{where}: {base} is no folder{advice}")
    policy = model.model_version_policy
    choice: dict = {}
    match policy.WhichOneof("policy_choice"):
        case "latest":
            choice["num_latest"] = policy.latest.num_versions or 1
        case "all":
            choice["num_latest"] = None
        case "specific":
            choice["versions"] = frozenset(policy.specific.versions)
    return ModelConfig(model.name, base, labels=dict(model.version_labels), **choice)
