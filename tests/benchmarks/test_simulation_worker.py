"""What the processes of the benchmark do, called here in this process with engines of our own."""

import types

import numpy as np
import pytest
from dlens_tf.benchmarks import simulation_worker as worker
from dlens_tf.benchmarks.simulation_worker import Case

from dlens_tf.errors import UserError

RECIPE = "model_ii_instrument"


class Engine:
    """Renders in 2 seconds and observes in 1, by the clock of the fixture."""

    def __init__(self, clock):
        self._clock = clock
        self.rendered, self.observed = [], []

    def render(self, scenes):
        self._clock.now += 2.0
        self.rendered.append([scene.parameters["source_x"] for scene in scenes])
        return scenes

    def observe(self, models, dm_class, indices):
        self._clock.now += 1.0
        self.observed.append((dm_class, list(indices)))


@pytest.fixture
def engine(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    engine = Engine(clock)
    monkeypatch.setattr(worker, "_engine", lambda name, recipe: engine)
    monkeypatch.setattr(worker.time, "perf_counter", lambda: clock.now)
    return engine


def test_the_fast_engine_is_timed_in_batches(engine):
    rates = worker.measure(Case("fast", RECIPE, "axion", 6), 4, 1)
    assert rates.noise_free == pytest.approx(6 / 2)
    assert rates.noisy == pytest.approx(6 / 3)
    assert engine.observed == [("axion", list(range(6)))] * 4
    assert len({tuple(rendered) for rendered in engine.rendered}) == 1


def test_lenstronomy_is_timed_lens_by_lens_and_goes_on(engine):
    case = Case("lenstronomy", RECIPE, "cdm", 5)
    for repeat in range(3):
        rates = worker.measure(case, 2, repeat)
        assert (rates.noise_free, rates.noisy) == pytest.approx((1 / 2, 1 / 3))
    assert engine.observed == [("cdm", [index]) for index in (0, 1, 2, 3, 4, 0)]
    assert engine.rendered[0] == engine.rendered[5] != engine.rendered[1]


def test_a_recipe_without_noise_has_no_noisy_rate(engine):
    rates = worker.measure(Case("fast", "model_ii_legacy", "axion", 4), 1, 0)
    assert rates == (2.0, None)
    assert not engine.observed


def test_warm_up_gives_the_seconds_of_the_smallest_measurement(engine):
    assert worker.warm_up(Case("fast", RECIPE, "axion", 6)) == 3.0
    assert [len(rendered) for rendered in engine.rendered] == [6, 6]
    assert worker.warm_up(Case("lenstronomy", "model_ii_legacy", "axion", 6)) == 2.0
    assert [len(rendered) for rendered in engine.rendered] == [6, 6, 1, 1]


def test_largest_difference_is_relative_to_each_peak(monkeypatch):
    reference = np.zeros((2, 3, 3, 1))
    reference[0, 1, 1] = 10.0
    reference[1, 1, 1] = 100.0
    other = np.concatenate([reference, np.full((2, 3, 3, 1), 1e9)])
    other[0, 0, 0] = -0.5  # 5 % of its peak
    other[1, 0, 0] = 2.0  # 2 %
    engines = {
        "fast": types.SimpleNamespace(
            render=lambda scenes: types.SimpleNamespace(numpy=lambda: other[: len(scenes)])
        ),
        "lenstronomy": types.SimpleNamespace(render=lambda scenes: reference[: len(scenes)]),
    }
    monkeypatch.setattr(worker, "_engine", lambda name, recipe: engines[name])
    case = Case("fast", RECIPE, "axion", 4)
    assert worker.largest_difference(case, 2) == pytest.approx(0.05)


def test_prepare_says_why_an_engine_refuses(monkeypatch):
    def refuse(name, recipe):
        raise UserError("no such light")

    monkeypatch.setattr(worker, "_engine", refuse)
    start = worker.prepare([Case("lenstronomy", RECIPE, "axion", 4)], 1.0)
    assert start.refused == "no such light"


def test_prepare_stops_lenstronomy_in_time(engine):
    case = Case("lenstronomy", RECIPE, "axion", 64)
    start = worker.prepare([case], 7.0)
    assert len(engine.rendered) == 3  # 3 seconds each
    assert start.refused is None
    assert start.memory_mb >= start.imports_mb > 10
