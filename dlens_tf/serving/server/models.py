"""The loaded models: their versions, hot reload, and who is using them.

A new version is loaded and warmed up before it takes over; the old one goes when its last
request has been answered. A version that can't be loaded is reported, and the old one stays.
"""

import contextlib
import ctypes
import dataclasses
import gc
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import get_model_metadata_pb2

from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import (
    EXTRA,
    GOLDEN,
    SAVED_MODEL,
    WARMUP_REQUESTS,
    Manifest,
    versions,
)
from dlens_tf.io.files import one_line
from dlens_tf.serving.server.errors import ServingError, invalid
from dlens_tf.serving.server.inputs import Signature, Tensors
from dlens_tf.serving.server.options import ModelConfig
from dlens_tf.serving.warmup import read_warmup_requests

SignatureDefMap = get_model_metadata_pb2.SignatureDefMap


class StoppedError(Exception):
    """Loading was given up, since the server stops."""


class ServedModel:
    """One loaded version of a model.

    Attributes:
      name: what requests call the model.
      version: its version.
      labels: the version's labels.
      manifest: what it answers.
      signatures: what can be asked, by name.
      signature_def: the same as the SavedModel's file has it.
      examples: simulated lenses of its recipe, float32 [M, H, W, C]; M may be 0.
    """

    def __init__(self, config: ModelConfig, version: int, bundle: Path, stopped: threading.Event):
        """Loads a bundle, and replays its warm-up requests; takes seconds.

        Raises:
          UserError: if its files are missing or damaged.
          StoppedError: if it is to stop meanwhile.
        """
        self.name = config.name
        self.version = version
        self.labels = sorted(label for label, n in config.labels.items() if n == version)
        self.manifest = Manifest.read(bundle)
        _without(self.manifest, f"{EXTRA}/{GOLDEN}").verify(bundle)
        # The signatures hold no reference to the variables: they live as long as this object.
        self._saved_model = tf.saved_model.load(str(bundle))
        self._functions = dict(self._saved_model.signatures)
        self.signatures = {name: Signature.of(f) for name, f in self._functions.items()}
        self.signature_def = _read_signature_def(bundle)
        self.users = 0
        if (bundle / EXTRA / WARMUP_REQUESTS).is_file():
            for request in read_warmup_requests(bundle):
                if stopped.is_set():
                    raise StoppedError
                inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
                self.run(request.model_spec.signature_name, inputs)
        self.examples = _read_examples(bundle, self.manifest.image.shape)

    def run(self, signature: str, inputs: Tensors) -> Tensors:
        """Answers a signature; blocks while TensorFlow computes.

        Args:
          signature: its name.
          inputs: tensors that `inputs.check_inputs` has accepted.
        """
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        outputs = self._functions[signature](**tensors)
        return {name: value.numpy() for name, value in outputs.items()}


