"""Micro-batching: requests that come together go through the network together.

Requests of the same model, version, signature and image shape are joined. Each worker computes a
batch, and while all are at work, the next one gathers. A worker that is free again takes its share
of the requests that wait, and waits a little for those of clients that have just been answered, for
they tend to come back; so many clients share each call, all workers are busy, and one client alone
never waits. Batches are not padded to fixed sizes: nothing is compiled for a size, so that padding
would only cost.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Iterator

import numpy as np
import tensorflow as tf
from absl import logging

from dlens_tf.io.files import one_line
from dlens_tf.serving.server.errors import ServingError, invalid
from dlens_tf.serving.server.inputs import Tensors
from dlens_tf.serving.server.models import ServedModel
from dlens_tf.serving.server.options import ServerOptions

_SMALLEST_PART = 4
"""Rows of a request's part that is worth a worker of its own."""


@dataclasses.dataclass(eq=False)
class _Request:
    """A client's request, or a part of a large one.

    Attributes:
      inputs, rows: what it asks, and for how much of a batch it counts.
      answer: outputs or ServingError.
      parts: all parts of the client's request, this one included, while it is awaited.
    """

    inputs: Tensors
    rows: int
    answer: asyncio.Future
    parts: list["_Request"] = dataclasses.field(default_factory=list, repr=False)


class _Queue:
    """Requests that can be joined.

    Attributes:
      model, signature: what they ask.
      enough: set while a worker's share waits.
      lanes: workers that serve this queue, those that wait included.
      gathering: those that wait.
    """

    def __init__(self, model: ServedModel, signature: str, max_rows: int, workers: int):
        self.model = model
        self.signature = signature
        self.enough = asyncio.Event()
        self.lanes = 0
        self.gathering = 0
        self._max_rows = max_rows
        self._workers = workers
        self._requests: collections.deque[_Request] = collections.deque()
        self._rows = 0  # of all of them
        self._computed = 0  # requests at work
        self._returning = 0  # requests just answered, whose clients may come back

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[_Request]:
        return iter(self._requests)

    def put(self, request: _Request) -> None:
        """Appends a request."""
        self._requests.append(request)
        self._rows += request.rows
        self._returning = max(0, self._returning - 1)
        self._update()

    def discard(self, request: _Request) -> None:
        """Takes a request back, if it still waits."""
        if request in self._requests:
            self._requests.remove(request)
            self._rows -= request.rows
            self._update()

    def expect_none(self) -> None:
        """Gives up on clients that have not come back."""
        self._returning = 0
        self._update()

    def take(self) -> list[_Request]:
        """The next batch: a worker's share or as many requests as fit, at least one."""
        share = self._share()
        batch = [self._requests.popleft()]
        rows = batch[0].rows
        while (
            self._requests
            and len(batch) < share
            and rows + self._requests[0].rows <= self._max_rows
        ):
            batch.append(self._requests.popleft())
            rows += batch[-1].rows
        self._rows -= rows
        self._computed += len(batch)
        self._update()
        return batch

    def answered(self, number: int) -> None:
        """Notes that as many requests are no longer at work."""
        self._computed -= number
        self._returning += number
        self._update()

    def _share(self) -> int:
        """Requests of a worker, were all clients there."""
        clients = len(self._requests) + self._computed + self._returning
        return math.ceil(clients / self._workers)

    def _update(self) -> None:
        waiting = len(self._requests)
        if waiting and (self._rows >= self._max_rows or waiting >= self._share()):
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
          inputs: what `inputs.check_inputs` has accepted; many rows are parted among the workers,
            and more than a batch has in any case.

        Raises:
          ServingError: RESOURCE_EXHAUSTED if too many wait already, or what TensorFlow objects to.
        """
        parts = self._parts(model, signature, inputs)
        self._admit(model, len(parts))
        shapes = tuple(inputs[name].shape[1:] for name in sorted(inputs))
        key = (model, signature, shapes)
        options = self._options
        if key not in self._queues:
            self._queues[key] = _Queue(model, signature, options.max_batch_size, options.workers)
        queue = self._queues[key]
        for part in parts:
            part.parts = parts
            queue.put(part)
        self._add_lane(key, queue)
        try:
            answers = await asyncio.gather(*(part.answer for part in parts))
        finally:
            for part in parts:  # nobody waits for them any more
                queue.discard(part)
                part.answer.cancel()
                part.parts = []  # a circle, which would keep the images until the next collection
        if len(answers) == 1:
            return answers[0]
        return {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}

    def close(self) -> None:
        """Gives up what still waits, and ends the threads."""
        for task in self._tasks:
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _parts(self, model: ServedModel, signature: str, inputs: Tensors) -> list[_Request]:
        """A request in parts that are computed independently."""
        loop, most = asyncio.get_running_loop(), self._options.max_batch_size
        if not model.signatures[signature].batched:
            # It fills a batch by itself: nothing is joined to it.
            return [_Request(inputs, most, loop.create_future())]
        rows = len(next(iter(inputs.values())))
        size = min(most, max(_SMALLEST_PART, math.ceil(rows / self._options.workers)))
        return [
            _Request(
                {name: value[start : start + size] for name, value in inputs.items()},
                min(size, rows - start),
                loop.create_future(),
            )
            for start in range(0, rows, size)
        ]

    def _admit(self, model: ServedModel, parts: int) -> None:
        """Refuses what would make too many wait; alone, a request may have any number of parts."""
        waiting = sum(len(queue) for queue in self._queues.values() if queue.model is model)
        if waiting and waiting + parts > self._options.max_enqueued:
            more = f", and this one has {parts} parts" if parts > 1 else ""
            raise ServingError(
                "RESOURCE_EXHAUSTED", f"{waiting} requests are waiting already{more}; try later"
            )

    def _add_lane(self, key: Hashable, queue: _Queue) -> None:
        """Has one more worker serve a queue that has requests, if none waits for these already."""
        if len(queue) and not queue.gathering and queue.lanes < self._options.workers:
            queue.lanes += 1
            task = asyncio.create_task(self._serve(key, queue))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, key: Hashable, queue: _Queue) -> None:
        """Answers what comes into a queue, a batch after the other, until nothing comes."""
        try:
            while await self._gather(queue):
                batch = queue.take()
                self._add_lane(key, queue)
                try:
                    await self._compute(queue, batch)
                finally:
                    queue.answered(len(batch))
                    _give_up(batch)  # what was not answered, since this was cancelled
        finally:
            queue.lanes -= 1
            if not queue.lanes:
                del self._queues[key]
                _give_up(queue)

    async def _gather(self, queue: _Queue) -> bool:
        """Waits for requests worth a batch; whether there are any."""
        queue.gathering += 1
        try:
            async with asyncio.timeout(self._options.batch_timeout_micros / 1e6):
                while not queue.enough.is_set():  # another worker may have been faster
                    await queue.enough.wait()
        except TimeoutError:
            queue.expect_none()
        finally:
            queue.gathering -= 1
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
                refusal = _serving_error(error)
                for part in batch[0].parts:  # at once, before a worker takes one that still waits
                    queue.discard(part)
                    _refuse(part, refusal)
                return
            for request in batch:  # one is at fault, and the others shall have their answers
                if not request.answer.done():
                    await self._compute(queue, [request])
            return
        for request, answer in zip(batch, answers, strict=True):
            if not request.answer.done():
                request.answer.set_result(answer)


def _refuse(request: _Request, error: ServingError) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)


def _give_up(requests: Iterable[_Request]) -> None:
    for request in requests:
        _refuse(request, ServingError("UNAVAILABLE", "the server is shutting down"))


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
