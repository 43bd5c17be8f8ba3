"""The server: models, batching and both protocols in one event loop.

Example:
    >>> with running(ServerOptions(find_models(["models/dlens"]), rest_port=0)) as server:
    ...     requests.get(f"http://127.0.0.1:{server.rest_port}/v1/models/dlens")
"""

import asyncio
import concurrent.futures
import contextlib
import logging as log_records
import signal
import threading
from collections.abc import Callable, Iterator

import grpc
from absl import logging
from aiohttp import web

from dlens_tf.errors import UserError
from dlens_tf.serving.server import rest, rpc
from dlens_tf.serving.server.batching import Batcher
from dlens_tf.serving.server.bodies import BUSY, Budget
from dlens_tf.serving.server.errors import ServingError
from dlens_tf.serving.server.inputs import Tensors, check_inputs, num_bytes, offload
from dlens_tf.serving.server.metrics import Metrics
from dlens_tf.serving.server.models import ModelStore, ServedModel
from dlens_tf.serving.server.options import ServerOptions

# aiohttp would log a traceback for each client that speaks no HTTP; failures of the server's own
# are logged where they are answered.
_HTTP_LOG = log_records.getLogger("dlens_tf.serving.http")
_HTTP_LOG.setLevel(log_records.CRITICAL)


class _Refused(asyncio.Protocol):
    """A connection above the limit, where all others are being answered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class Server:
    """Serves models by REST and gRPC; all its methods belong to one event loop.

    Args:
      options: what to serve, and how.

    Attributes:
      store: the models.
      rest_port: TCP port of REST, once started.
      grpc_port: TCP port of gRPC, once started.
    """

    def __init__(self, options: ServerOptions):
        self._options = options
        self.store = ModelStore(options.models)
        self.rest_port = 0
        self.grpc_port = 0
        self._metrics = Metrics(self.store)
        self._batcher = Batcher(options, self._metrics.observe_batch)
        self._metrics.watch_queue(lambda: self._batcher.waiting)
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._accepted = 0
        self._grpc: grpc.aio.Server | None = None
        self._poller: asyncio.Task | None = None
        # One thread loads, and blocks nobody but itself.
        self._loader = concurrent.futures.ThreadPoolExecutor(1, "loader")

    async def start(self) -> None:
        """Listens, and returns when the models are loaded.

        Raises:
          UserError: if a port is taken, or no model at all can be loaded.
        """
        try:
            await self._listen()
            await self._refresh()
            if not any(self.store.in_service(name) for name in self.store.names()):
                raise UserError(f"no model could be loaded: {self._first_failure()}")
        except BaseException:
            await self.stop()
            raise
        if self._options.poll_seconds > 0:
            self._poller = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Stops listening, and returns when what is in flight is answered or given up."""
        self.store.stop()
        if self._poller is not None:
            self._poller.cancel()
        if self._listener is not None:
            self._listener.close()
        await asyncio.gather(
            self._runner.cleanup() if self._runner else asyncio.sleep(0),
            self._grpc.stop(self._options.grace_seconds) if self._grpc else asyncio.sleep(0),
        )
        self._batcher.close()
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def predict(self, model: ServedModel, signature: str, inputs: Tensors) -> Tensors:
        """Checks and answers a request.

        Args:
          model: a model that the caller keeps in service, see `ModelStore.get`.
          signature: name of its signature.
          inputs: the signature's inputs.

        Returns:
          The signature's outputs.

        Raises:
          ServingError: if the request is wrong, too many wait, or it takes too long.
        """
        seconds = self._options.request_seconds
        size = num_bytes(inputs)
        await offload(size, check_inputs, model, signature, inputs, self._options.max_rows)
        try:
            async with asyncio.timeout(seconds):
                return await self._batcher.run(model, signature, inputs)
        except TimeoutError as error:
            raise ServingError("DEADLINE_EXCEEDED", f"no answer within {seconds:g} s") from error

    async def _listen(self) -> None:
        options = self._options
        budget = Budget(options.max_bytes_in_flight)
        parts = (self.store, self.predict, options, self._metrics, budget)
        self._runner = web.AppRunner(
            rest.make_app(*parts),
            handler_cancellation=True,
            access_log=None,
            logger=_HTTP_LOG,
            # Between two requests, and for the header of the first as well.
            keepalive_timeout=options.read_seconds,
            shutdown_timeout=options.grace_seconds,
        )
        await self._runner.setup()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._connection, options.host, options.rest_port
            )
        except OSError as error:
            raise _cannot_listen(options.host, options.rest_port, "rest_port") from error
        self.rest_port = self._listener.sockets[0].getsockname()[1]
        self._grpc = rpc.make_server(*parts)
        host = f"[{options.host}]" if ":" in options.host else options.host
        try:
            self.grpc_port = self._grpc.add_insecure_port(f"{host}:{options.grpc_port}")
        except RuntimeError as error:
            raise _cannot_listen(options.host, options.grpc_port, "grpc_port") from error
        await self._grpc.start()

    def _connection(self) -> asyncio.Protocol:
        server, busy = self._runner.server, self._runner.app[BUSY]
        connections = [c for c in server.connections if c.transport is not None]
        if len(connections) + self._accepted >= self._options.max_connections:
            oldest = next((c for c in connections if c not in busy), None)
            if oldest is None:
                return _Refused()
            oldest.force_close()
        # aiohttp knows a connection from the loop's next round on, and many may come in this one.
        self._accepted += 1
        asyncio.get_running_loop().call_soon(self._note_connected)
        return server()

    def _note_connected(self) -> None:
        self._accepted -= 1

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._loader, self.store.refresh)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._options.poll_seconds)
            try:
                await self._refresh()
            except Exception:  # the versions in service stay
                logging.exception("looking for new versions failed")

    def _first_failure(self) -> str:
        for name in self.store.names():
            for status in self.store.statuses(name):
                return f"{name} version {status.version}: {status.message}"
        return "there are no versions"


def _cannot_listen(host: str, port: int, flag: str) -> UserError:
    return UserError(f"can't listen at {host}, port {port}; choose another --{flag} or --host")


async def serve(options: ServerOptions, announce: Callable[[Server], None]) -> None:
    """Serves until SIGTERM or SIGINT, then ends in peace.

    Args:
      options: what to serve, and how.
      announce: is called when the models are loaded.

    Raises:
      UserError: see `Server.start`.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = Server(options)
    waiting = asyncio.create_task(stopped.wait())
    starting = asyncio.create_task(server.start())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()  # which stops the server
        await asyncio.wait({starting})
        return
    await starting
    announce(server)
    await waiting
    await server.stop()


@contextlib.contextmanager
def running(options: ServerOptions) -> Iterator[Server]:
    """A server in a thread of this process, loaded, until the block ends.

    Args:
      options: what to serve, and how.

    Raises:
      UserError: see `Server.start`.
    """
    started: concurrent.futures.Future = concurrent.futures.Future()

    async def main() -> None:
        server = Server(options)
        stopped = asyncio.Event()
        try:
            await server.start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result((server, asyncio.get_running_loop(), stopped))
        await stopped.wait()
        await server.stop()

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="server")
    thread.start()
    try:
        server, loop, stopped = started.result()
        try:
            yield server
        finally:
            loop.call_soon_threadsafe(stopped.set)
    finally:
        thread.join()
