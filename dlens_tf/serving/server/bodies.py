"""What requests bring, received within the server's limits of size, time and memory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from aiohttp import web

from dlens_tf.serving.server.errors import ServingError, invalid
from dlens_tf.serving.server.options import ServerOptions


class Budget:
    """Bytes that all requests in flight may hold together; for one event loop.

    Args:
      size: so many.
    """

    def __init__(self, size: int):
        self._size = size
        self._left = size

    @contextlib.contextmanager
    def account(self) -> Iterator[Callable[[int], None]]:
        """What takes a number of bytes for a request, which are given back after the block.

        It raises a `ServingError`, RESOURCE_EXHAUSTED, if so many are not left.
        """
        taken = 0

        def take(number: int) -> None:
            nonlocal taken
            if number > self._left:
                raise ServingError(
                    "RESOURCE_EXHAUSTED",
                    f"requests of {self._size} bytes are being answered already; try later",
                )
            taken += number
            self._left -= number

        try:
            yield take
        finally:
            self._left += taken


OPTIONS = web.AppKey("options", ServerOptions)
"""Where the web application keeps the limits."""

BUDGET = web.AppKey("budget", Budget)
"""Where it keeps what bodies may take."""

BUSY = web.AppKey("busy", set)
"""Where it keeps the connections whose requests have come, and are being answered."""


@contextlib.asynccontextmanager
async def received_body(
    request: web.Request, max_bytes: int | None = None
) -> AsyncIterator[bytearray]:
    """The body of a request, which counts as in flight until the block ends.

    Args:
      request: the request.
      max_bytes: largest body, if less than the server's limit.

    Raises:
      ServingError: if it is too large, all bodies together are, or the client is too slow.
    """
    options = request.app[OPTIONS]
    limit = min(options.max_request_bytes, max_bytes or options.max_request_bytes)
    too_large = ServingError(
        "RESOURCE_EXHAUSTED", f"the request is larger than {limit} bytes", http_status=413
    )
    if (request.content_length or 0) > limit:
        raise too_large
    busy, connection = request.app[BUSY], request.protocol
    busy.discard(connection)
    with request.app[BUDGET].account() as take:
        body = bytearray()
        try:
            async with asyncio.timeout(options.read_seconds):
                # What has come counts, not what is announced: that may never come.
                async for chunk in request.content.iter_any():
                    if len(body) + len(chunk) > limit:
                        raise too_large
                    take(len(chunk))
                    body += chunk
        except TimeoutError as error:
            raise ServingError(
                "DEADLINE_EXCEEDED",
                f"the request did not arrive within {options.read_seconds:g} s",
                http_status=408,
            ) from error
        except web.RequestPayloadError as error:
            raise invalid("the body is damaged") from error
        busy.add(connection)
        yield body
