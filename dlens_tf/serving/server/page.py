"""The page at /: drop a cutout, see its posterior.

    GET  /                            the page, one file that loads nothing else
    GET  /page/models                 what is served: parameters, units, image shape, pixel scale
    GET  /page/examples?model=<name>  simulated lenses of the model's recipe
    POST /page/predict?model=<name>   the posterior of one image: the bytes of a file, whose name is
                                      percent-encoded in the header X-File-Name; or of an example,
                                      by &example=<number>

Files are parsed in memory, and their names are only ever shown.
"""

import asyncio
import base64
import concurrent.futures
import contextlib
import functools
import hashlib
import json
import re
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web
from scipy.special import ndtr

from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import Manifest
from dlens_tf.inference.posterior import Posterior
from dlens_tf.inference.predictor import check_outputs, posterior_from_outputs
from dlens_tf.io.upload import Upload, display_name, max_bytes, read_upload
from dlens_tf.parameters import Parameter, prior_to_dict
from dlens_tf.serving.server.bodies import received_body
from dlens_tf.serving.server.errors import ServingError, invalid
from dlens_tf.serving.server.metrics import Asked, Metrics
from dlens_tf.serving.server.models import ModelStore, ServedModel

FILE_NAME = "X-File-Name"
"""A header of our own, which has to be there: a page of another site can't send it."""

_SIGNATURE = "serve_density"
_HALF_GRID = 101
_MAX_EXAMPLES = 8
_LETTERS = {
    "log": "log",
    "alpha": "α",
    "gamma": "γ",
    "theta": "θ",
    "sigma": "σ",
    "Sigma": "Σ",
    "phi": "φ",
}

_to_json = functools.partial(json.dumps, ensure_ascii=False, allow_nan=False)


def add_routes(
    app: web.Application,
    store: ModelStore,
    predict: Callable[[ServedModel, str, dict], Awaitable[dict[str, np.ndarray]]],
    metrics: Metrics,
) -> None:
    """Mounts the page and what it asks.

    Args:
      app: the web application, which answers a `ServingError` as {"error": message}.
      store: the models.
      predict: answers (model, signature, inputs).
      metrics: what counts requests.
    """
    page = _Page(store, predict, metrics)
    app.router.add_get("/", page.document)
    app.router.add_get("/page/models", page.models)
    app.router.add_get("/page/examples", page.examples)
    app.router.add_post("/page/predict", page.predict)
    app.on_cleanup.append(page.close)


class _Page:
    """The handlers."""

    def __init__(self, store: ModelStore, predict: Callable, metrics: Metrics):
        self._store = store
        self._predict = predict
        self._metrics = metrics
        html = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
        self._html, self._headers = html, _headers(html)
        # One thread reads files, see `read_upload`, and another makes curves: what is dropped on
        # the page never takes all threads.
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "reader")
        self._drawer = concurrent.futures.ThreadPoolExecutor(1, "drawer")

    async def close(self, _: web.Application) -> None:
        """Lets the threads go."""
        for pool in (self._reader, self._drawer):
            pool.shutdown(wait=False, cancel_futures=True)

    async def document(self, _: web.Request) -> web.Response:
        return web.Response(text=self._html, content_type="text/html", headers=self._headers)

    async def models(self, _: web.Request) -> web.Response:
        entries = []
        for name in self._store.names():
            try:
                with self._store.get(name) as model:
                    entries.append(describe_model(model))
            except ServingError as error:  # not loaded yet, or its bundle is damaged
                entries.append({"name": name, "error": error.message})
        return _answer({"models": entries})

    async def examples(self, request: web.Request) -> web.Response:
        with self._store.get(request.query.get("model", "")) as model:
            return _answer(_encoded(model.examples[:_MAX_EXAMPLES]))

    async def predict(self, request: web.Request) -> web.Response:
        with self._metrics.request("page") as asked:
            if FILE_NAME not in request.headers:
                raise invalid(f"the header {FILE_NAME} is missing")
            try:
                return await self._posterior(request, asked)
            except UserError as error:
                raise invalid(str(error)) from error

    async def _posterior(self, request: web.Request, asked: Asked) -> web.Response:
        number = request.query.get("example")
        async with contextlib.AsyncExitStack() as stack:
            model = stack.enter_context(self._store.get(request.query.get("model", "")))
            asked.model, asked.signature = model.name, _SIGNATURE
            limit = max_bytes(model.manifest.image)
            body = await stack.enter_async_context(received_body(request, limit))
            if number is None:
                file = urllib.parse.unquote(request.headers[FILE_NAME])
                upload = await self._in(
                    self._reader, read_upload, file, bytes(body), model.manifest.image
                )
                file = display_name(file)
            else:
                upload, file = _example(model, number), f"example lens {int(number) + 1}"
            image = upload.image[np.newaxis]
            outputs = await self._predict(model, _SIGNATURE, {"image": image})
            answer = await self._in(self._drawer, describe_posterior, model.manifest, outputs, file)
        return _answer(
            {
                "model": {"name": model.name, "version": model.version},
                "file": file,
                "notes": list(upload.notes),
                "image": {
                    **_encoded(upload.image),
                    "pixel_scale": upload.pixel_scale or model.manifest.image.pixel_scale,
                    "pixel_scale_unit": "arcsec",
                },
                **answer,
            }
        )

    async def _in(self, pool: concurrent.futures.Executor, function: Callable, *arguments: Any):
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)


def _answer(content: Mapping[str, Any]) -> web.Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.json_response(content, dumps=_to_json, headers=headers)


