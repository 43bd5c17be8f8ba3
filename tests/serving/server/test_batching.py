import asyncio
import gc
import threading
import time
import weakref

import numpy as np
import pytest
import tensorflow as tf

from dlens_tf.serving.server.batching import Batcher
from dlens_tf.serving.server.errors import ServingError
from dlens_tf.serving.server.inputs import Signature, Spec

FOREVER = 600 * 10**6  # microseconds: a test that has to wait for it fails by its length


class StandIn:
    """A model that doubles its input, notes its batches, and can be held up."""

    def __init__(self, axis=None):
        spec = {"x": Spec(tf.float32, (axis, 2))}
        self.signatures = {"double": Signature(spec, spec)}
        self.batches = []
        self.free = threading.Event()
        self.free.set()
        self.started = threading.Event()

    def run(self, signature, inputs):
        self.batches.append(len(inputs["x"]))
        self.started.set()
        assert self.free.wait(60)
        if (inputs["x"] == 13.0).any():
            raise tf.errors.InvalidArgumentError(None, None, "thirteen [[{{node x}}]]")
        return {"x": 2.0 * inputs["x"]}


def rows(value, number=1):
    return {"x": np.full((number, 2), value, np.float32)}


def run(test, local_options, model=None, **changes):
    """Runs test(model, ask, batcher), where ask(rows) is a task that answers."""
    model = model or StandIn()
    observed = []

    async def main():
        options = local_options([], **{"batch_timeout_micros": 1000, "workers": 1, **changes})
        batcher = Batcher(options, lambda model, signature, size: observed.append(size))

        def ask(inputs):
            return asyncio.create_task(batcher.run(model, "double", inputs))

        try:
            await test(model, ask, batcher)
        finally:
            model.free.set()
            batcher.close()

    asyncio.run(main())
    assert sorted(observed) == sorted(model.batches)  # of several workers, in any order
    return model.batches


async def hold(model, ask):
    """Has the model at work on one request, so that others gather; returns its task."""
    model.free.clear()
    model.started.clear()
    task = ask(rows(0.0))
    await asyncio.to_thread(model.started.wait, 60)
    return task


async def gathered(batcher, number):
    while batcher.waiting < number:
        await asyncio.sleep(0.001)


def test_joins_what_comes_together_and_answers_each(local_options):
    async def test(model, ask, batcher):
        first = await hold(model, ask)
        tasks = [ask(rows(i, 1 + i % 2)) for i in range(5)]  # 1, 2, 1, 2, 1 rows
        await gathered(batcher, 5)
        model.free.set()
        await first
        for i, task in enumerate(tasks):
            answer = (await task)["x"]
            np.testing.assert_array_equal(answer, np.full((1 + i % 2, 2), 2.0 * i))

    assert run(test, local_options, max_batch_size=4) == [1, 4, 3]


def test_one_client_alone_never_waits(local_options):
    async def test(model, ask, batcher):
        for i in range(5):
            assert (await ask(rows(i)))["x"][0, 0] == 2.0 * i

    assert run(test, local_options, batch_timeout_micros=FOREVER) == [1] * 5


def test_waits_for_clients_that_were_just_answered(local_options):
    async def test(model, ask, batcher):
        first = await hold(model, ask)
        others = [ask(rows(i)) for i in range(3)]
        await gathered(batcher, 3)
        model.free.set()
        await first
        await asyncio.gather(ask(rows(4.0)), *others)

    assert run(test, local_options, batch_timeout_micros=FOREVER) == [1, 4]


def test_workers_share_what_waits(local_options):
    async def test(model, ask, batcher):
        first = await hold(model, ask)
        second = await hold(model, ask)  # the other worker's
        tasks = [ask(rows(i)) for i in range(6)]
        await gathered(batcher, 6)
        model.free.set()
        await asyncio.gather(first, second, *tasks)

    # Of eight clients there are four for each worker. Two are gone, and so it is only one that
    # gets four.
    batches = run(test, local_options, workers=2)
    assert sum(batches) == 8 and max(batches) == 4


def test_what_one_worker_leaves_is_the_next_ones(local_options):
    """A burst that comes while one worker waits keeps all of them busy."""

    async def test(model, ask, batcher):
        await ask(rows(0.0))  # whose worker waits for the next request now
        model.free.clear()
        tasks = [ask(rows(float(i))) for i in range(6)]
        while len(model.batches) < 4 or batcher.waiting:
            await asyncio.sleep(0.001)
        model.free.set()
        await asyncio.gather(*tasks)

    assert run(test, local_options, workers=3, batch_timeout_micros=FOREVER)[:4] == [1, 2, 2, 2]


