"""How the client speaks to a server: one interface before TensorFlow Serving's REST and gRPC.

A transport asks once, and tells in a `ServerError` what went wrong; whether to ask again is the
client's affair. All inputs are strings of bytes, which both protocols carry as they are: in base64
over REST, raw over gRPC.
"""

import dataclasses
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dlens_tf.errors import UserError
from dlens_tf.io.files import one_line

_LONGEST_MESSAGE = 300


class ServerError(Exception):
    """A request that got no usable answer.

    Attributes:
      code: name of a `grpc.StatusCode`: DATA_LOSS if the answer is damaged; or TOO_LARGE if the
        request exceeds the size that the server takes.
      message: one line.
    """

    def __init__(self, code: str, message: str):
        self.code = code
        self.message = " ".join(message.split())[:_LONGEST_MESSAGE]
        super().__init__(f"{code}: {self.message}")


@dataclasses.dataclass(frozen=True)
class ModelName:
    """What a request calls a model; without version and label, the server's newest version."""

    name: str
    version: int | None = None
    label: str | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"model '{self.name}', version {self.version}"
        return f"model '{self.name}'" + (f", label '{self.label}'" if self.label else "")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a server answers.

    Attributes:
      outputs: by name: arrays, or over REST lists of numbers or text.
      version: the version that answered; None if the server does not tell.
    """

    outputs: Mapping[str, Any]
    version: int | None


class Transport(Protocol):
    """What each protocol does."""

    def ask(
        self,
        model: ModelName,
        signature: str,
        inputs: Mapping[str, Sequence[bytes]],
        deadline: float,
    ) -> Answer:
        """Asks a signature once.

        Args:
          model: which model.
          signature: one of its signatures.
          inputs: strings [N] by name.
          deadline: on the clock `time.monotonic`.

        Raises:
          ServerError: if there is no answer.
        """

    def close(self) -> None:
        """Closes the connections."""


def open_transport(url: str) -> Transport:
    """The transport for a URL: http:// and https:// are REST, grpc:// is gRPC.

    Raises:
      UserError: if it is no such URL.
    """
    examples = "valid are http://host:8501 (REST) and grpc://host:8500 (gRPC)"
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UserError(f"'{url}' is not a server's URL: {one_line(error)}; {examples}") from error
    if parts.username is not None:
        raise UserError("a server's URL holds no user or password; put them into ~/.netrc")
    good = parts.scheme in ("http", "https", "grpc") and parts.hostname
    if not good or parts.query or parts.fragment:
        raise UserError(f"'{url}' is not a server's URL; {examples}")
    if parts.scheme != "grpc":
        from dlens_tf.serving.transport_rest import RestTransport

        return RestTransport(url)
    if port is None or parts.path.strip("/"):
        raise UserError(f"'{url}' is not a host and a port, as in grpc://host:8500")
    from dlens_tf.serving.transport_grpc import GrpcTransport

    return GrpcTransport(parts.netloc)


def seconds_left(deadline: float) -> float:
    """Time until a deadline; a `ServerError` if there is none left."""
    left = deadline - time.monotonic()
    if left <= 0.0:
        raise ServerError("DEADLINE_EXCEEDED", "no time is left")
    return left