def _headers(html: str) -> dict[str, str]:
    """Headers that let the page's own script and style run and nothing else."""

    def hashed(tag: str) -> str:
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'sha256-{digest}'"

    policy = {
        "default-src": "'none'",
        "script-src": hashed("script"),
        "style-src": hashed("style"),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _encoded(array: np.ndarray) -> dict[str, Any]:
    """An array as base64 of its little-endian float32, row by row, with its shape."""
    data = base64.b64encode(array.astype("<f4").tobytes()).decode()
    return {"shape": list(array.shape), "dtype": "float32", "data": data}


def _example(model: ServedModel, number: str) -> Upload:
    count = min(len(model.examples), _MAX_EXAMPLES)
    if not re.fullmatch(r"\d{1,3}", number, re.ASCII) or int(number) >= count:
        raise UserError(f"there is no example '{display_name(number)}'; the model has {count}")
    return Upload(model.examples[int(number)], None, ())


def symbol_parts(latex: str) -> list[dict[str, Any]]:
    """A parameter's symbol as pieces of text, each {"text", "sub"}: lowered or not."""
    text = latex.replace(r"\mathrm", "")
    text = re.sub(r"\\([A-Za-z]+) ?", lambda match: _LETTERS[match[1]], text).replace("-", "−")
    pieces = re.split(r"_(\{(?:[^{}]|\{[^{}]*\})*\}|.)", text)  # text and index in turn
    pieces = [re.sub(r"[{}]", "", piece) for piece in pieces]
    return [{"text": piece, "sub": i % 2 == 1} for i, piece in enumerate(pieces) if piece]


def describe_parameter(parameter: Parameter) -> dict[str, Any]:
    """What the page shows of a parameter, JSON-ready."""
    return {
        "name": parameter.name,
        "symbol": symbol_parts(parameter.symbol),
        "label": parameter.label,
        "unit": parameter.unit,
        "description": parameter.description,
        "prior": prior_to_dict(parameter.prior),
        "range": list(parameter.prior.support),
    }


def describe_model(model: ServedModel) -> dict[str, Any]:
    """What the page shows of a model, JSON-ready."""
    manifest = model.manifest
    return {
        "name": model.name,
        "version": model.version,
        "recipe": manifest.recipe,
        "instrument": manifest.instrument,
        "head": manifest.head["kind"],
        "image": {
            "shape": list(manifest.image.shape),
            "pixel_scale": manifest.image.pixel_scale,
            "pixel_scale_unit": "arcsec",
        },
        "max_bytes": max_bytes(manifest.image),
        "parameters": [describe_parameter(parameter) for parameter in manifest.parameters],
    }


def describe_posterior(
    manifest: Manifest, outputs: dict[str, np.ndarray], file: str
) -> dict[str, Any]:
    """The posterior of one image, JSON-ready.

    Args:
      manifest: of the model that answered.
      outputs: of its signature serve_density, for one image.
      file: what messages call the image.

    Returns:
      "parameters": for each `describe_parameter`, "mean" and, unless it is a point estimate,
      "stddev", "median", "interval_68", "interval_95" and "density", a curve {"x", "pdf"} over the
      prior's range; "ood": {"score", "threshold", "false_alarms", "is_outside"}, None if the model
      has no score; a "score" of None is beyond all numbers.

    Raises:
      UserError: if the model has no finite answer for the image.
    """
    check_outputs(outputs, 0, [file])
    posterior = posterior_from_outputs(manifest, outputs)
    parameters = [describe_parameter(parameter) for parameter in manifest.parameters]
    columns: dict[str, Any] = {"mean": posterior.mean[0]}
    if posterior.stddev is not None:
        columns |= {
            "stddev": posterior.stddev[0],
            "median": posterior.median[0],
            "interval_68": posterior.interval(0.68)[0],
            "interval_95": posterior.interval(0.95)[0],
        }
    for p, entry in enumerate(parameters):
        entry |= {name: values[p].tolist() for name, values in columns.items()}
    if posterior.stddev is not None:
        grid, pdf = _curves(posterior)
        for entry, x, y in zip(parameters, grid, pdf, strict=True):
            entry["density"] = {"x": x.tolist(), "pdf": y.tolist()}
    return {"parameters": parameters, "ood": _outside(manifest, posterior)}


def _curves(posterior: Posterior) -> tuple[np.ndarray, np.ndarray]:
    """Marginal densities of the first image, as x and pdf, each [P, 201].

    Half of the grid is even over the prior's range, half is even in standard deviations where the
    posterior is normal: narrow peaks are drawn as well as tails.
    """
    low, high = posterior.parameters.supports.T
    even = np.linspace(low, high, _HALF_GRID, axis=-1)
    levels = ndtr(np.linspace(-4.0, 4.0, _HALF_GRID - 1))
    grid = np.sort(np.concatenate([even, posterior.quantiles(levels)[0]], axis=-1), axis=-1)
    pdf = np.exp(posterior.log_prob(grid.T[:, np.newaxis, :]))[:, 0].T
    return grid, pdf


def _outside(manifest: Manifest, posterior: Posterior) -> dict[str, Any] | None:
    """How unlike the training images the first image is."""
    if manifest.ood is None or posterior.ood_score is None:
        return None
    score, threshold = float(posterior.ood_score[0]), float(manifest.ood["threshold"])
    return {
        "score": score if np.isfinite(score) else None,
        "threshold": threshold,
        "false_alarms": manifest.ood["false_alarms"],
        "is_outside": not score <= threshold,
    }
