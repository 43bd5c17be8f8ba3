"""Micro-batching: requests that come together go through the network together.

Requests of the same model, version, signature and image shape are joined. While a batch is
computed, the next one gathers. When the model is free again, the batch waits a little for as many
requests as there were in the last round, since clients that have just been answered tend to come
back; so many clients share each call, and one client alone never waits. Batches are not padded to
fixed sizes: nothing is compiled for a size, so that padding would only cost.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator

import numpy as np
import tensorflow as tf
from absl import logging

from dlens_tf.io.files import one_line
from dlens_tf.serving.server.errors import ServingError, invalid
from dlens_tf.serving.server.inputs import Tensors
from dlens_tf.serving.server.models import ServedModel
from dlens_tf.serving.server.options import ServerOptions


@dataclasses.dataclass(eq=False)
class _Request:
    inputs: Tensors
    rows: int
    answer: asyncio.Future


class _Queue:
    """Requests that can be joined."""

    def __init__(self, model: ServedModel, signature: str, max_rows: int):
        self.model = model
        self.signature = signature
        self.enough = asyncio.Event()
        """Set while there is no point in waiting for more."""
        self._max_rows = max_rows
        self._expected = 1
        self._requests: collections.deque[_Request] = collections.deque()
        self._rows = 0  # of all of them

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[_Request]:
        return iter(self._requests)

    def expect(self, number: int) -> None:
        """Sets how many requests are worth waiting for."""
        self._expected = number
        self._update()

    def put(self, request: _Request) -> None:
        """Appends a request."""
        self._requests.append(request)
        self._rows += request.rows
        self._update()

    def discard(self, request: _Request) -> None:
        """Takes a request back, if it still waits."""
        if request in self._requests:
            self._requests.remove(request)
            self._rows -= request.rows
            self._update()

    def take(self) -> list[_Request]:
        """The next batch: as many requests as fit, at least one."""
        batch = [self._requests.popleft()]
        rows = batch[0].rows
        while self._requests and rows + self._requests[0].rows <= self._max_rows:
            batch.append(self._requests.popleft())
            rows += batch[-1].rows
        self._rows -= rows
        self._update()
        return batch

    def _update(self) -> None:
        if len(self._requests) >= self._expected or self._rows >= self._max_rows:
            self.enough.set()
        else:
            self.enough.clear()


class Batcher:
    """Answers requests in batches; all its methods belong to one event loop.

    Args:
      options: sizes and times.
      observe: is told (model, signature, rows) of each batch.
    """

    def __init__(self, options: ServerOptions, observe: Callable[[ServedModel, str, int], None]):
        self._options = options
        self._observe = observe
        self._pool = concurrent.futures.ThreadPoolExecutor(options.workers, "batch")
        self._queues: dict[Hashable, _Queue] = {}
        self._tasks: set[asyncio.Task] = set()

    @property
    def waiting(self) -> int:
        """Requests that wait for a model; each part of a large one counts."""
        return sum(len(queue) for queue in self._queues.values())

    async def run(self, model: ServedModel, signature: str, inputs: Tensors) -> Tensors:
        """Answers a signature of a model that the caller keeps in service.

        Args:
          model: the model.
          signature: name of the signature.
          inputs: what `inputs.check_inputs` has accepted; more rows than a batch has are parted.

        Raises:
          ServingError: RESOURCE_EXHAUSTED if too many wait already, or what TensorFlow objects to.
        """
        most = self._options.max_batch_size
        rows = most  # without a batch axis, it fills a batch by itself: nothing is joined to it
        if model.signatures[signature].batched:
            rows = len(next(iter(inputs.values())))
        self._admit(math.ceil(rows / most))
        if rows <= most:
            return await self._answer(model, signature, inputs, rows)
        parts = []
        for start in range(0, rows, most):
            part = {name: value[start : start + most] for name, value in inputs.items()}
            parts.append(self._answer(model, signature, part, min(most, rows - start)))
        answers = await asyncio.gather(*parts)
        return {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}

    def close(self) -> None:
        """Gives up what still waits, and ends the threads."""
        for task in self._tasks:
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _admit(self, parts: int) -> None:
        """Refuses what would make too many wait; alone, a request may have any number of parts."""
        waiting = self.waiting
        if waiting and waiting + parts > self._options.max_enqueued:
            more = f", and this one has {parts} parts" if parts > 1 else ""
            raise ServingError(
                "RESOURCE_EXHAUSTED", f"{waiting} requests are waiting already{more}; try later"
            )

    async def _answer(
        self, model: ServedModel, signature: str, inputs: Tensors, rows: int
    ) -> Tensors:
        request = _Request(inputs, rows, asyncio.get_running_loop().create_future())
        queue = self._queue(model, signature, inputs)
        queue.put(request)
        try:
            return await request.answer
        finally:
            queue.discard(request)  # nobody waits for its answer any more

    def _queue(self, model: ServedModel, signature: str, inputs: Tensors) -> _Queue:
        shapes = tuple(inputs[name].shape[1:] for name in sorted(inputs))
        key = (model, signature, shapes)
        if key not in self._queues:
            self._queues[key] = _Queue(model, signature, self._options.max_batch_size)
            task = asyncio.create_task(self._serve(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return self._queues[key]

    async def _serve(self, key: Hashable) -> None:
        """Answers what comes into a queue, until nothing comes."""
        queue = self._queues[key]
        try:
            while await self._gather(queue):
                batch = queue.take()
                await self._compute(queue, batch)
                queue.expect(len(batch) + len(queue))
        finally:
            del self._queues[key]
            for request in queue:
                _refuse(request, ServingError("UNAVAILABLE", "the server is shutting down"))

    async def _gather(self, queue: _Queue) -> bool:
        """Waits for requests worth a batch; whether there are any."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.batch_timeout_micros / 1e6):
                await queue.enough.wait()
        return len(queue) > 0

    async def _compute(self, queue: _Queue, batch: list[_Request]) -> None:
        loop = asyncio.get_running_loop()
        batched = queue.model.signatures[queue.signature].batched
        rows = sum(request.rows for request in batch) if batched else 1
        self._observe(queue.model, queue.signature, rows)
        try:
            answers = await loop.run_in_executor(
                self._pool, _call, queue.model, queue.signature, batch
            )
        except Exception as error:  # the server goes on, whatever one request does to TensorFlow
            if len(batch) == 1:
                _refuse(batch[0], _serving_error(error))
                return
            for request in batch:  # one is at fault, and the others shall have their answers
                await self._compute(queue, [request])
            return
        for request, answer in zip(batch, answers, strict=True):
            if not request.answer.done():
                request.answer.set_result(answer)


def _refuse(request: _Request, error: ServingError) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)


def _call(model: ServedModel, signature: str, batch: list[_Request]) -> list[Tensors]:
    """Runs a batch, in a thread; the answer of each request."""
    if len(batch) == 1:
        return [model.run(signature, batch[0].inputs)]
    names = batch[0].inputs
    joined = {name: np.concatenate([r.inputs[name] for r in batch]) for name in names}
    outputs = model.run(signature, joined)
    ends = np.cumsum([request.rows for request in batch])
    return [
        {name: value[end - request.rows : end] for name, value in outputs.items()}
        for request, end in zip(batch, ends, strict=True)
    ]


def _serving_error(error: Exception) -> ServingError:
    if isinstance(error, tf.errors.InvalidArgumentError):
        return invalid(one_line(error))
    logging.error("TensorFlow failed", exc_info=error)
    return ServingError("INTERNAL", "TensorFlow failed; the server's log says how")
