"""Bodies of HTTP requests, read within the server's limits of size and time."""

import asyncio

from aiohttp import web

from dlens_tf.serving.server.errors import ServingError, invalid
from dlens_tf.serving.server.options import ServerOptions

OPTIONS = web.AppKey("options", ServerOptions)
"""Where the web application keeps the limits."""


async def read_body(request: web.Request) -> bytes:
    """The body of a request, within the server's limits.

    Raises:
      ServingError: if it is too large, or the client too slow.
    """
    options = request.app[OPTIONS]
    too_large = ServingError(
        "RESOURCE_EXHAUSTED",
        f"the request is larger than {options.max_request_bytes} bytes",
        http_status=413,
    )
    if (request.content_length or 0) > options.max_request_bytes:
        raise too_large
    try:
        async with asyncio.timeout(options.read_seconds):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise too_large from error
    except TimeoutError as error:
        raise ServingError(
            "DEADLINE_EXCEEDED",
            f"the request did not arrive within {options.read_seconds:g} s",
            http_status=408,
        ) from error
    except web.RequestPayloadError as error:
        raise invalid("the body is damaged") from error
