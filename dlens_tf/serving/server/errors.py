"""The one exception by which the server refuses a request."""

_HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}  # as TensorFlow Serving maps them
_MAX_MESSAGE = 500


class ServingError(Exception):
    """A request that can't be answered.

    Attributes:
      code: name of a `grpc.StatusCode`.
      message: one short line for the client: a name in it may be as long as a request, and gRPC
        takes no long ones.
      http_status: what REST answers with.
    """

    def __init__(self, code: str, message: str, http_status: int | None = None):
        line = " ".join(message.split())
        self.message = line if len(line) <= _MAX_MESSAGE else line[: _MAX_MESSAGE - 1] + "…"
        super().__init__(self.message)
        self.code = code
        self.http_status = _HTTP_STATUS[code] if http_status is None else http_status


def invalid(message: str) -> ServingError:
    """The error of a request that is wrong in itself."""
    return ServingError("INVALID_ARGUMENT", message)