def test_parts_are_shared_among_workers(local_options):
    async def test(model, ask, batcher):
        inputs = {"x": np.arange(20.0, 46.0, dtype=np.float32).reshape(13, 2)}
        np.testing.assert_array_equal((await ask(inputs))["x"], 2.0 * inputs["x"])
        await ask(rows(1.0, 4))  # too few

    assert sorted(run(test, local_options, workers=2)) == [4, 6, 7]


def test_the_other_parts_of_a_wrong_request_are_not_computed(local_options):
    async def test(model, ask, batcher):
        first = await hold(model, ask)
        task = ask(rows(13.0, 40))
        await gathered(batcher, 10)
        model.free.set()
        with pytest.raises(ServingError, match="thirteen"):
            await task
        assert batcher.waiting == 0
        await first

    assert run(test, local_options, max_batch_size=4) == [1, 4]


def test_nor_are_those_of_the_same_batch(local_options):
    async def test(model, ask, batcher):
        model.free.clear()
        others = [ask(rows(0.0)), ask(rows(0.0))]
        while len(model.batches) < 2:
            await asyncio.sleep(0.001)
        task = ask(rows(13.0, 8))  # a part for each worker; the first one that is free takes both
        await gathered(batcher, 2)
        model.free.set()
        with pytest.raises(ServingError, match="thirteen"):
            await task
        await asyncio.gather(*others)

    assert run(test, local_options, workers=2, max_batch_size=8) == [1, 1, 8, 4]


def test_a_request_that_has_ended_is_not_kept(local_options):
    """Its images go at once, and not when the next collection comes."""

    async def test(model, ask, batcher):
        inputs = rows(1.0)
        watched = weakref.ref(inputs["x"])
        await batcher.run(model, "double", inputs)
        del inputs
        await asyncio.sleep(0.01)
        assert watched() is None
        first = await hold(model, ask)
        waiting = ask(rows(1.0))
        await gathered(batcher, 1)
        inputs = rows(2.0)
        watched = weakref.ref(inputs["x"])
        with pytest.raises(ServingError, match="waiting already"):
            await batcher.run(model, "double", inputs)
        del inputs
        assert watched() is None  # nor is a refused one
        model.free.set()
        await asyncio.gather(first, waiting)

    gc.disable()
    try:
        run(test, local_options, max_enqueued=1)
    finally:
        gc.enable()


def test_parts_large_requests(local_options):
    async def test(model, ask, batcher):
        inputs = {"x": np.arange(100.0, 122.0, dtype=np.float32).reshape(11, 2)}
        np.testing.assert_array_equal((await ask(inputs))["x"], 2.0 * inputs["x"])

    assert run(test, local_options, max_batch_size=4) == [4, 4, 3]


def test_refuses_when_too_many_wait(local_options):
    async def test(model, ask, batcher):
        first = await hold(model, ask)
        tasks = [ask(rows(i)) for i in range(2)]
        await gathered(batcher, 2)
        with pytest.raises(ServingError, match="2 requests are waiting already") as caught:
            await ask(rows(9.0))
        assert (caught.value.code, caught.value.http_status) == ("RESOURCE_EXHAUSTED", 429)
        model.free.set()
        await asyncio.gather(first, *tasks)
        await ask(rows(9.0))

    run(test, local_options, max_enqueued=2)