def _read_examples(bundle: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The images of the bundle's golden answers; none if they are missing or damaged."""
    try:
        with (
            open(bundle / EXTRA / GOLDEN, "rb") as file,  # which NumPy leaves open if damaged
            np.load(file, allow_pickle=False) as golden,
        ):
            images = golden["image"]
        if images.shape[1:] == tuple(shape) and images.dtype == np.float32:
            return images
        logging.warning("%s: %s is not for its images", bundle, GOLDEN)
    except FileNotFoundError:
        pass
    except Exception as error:  # NumPy and zipfile raise all kinds; answers need no examples
        logging.warning("%s: %s is damaged: %s", bundle, GOLDEN, one_line(error))
    return np.zeros((0, *shape), np.float32)


def _without(manifest: Manifest, file: str) -> Manifest:
    """A manifest that does not vouch for a file."""
    sums = {name: checksum for name, checksum in manifest.sha256.items() if name != file}
    return dataclasses.replace(manifest, sha256=sums)


def _read_signature_def(bundle: Path) -> SignatureDefMap:
    saved_model = saved_model_pb2.SavedModel.FromString((bundle / SAVED_MODEL).read_bytes())
    signatures = SignatureDefMap()
    for name, definition in saved_model.meta_graphs[0].signature_def.items():
        signatures.signature_def[name].CopyFrom(definition)
    return signatures


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """State of a version.

    Attributes:
      version: the version.
      state: LOADING, AVAILABLE, UNLOADING or END, as TensorFlow Serving names them.
      code: OK, or the name of the gRPC code of what went wrong.
      message: what went wrong, one line.
    """

    version: int
    state: str
    code: str = "OK"
    message: str = ""


class _Entry:
    """A model's versions."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.loaded: dict[int, ServedModel] = {}
        self.status: dict[int, VersionStatus] = {}
        self.refused: dict[int, list] = {}  # contents of folders that could not be loaded

    def report(self, version: int, state: str, code: str = "OK", message: str = "") -> None:
        """Sets a version's state; what went wrong is logged once."""
        status = VersionStatus(version, state, code, message)
        if message and self.status.get(version) != status:
            logging.warning("model '%s' version %d: %s", self.config.name, version, message)
        self.status[version] = status


class ModelStore:
    """All models that are served, by name. `refresh` loads them; the rest may be called meanwhile.

    Args:
      configs: the models, each of another name.
    """

    def __init__(self, configs: Sequence[ModelConfig]):
        self._entries = {config.name: _Entry(config) for config in configs}
        self._lock = threading.Lock()
        self._has_garbage = False  # a version ended since the last look
        self._stopped = threading.Event()

    def names(self) -> list[str]:
        """Names of the models, sorted."""
        return sorted(self._entries)

    @property
    def ready(self) -> bool:
        """Whether each model has a version in service."""
        return all(self.in_service(name) for name in self._entries)

    @contextlib.contextmanager
    def get(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[ServedModel]:
        """Keeps a version in service while the block runs.

        Args:
          name: the model's name.
          version: its version; None takes the highest in service.
          label: or a label of the version.

        Raises:
          ServingError: NOT_FOUND if it is not in service; INVALID_ARGUMENT if there is no such
            label.
        """
        with self._lock:
            model = self._find(name, version, label)
            model.users += 1
        try:
            yield model
        finally:
            with self._lock:
                model.users -= 1
                self._finish(self._entries[name], model)

    def status(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> list[VersionStatus]:
        """State of a model's versions, the highest first.

        Args:
          name: the model's name.
          version: one version; None for all.
          label: or the version of a label.

        Raises:
          ServingError: NOT_FOUND if there is no such model or version; INVALID_ARGUMENT if there
            is no such label.
        """
        version = self._version(self._entry(name), version, label)
        found = self.statuses(name)
        if version is not None:
            found = [status for status in found if status.version == version]
        if not found:
            which = "version" if version is None else f"version {version}"
            raise ServingError("NOT_FOUND", f"model '{name}' has no {which} in service")
        return found

    def statuses(self, name: str) -> list[VersionStatus]:
        """The same, of a model that is among `names`; it may have no version at all."""
        with self._lock:
            found = list(self._entries[name].status.values())
        return sorted(found, key=lambda status: status.version, reverse=True)

    def in_service(self, name: str) -> list[int]:
        """The versions of a model that answer, the highest first."""
        with self._lock:
            return sorted(self._entries[name].loaded, reverse=True)

    def stop(self) -> None:
        """Lets `refresh` end early; nothing is loaded any more."""
        self._stopped.set()

    def refresh(self) -> None:
        """Looks for new versions, loads them, and retires those that they replace.

        Blocks for as long as that takes; to be called by one thread at a time.
        """
        try:
            for entry in self._entries.values():
                self._refresh(entry)
        except StoppedError:
            return
        if self._has_garbage:
            self._has_garbage = False
            _free_memory()

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise ServingError("NOT_FOUND", f"there is no model '{name}'")
        return self._entries[name]

    def _version(self, entry: _Entry, version: int | None, label: str | None) -> int | None:
        if label is None:
            return version
        if label not in entry.config.labels:
            raise invalid(f"model '{entry.config.name}' has no label '{label}'")
        return entry.config.labels[label]

    def _find(self, name: str, version: int | None, label: str | None) -> ServedModel:
        entry = self._entry(name)
        version = self._version(entry, version, label)
        if not entry.loaded:
            raise ServingError("NOT_FOUND", f"model '{name}' has no version in service")
        version = max(entry.loaded) if version is None else version
        if version not in entry.loaded:
            raise ServingError("NOT_FOUND", f"model '{name}' has no version {version} in service")
        return entry.loaded[version]

    def _refresh(self, entry: _Entry) -> None:
        folders = _find_versions(entry.config.base)
        wanted = entry.config.wanted(folders)
        for version in sorted(wanted - entry.loaded.keys()):
            if version in folders:
                self._load(entry, version, folders[version])
            else:
                self._report(entry, version, "END", "NOT_FOUND", "there is no such version")
        for version in entry.loaded:
            if version in folders:
                self._report(entry, version, "AVAILABLE")
            else:
                gone = "its folder is gone; it stays in service from memory"
                self._report(entry, version, "AVAILABLE", "NOT_FOUND", gone)
        self._forget(entry, wanted | folders.keys())
        if wanted and wanted <= entry.loaded.keys():
            retired = entry.loaded.keys() - wanted
            for version in retired:
                self._retire(entry, version)

    def _report(self, entry: _Entry, *status) -> None:
        with self._lock:
            entry.report(*status)

    def _forget(self, entry: _Entry, present: set[int]) -> None:
        """Drops what went wrong with versions that nobody has or asks for any more."""
        with self._lock:
            for version, status in list(entry.status.items()):
                if status.state == "END" and status.code != "OK" and version not in present:
                    del entry.status[version]
                    entry.refused.pop(version, None)

    def _load(self, entry: _Entry, version: int, folder: Path) -> None:
        if self._stopped.is_set():
            raise StoppedError
        contents = _contents(folder)
        if entry.refused.get(version) == contents:
            return
        self._report(entry, version, "LOADING")
        try:
            model = ServedModel(entry.config, version, folder, self._stopped)
        except StoppedError:
            raise
        except Exception as error:  # whatever is wrong with a bundle, the others go on
            entry.refused[version] = contents
            code = "FAILED_PRECONDITION" if isinstance(error, UserError) else "UNKNOWN"
            self._report(entry, version, "END", code, one_line(error))
            return
        with self._lock:
            entry.refused.pop(version, None)
            entry.loaded[version] = model
            entry.report(version, "AVAILABLE")

    def _retire(self, entry: _Entry, version: int) -> None:
        with self._lock:
            model = entry.loaded.pop(version)
            entry.report(version, "UNLOADING")
            self._finish(entry, model)

    def _finish(self, entry: _Entry, model: ServedModel) -> None:
        status = entry.status[model.version]
        if not model.users and status.state == "UNLOADING":
            entry.report(model.version, "END")
            self._has_garbage = True


def _free_memory() -> None:
    """Gives the system back what ended versions had; takes too long for the event loop."""
    gc.collect()  # a SavedModel is full of cycles, and large
    # glibc keeps freed memory to itself, and more with each reload.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _find_versions(base: Path) -> dict[int, Path]:
    """The versions in a folder that may be complete; none if it can't be read."""
    try:
        return {n: p for n, p in versions(base).items() if (p / SAVED_MODEL).is_file()}
    except OSError:
        return {}


def _contents(folder: Path) -> list[tuple]:
    """Names, sizes and times of a folder's files: they change while it is being copied."""
    try:
        files = [(path, path.stat()) for path in sorted(folder.rglob("*"))]
    except OSError:
        return []
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in files]
