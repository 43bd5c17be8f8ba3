"""A client of a model server: the posteriors that `Predictor` gives, computed by the server.

It uses the REST or gRPC interface of TensorFlow Serving and nothing beyond, so that it works with
TensorFlow Serving and with the local server alike. What a model infers, in which units and from
which images, it learns from the model itself (signature serve_manifest).

Example:
    >>> with Client("http://localhost:8501", "axion_model_i") as client:
    ...     posterior = client.predict(images)              # [N, 150, 150], raw flux
    ...     posterior = client.predict(["lens.fits"])
"""

import dataclasses
import itertools
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import Manifest
from dlens_tf.inference.posterior import Posterior
from dlens_tf.io.contract import ImageContract
from dlens_tf.io.files import one_line
from dlens_tf.io.images import read_images
from dlens_tf.serving.transport import Answer, ModelName, ServerError, open_transport

BATCH_SIZE = 32
"""Images in a request: the largest batch that bundles are warmed up for."""
MAX_REQUEST_BYTES = 4 * 2**20 - 2**16
"""Bytes of images in a request: gRPC servers take 4 MiB unless told otherwise."""

_DENSITY, _MANIFEST = "serve_density_bytes", "serve_manifest"
_PASSING = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
# What a request meant for one version may meet when the next has taken its place.
_AFTER_RELOAD = ("NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION")
_MOST_RELOADS = 5
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 2.0  # seconds

Images = np.ndarray | str | os.PathLike | Sequence


@dataclasses.dataclass(frozen=True)
class _Served:
    """A version of the model, and what it says of itself."""

    version: int | None
    manifest: Manifest


