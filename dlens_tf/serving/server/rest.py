"""TensorFlow Serving's REST interface, and what a local server has beside it.

    GET  /v1/models/<name>[/versions/<v> | /labels/<l>]            state of the versions
    GET  /v1/models/<name>[/versions/<v> | /labels/<l>]/metadata   signatures
    POST /v1/models/<name>[/versions/<v> | /labels/<l>]:predict
    GET  /healthz, /readyz, /metrics
    GET  /                                                         the page

Nothing of a request is ever used as a path: names of models are looked up.

Reference: TensorFlow Serving, RESTful API.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from absl import logging
from aiohttp import web

from dlens_tf.serving.server import json_tensors, page, protos
from dlens_tf.serving.server.bodies import BUDGET, BUSY, OPTIONS, Budget, received_body
from dlens_tf.serving.server.errors import ServingError, invalid
from dlens_tf.serving.server.inputs import Tensors, find_signature, offload
from dlens_tf.serving.server.metrics import CONTENT_TYPE, Metrics
from dlens_tf.serving.server.models import ModelStore, ServedModel
from dlens_tf.serving.server.options import ServerOptions

Predict = Callable[[ServedModel, str, Tensors], Awaitable[Tensors]]
"""Checks and answers a request: (model, signature, inputs) to outputs."""

_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)"
    r"(?:/versions/(?P<version>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?"
    r"(?P<verb>/metadata|:predict|:classify|:regress)?"
)


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


@web.middleware
async def _note_busy(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    busy, connection = request.app[BUSY], request.protocol
    busy.add(connection)
    try:
        return await handler(request)
    finally:
        busy.discard(connection)


@web.middleware
async def _answer(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turns errors into JSON, and drops clients that don't take their answer."""
    try:
        response = await handler(request)
    except ServingError as error:
        response = _error(error.http_status, error.message)
    except web.HTTPException as error:
        response = _error(error.status, error.reason)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    except ConnectionError:
        raise
    except Exception:
        logging.exception("a request failed")
        response = _error(500, "the server failed; its log says how")
    try:
        async with asyncio.timeout(request.app[OPTIONS].read_seconds):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    return response


def make_app(
    store: ModelStore, predict: Predict, options: ServerOptions, metrics: Metrics, budget: Budget
) -> web.Application:
    """The web application. A `ServingError` in any handler is answered as {"error": message}.

    Args:
      store: the models.
      predict: what answers a signature.
      options: limits.
      metrics: what counts requests.
      budget: what the bodies in flight may take.
    """
    app = web.Application(middlewares=[_note_busy, _answer])
    app[OPTIONS] = options
    app[BUDGET] = budget
    app[BUSY] = set()
    models = _Models(store, predict, options, metrics)

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        if not store.ready:
            raise ServingError("UNAVAILABLE", "not all models are loaded")
        return web.Response(text="ready\n")

    async def metrics_text(request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics_text)
    app.router.add_route("*", "/v1/{path:.*}", models.handle)
    page.add_routes(app, store, predict, metrics)
    return app


class _Models:
    """Answers what is asked below /v1/."""

    def __init__(
        self, store: ModelStore, predict: Predict, options: ServerOptions, metrics: Metrics
    ):
        self._store = store
        self._predict = predict
        self._max_values = options.max_json_values
        self._metrics = metrics
        self._handlers = {
            ("GET", None): self._status,
            ("GET", "/metadata"): self._metadata,
            ("POST", ":predict"): self._predictions,
        }

    async def handle(self, request: web.Request) -> web.Response:
        """Answers any request."""
        match = _PATH.fullmatch(request.path)
        handler = match and self._handlers.get((request.method, match["verb"]))
        if handler is None:
            if match and match["verb"] in (":classify", ":regress"):
                raise invalid(f"no signature is made for '{match['verb'][1:]}'; ask for predict")
            raise invalid(f"malformed request: {request.method} {request.path}")
        version = match["version"]
        which = (match["name"], version and int(version), match["label"])
        return web.Response(body=await handler(request, which), content_type="application/json")

    async def _status(self, request: web.Request, which: tuple[Any, ...]) -> bytes:
        return protos.to_json(protos.status_response(self._store.status(*which)))

    async def _metadata(self, request: web.Request, which: tuple[Any, ...]) -> bytes:
        with self._store.get(*which) as model:
            return protos.to_json(protos.metadata_response(model))

    async def _predictions(self, request: web.Request, which: tuple[Any, ...]) -> bytes:
        with self._metrics.request("rest") as asked, self._store.get(*which) as model:
            asked.model = model.name
            async with received_body(request) as body:
                message, name = await offload(
                    len(body), json_tensors.parse_body, body, self._max_values
                )
                signature = find_signature(model, name)
                asked.signature = name
                inputs = await offload(len(body), json_tensors.decode_request, message, signature)
                rows = json_tensors.ROWS in message
                del message  # several times as large as the body
                outputs = await self._predict(model, name, inputs)
            size = sum(value.nbytes for value in outputs.values())
            return await offload(8 * size, json_tensors.encode_answer, outputs, rows)