def test_requests_of_the_same_moment_count(local_options):
    async def test(model, ask, batcher):
        first = await hold(model, ask)
        tasks = [ask(rows(1.0, 8)) for _ in range(10)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        assert batcher.waiting == 4
        model.free.set()
        answers = await asyncio.gather(first, *tasks, return_exceptions=True)
        refused = [a for a in answers if isinstance(a, ServingError)]
        assert {a.code for a in refused} == {"RESOURCE_EXHAUSTED"} and len(refused) == 9

    run(test, local_options, max_batch_size=2, max_enqueued=4)


def test_another_model_is_not_refused(local_options):
    other = StandIn()

    async def test(model, ask, batcher):
        first = await hold(model, ask)
        tasks = [ask(rows(i)) for i in range(2)]
        await gathered(batcher, 2)
        tasks.append(asyncio.create_task(batcher.run(other, "double", rows(1.0))))
        await asyncio.sleep(0)  # it is admitted or refused
        model.free.set()
        await asyncio.gather(first, *tasks)

    model = StandIn()
    other.batches = model.batches  # for what was observed
    run(test, local_options, model, max_enqueued=2)


def test_the_parts_of_a_large_request_count(local_options):
    async def test(model, ask, batcher):
        first = await hold(model, ask)
        tasks = [ask(rows(1.0))]
        await gathered(batcher, 1)
        with pytest.raises(ServingError, match=r"1 requests .* and this one has 4 parts; try"):
            await ask(rows(9.0, 8))
        tasks.append(ask(rows(2.0, 6)))
        await gathered(batcher, 4)
        model.free.set()
        await asyncio.gather(first, *tasks)
        await ask(rows(9.0, 40))  # alone

    run(test, local_options, max_batch_size=2, max_enqueued=4)


def test_what_is_given_up_is_not_computed(local_options):
    async def test(model, ask, batcher):
        first = await hold(model, ask)
        given_up, other = ask(rows(1.0)), ask(rows(2.0))
        await gathered(batcher, 2)
        given_up.cancel()
        first.cancel()  # at work already: its answer is for nobody
        await asyncio.wait({given_up, first})
        assert batcher.waiting == 1
        model.free.set()
        assert (await other)["x"][0, 0] == 4.0

    assert run(test, local_options) == [1, 1]


def test_a_wrong_request_fails_alone(local_options):
    async def test(model, ask, batcher):
        first = await hold(model, ask)
        tasks = [ask(rows(value)) for value in (12.0, 13.0, 14.0)]
        await gathered(batcher, 3)
        model.free.set()
        answers = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert answers[1]["x"][0, 0] == 24.0 and answers[3]["x"][0, 0] == 28.0
        assert (answers[2].code, answers[2].message) == ("INVALID_ARGUMENT", "thirteen")

    assert run(test, local_options) == [1, 3, 1, 1, 1]


def test_a_failure_of_tensorflow_is_the_servers(local_options, caplog):
    class Broken(StandIn):
        def run(self, signature, inputs):
            super().run(signature, inputs)
            raise MemoryError("secret")

    async def test(model, ask, batcher):
        with pytest.raises(ServingError, match="the server's log says how") as caught:
            await ask(rows(1.0))
        assert caught.value.code == "INTERNAL"
        assert "secret" not in caught.value.message

    run(test, local_options, Broken())


def test_signatures_without_a_batch_axis_are_not_joined(local_options):
    async def test(model, ask, batcher):
        first = await hold(model, ask)
        tasks = [ask(rows(i)) for i in range(3)]
        await gathered(batcher, 3)
        model.free.set()
        await first
        assert [(await task)["x"][0, 0] for task in tasks] == [0.0, 2.0, 4.0]

    assert run(test, local_options, StandIn(axis=1)) == [1] * 4


@pytest.mark.parametrize("workers", [1, 3])
def test_none_is_lost_or_mistaken(local_options, workers):
    class Slow(StandIn):
        def run(self, signature, inputs):
            time.sleep(0.001 * (len(inputs["x"]) % 3))
            return super().run(signature, inputs)

    random = np.random.default_rng(workers)

    async def test(model, ask, batcher):
        async def client(number):
            for turn in range(25):
                value = 1000.0 * number + turn  # never 13
                task = ask(rows(value, random.integers(1, 5)))
                if random.random() < 0.3:  # gives up, mostly before it is answered
                    await asyncio.sleep(0.002 * random.random())
                    task.cancel()
                    await asyncio.wait({task})
                    continue
                assert ((await task)["x"] == 2.0 * value).all()
                if random.random() < 0.1:
                    await asyncio.sleep(0.005)

        await asyncio.gather(*map(client, range(1, 13)))
        assert batcher.waiting == 0

    run(test, local_options, Slow(), workers=workers, max_batch_size=8, max_rows=64)


def test_the_end_gives_up_what_waits(local_options):
    async def test(model, ask, batcher):
        at_work = await hold(model, ask)
        waiting = ask(rows(1.0))
        await gathered(batcher, 1)
        batcher.close()
        for task in (at_work, waiting):
            with pytest.raises(ServingError, match="shutting down"):
                await task

    run(test, local_options)
