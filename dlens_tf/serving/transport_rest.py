"""REST, as TensorFlow Serving has it.

    GET  /v1/models/<name>[/labels/<label>]
    POST /v1/models/<name>/versions/<version>:predict

Reference: https://www.tensorflow.org/tfx/serving/api_rest
"""

import base64
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import requests
import urllib3

from dlens_tf.io.files import one_line
from dlens_tf.serving.transport import Answer, ModelName, ServerError, seconds_left

# Codes of HTTP statuses, as TensorFlow Serving maps them; 408 and 413 are others'.
_CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "TOO_LARGE",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_PIECE = 2**16  # bytes of an answer that are read at once
# Signatures with one output: the answer in columns does not name it.
_ONLY_OUTPUT = {"serve_manifest": "manifest", "serve_density_bytes": "mean"}


class RestTransport:
    """A `Transport` over HTTP.

    An answer does not tell which version it is from, so each request names one: the newest, or
    the label's, which the model's status tells.

    Args:
      url: of the server: what comes before /v1.
    """

    def __init__(self, url: str):
        self._url = url.rstrip("/")
        self._session = requests.Session()

    def ask(
        self,
        model: ModelName,
        signature: str,
        inputs: Mapping[str, Sequence[bytes]],
        deadline: float,
    ) -> Answer:
        """See `Transport`."""
        body = {
            "signature_name": signature,
            "inputs": {
                name: [{"b64": base64.b64encode(value).decode()} for value in values]
                for name, values in inputs.items()
            },
        }
        if model.version is not None:
            return self._predict(model.name, model.version, body, deadline)
        version = self._version(model, deadline)
        try:
            return self._predict(model.name, version, body, deadline)
        except ServerError as error:
            latest = self._version(model, deadline) if error.code == "NOT_FOUND" else version
            if latest == version:
                raise
        return self._predict(model.name, latest, body, deadline)  # it has changed just now

    def _predict(self, name: str, version: int, body: dict, deadline: float) -> Answer:
        path = f"{_path(name)}/versions/{version}:predict"
        outputs = self._send("POST", path, deadline, body).get("outputs")
        if not outputs:
            raise ServerError("DATA_LOSS", "there are no outputs in it")
        if not isinstance(outputs, dict):
            outputs = {_ONLY_OUTPUT[body["signature_name"]]: outputs}
        return Answer(outputs, version)

    def _version(self, model: ModelName, deadline: float) -> int:
        """The version that the server now takes for a model."""
        label = f"/labels/{_quote(model.label)}" if model.label else ""
        answer = self._send("GET", _path(model.name) + label, deadline)
        try:
            states = {int(s["version"]): s["state"] for s in answer["model_version_status"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError("DATA_LOSS", "it is no status of a model") from error
        available = [version for version, state in states.items() if state == "AVAILABLE"]
        if available:
            return max(available)
        listed = ", ".join(f"version {version} is {state}" for version, state in states.items())
        raise ServerError("UNAVAILABLE", listed or "no version is loaded")

    def _send(self, method: str, path: str, deadline: float, body: Any = None) -> dict:
        try:
            with self._session.request(
                method,
                self._url + path,
                json=body,
                timeout=seconds_left(deadline),
                allow_redirects=False,  # a POST would come as a GET
                stream=True,
            ) as response:
                content = _read(response, deadline)
        except requests.Timeout as error:
            raise ServerError("DEADLINE_EXCEEDED", _root(error)) from error
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise ServerError("UNAVAILABLE", _root(error)) from error
        except requests.RequestException as error:
            raise ServerError("UNKNOWN", one_line(error)) from error
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if response.status_code != 200:
            told = (
                answer.get("error")
                if isinstance(answer, dict)
                else content.decode("utf-8", "replace")
            )
            status = f"HTTP status {response.status_code} {response.reason or ''}"
            code = _CODES.get(response.status_code, "UNKNOWN")
            raise ServerError(code, str(told or status))
        if not isinstance(answer, dict):
            raise ServerError("DATA_LOSS", "it is not a JSON object")
        return answer

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()


def _read(response: requests.Response, deadline: float) -> bytes:
    """The body, all of it before the deadline: `requests` bounds the time of each piece only.

    That of the header is bounded so, too: a server that sends a line of it now and then is none of
    ours.
    """
    parts = []
    try:
        while part := response.raw.read1(_PIECE, decode_content=True):
            parts.append(part)
            left = seconds_left(deadline)
            connection = response.raw.connection  # None once all is there
            if connection is not None and connection.sock is not None:
                connection.sock.settimeout(left)
    except urllib3.exceptions.TimeoutError as error:
        raise requests.Timeout(error) from error
    except urllib3.exceptions.DecodeError as error:
        raise ServerError("DATA_LOSS", one_line(error)) from error
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error
    return b"".join(parts)


def _quote(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def _path(name: str) -> str:
    return f"/v1/models/{_quote(name)}"


def _root(error: BaseException) -> str:
    """What an error of the HTTP library came from, without the layers around it."""
    while inner := error.__cause__ or next(
        (part for part in error.args if isinstance(part, BaseException)), None
    ):
        error = inner
    return one_line(error)