class Client:
    """A model on a server.

    Without a version, what the server holds newest (or under the label) answers, also when that
    changes meanwhile; all images of one call are answered by one version.

    Threads should each have a client of their own.

    Args:
      url: http://host:8501 or https://… for REST, grpc://host:8500 for gRPC.
      model: the name that the server knows it by.
      version: version to ask; None takes the newest.
      label: instead of a version, a label of it, such as "stable".
      timeout: seconds within which a request has to be answered, retries and waits included. A
        request has `BATCH_SIZE` images at most; more images are more requests.
      retries: times that a request is sent again if the server can't be reached, is not ready
        or is overloaded. The waits between double, from 0.1 s to 2 s, varied by up to a half.
      seed: of the variation; None takes a new one, so that many clients do not ask in step.

    Raises:
      UserError: if the arguments make no sense. The server is first asked when it is needed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 10.0,
        retries: int = 3,
        seed: int | None = None,
    ):
        if not model:
            raise UserError("name the model as the server knows it")
        if version is not None and label is not None:
            raise UserError("give a version or a label, not both")
        if version is not None and (not isinstance(version, int) or version < 0):
            raise UserError(f"a version is a whole number, not {version!r}")
        if not (timeout > 0.0 and math.isfinite(timeout)):
            raise UserError(f"timeout must be a positive number of seconds, not {timeout}")
        if retries < 0:
            raise UserError(f"retries must be at least 0, not {retries}")
        self._url = url
        self._model = ModelName(model, version, label)
        self._timeout = timeout
        self._retries = retries
        self._random = random.Random(seed)
        self._cached: _Served | None = None
        self._transport = open_transport(url)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def __str__(self) -> str:
        version = self._cached.version if self._cached else self._model.version
        return f"{self._url}, {dataclasses.replace(self._model, version=version)}"

    @property
    def manifest(self) -> Manifest:
        """What the model answers: parameters with units, head, image contract.

        Asked of the server once, and again when the model's version has changed.

        Raises:
          UserError: if the server or the model can't be reached, or the bundle has no manifest.
        """
        return self._served().manifest

    @property
    def version(self) -> int | None:
        """The version that the manifest is of; None if the server does not tell.

        Raises:
          UserError: as `manifest`.
        """
        return self._served().version

    def ready(self) -> bool:
        """Whether the server has the model in service now; asks once, without retries.

        Raises:
          UserError: if it never will: the bundle has no manifest, or it is no model server.
        """
        try:
            self._cached = self._fetch(retries=0)
        except ServerError as error:
            if error.code in (*_PASSING, "NOT_FOUND", "DEADLINE_EXCEEDED"):
                return False
            raise self._explain(error) from error
        return True

    def predict(
        self,
        images: Images,
        batch_size: int = BATCH_SIZE,
        progress: bool = False,
        names: Sequence[str] | None = None,
    ) -> Posterior:
        """Posterior of each image.

        Args:
          images: real numbers, [N, H, W, C], or as `ImageContract.arrange` takes them; raw
            flux in the unit of the model's instrument. Or the path of a FITS, .npy or HDF5
            file, or several, whose pixel scale is held to the model's; `read_images` with
            `manifest.image` has options for more.
          batch_size: most images in a request; fewer where they would exceed
            `MAX_REQUEST_BYTES`.
          progress: whether to show a bar on a terminal.
          names: what messages call each image; None takes its file, or "image 0" and so on.

        Raises:
          UserError: if type, shape or values of the images do not fit the model, the server or
            the model can't be reached in time, or the model has no finite answer.
        """
        if batch_size < 1:
            raise UserError(f"batch size must be at least 1, not {batch_size}")
        served = self._served()
        for _ in range(_MOST_RELOADS):
            batch, names = _read(images, served.manifest.image, names)
            try:
                return self._posterior(served, batch, batch_size, progress, names)
            except ServerError as error:
                latest = self._refreshed(error)
                if latest is None or latest.version == served.version:
                    raise self._explain(error) from error
                served = self._cached = latest
        raise UserError(f"{self}: its version changes all the time; predict again later")

    def _posterior(
        self,
        served: _Served,
        images: np.ndarray,
        batch_size: int,
        progress: bool,
        names: Sequence[str] | None,
    ) -> Posterior:
        """What one version of the model, and no other, answers for all images."""
        from dlens_tf.inference.predictor import check_outputs, posterior_from_outputs

        step = max(1, min(batch_size, MAX_REQUEST_BYTES // images[0].nbytes))
        model, batches = self._model, []
        hide = None if progress else True  # None hides it where there is no terminal
        with tqdm(total=len(images), desc="predict", unit="image", disable=hide) as bar:
            for start in range(0, len(images), step):
                batch = images[start : start + step]
                strings = [image.astype("<f4").tobytes() for image in batch]
                answer = self._ask(model, _DENSITY, {"image_bytes": strings}, self._retries)
                if answer.version not in (None, served.version):
                    raise ServerError("NOT_FOUND", f"version {answer.version} is in its place")
                # The first request tells which version is the newest; the others keep to it.
                model = dataclasses.replace(model, version=served.version)
                outputs = _arrays(answer.outputs, len(batch), served.manifest)
                check_outputs(outputs, start, names)
                batches.append(outputs)
                bar.update(len(batch))
        try:
            outputs = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
            return posterior_from_outputs(served.manifest, outputs)
        except (KeyError, ValueError, UserError) as error:
            raise ServerError("DATA_LOSS", one_line(error)) from error

    def _served(self) -> _Served:
        if self._cached is None:
            try:
                self._cached = self._fetch(self._retries)
            except ServerError as error:
                raise self._explain(error) from error
        return self._cached

    def _refreshed(self, error: ServerError) -> _Served | None:
        """What the server holds now, if an error may come from a change of the version."""
        if error.code not in _AFTER_RELOAD or self._model.version is not None:
            return None
        try:
            return self._fetch(self._retries)
        except ServerError:
            return None  # the first error says more

    def _fetch(self, retries: int) -> _Served:
        try:
            answer = self._ask(self._model, _MANIFEST, {"key": [b""]}, retries)
        except ServerError as error:
            if error.code in _AFTER_RELOAD and _MANIFEST in error.message:
                raise UserError(
                    f"{self._url}, {self._model}: it does not tell what it infers "
                    f"({error.message}); export it again with tools/export.py"
                ) from error
            if error.code == "INVALID_ARGUMENT" and self._model.label:
                # That is what TensorFlow Serving calls a label that it does not know.
                raise ServerError("NOT_FOUND", error.message) from error
            raise
        try:
            [text] = answer.outputs["manifest"]
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError("DATA_LOSS", "there is no manifest in it") from error
        try:
            manifest = Manifest.from_served(text)
        except UserError as error:
            raise UserError(f"{self._url}, {self._model}: {error}") from error
        return _Served(self._model.version if answer.version is None else answer.version, manifest)

    def _ask(
        self,
        model: ModelName,
        signature: str,
        inputs: Mapping[str, Sequence[bytes]],
        retries: int,
    ) -> Answer:
        """Asks, and again after a while if what is in the way may pass."""
        deadline = time.monotonic() + self._timeout
        for attempt in itertools.count():
            try:
                return self._transport.ask(model, signature, inputs, deadline)
            except ServerError as error:
                wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0**attempt)
                wait *= self._random.uniform(0.5, 1.5)
                too_late = time.monotonic() + wait >= deadline
                if error.code not in _PASSING or attempt == retries or too_late:
                    raise
            time.sleep(wait)

    def _explain(self, error: ServerError) -> UserError:
        """What went wrong, where, and what to do."""
        code, told = error.code, error.message
        if code == "UNAVAILABLE":
            text = f"not reachable ({told}); see that a server runs there and has the model loaded"
        elif code == "RESOURCE_EXHAUSTED":
            text = f"the server is overloaded ({told}); ask again later, or with more retries"
        elif code == "DEADLINE_EXCEEDED":
            text = (
                f"no answer within {self._timeout:g} s ({told}); allow a longer timeout, or ask "
                "with a smaller batch size"
            )
        elif code == "TOO_LARGE":
            text = f"the request is too large for the server ({told}); lower the batch size"
        elif code == "DATA_LOSS":
            text = f"the answer is damaged: {told}; see that it is a model server's address"
        elif code == "NOT_FOUND":
            text = f"the server has no such model ({told}); name one that it has, as it calls it"
        elif code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION"):
            text = f"the server refuses the request: {told}"
        else:
            text = f"the server failed ({code}: {told}); its log may tell more"
        return UserError(f"{self._url}, {self._model}: {text}")


def _read(
    images: Images, contract: ImageContract, names: Sequence[str] | None
) -> tuple[np.ndarray, Sequence[str] | None]:
    """Images, float32 [N, H, W, C], and what to call them."""
    paths = [images] if isinstance(images, str | os.PathLike) else images
    is_paths = isinstance(paths, Sequence) and all(isinstance(p, str | os.PathLike) for p in paths)
    if is_paths and paths:
        read = read_images(paths, contract)
        files = [f"{file}[{index}]" for file, index in zip(read.files, read.indices, strict=True)]
        return read.images, names or files
    try:
        array = np.asarray(images)
    except ValueError as error:
        raise UserError(f"images: they make no array: {one_line(error)}") from error
    return contract.arrange(array, "images"), names


def _arrays(
    outputs: Mapping[str, Any], num_images: int, manifest: Manifest
) -> dict[str, np.ndarray]:
    """An answer's outputs as float32; a `ServerError` if their shapes can't be right."""
    estimates = (num_images, len(manifest.parameters))
    arrays = {}
    for name, values in outputs.items():
        try:
            array = np.asarray(values, dtype=np.float32)
        except (TypeError, ValueError, OverflowError) as error:
            raise ServerError("DATA_LOSS", f"'{name}' is no array of numbers") from error
        right = array.shape == estimates if name in ("mean", "stddev") else array.ndim > 0
        if not right or len(array) != num_images:
            shape = list(array.shape)
            raise ServerError("DATA_LOSS", f"'{name}' has shape {shape} for {num_images} images")
        arrays[name] = array
    return arrays
