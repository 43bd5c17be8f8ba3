"""Simulated batches: which lenses they hold, resumption, pieces for replicas, labels."""

import functools
import itertools

import numpy as np
import pytest

from dlens_tf.errors import UserError
from dlens_tf.pipeline import simulated as simulated_module
from dlens_tf.pipeline.batches import BatchSpec
from dlens_tf.pipeline.simulated import LensKey, SimulatedBatches, _noise_seed
from dlens_tf.simulation import simulator as simulator_module
from dlens_tf.simulation.engines import make_engine
from dlens_tf.simulation.noise import instrument_noise
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.scene import draw
from dlens_tf.simulation.simulator import Simulator
from dlens_tf.simulation.splits import SPLIT_START, STREAM_START, split_of

SEED = 5
make_cached = functools.cache(make_engine)


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """One engine a recipe: compiling takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (simulated_module, simulator_module):
            patch.setattr(module, "make_engine", make_cached)
        yield


def _batches(recipe="model_ii_instrument", engine="fast", **changes) -> SimulatedBatches:
    defaults = {"targets": ["theta_E", "source_x"], "batch_size": 4, "seed": SEED}
    if recipe == "model_ii_instrument":
        defaults |= {"targets": ["log10_m_axion", "source_x"], "classes": ["axion"]}
    spec = BatchSpec(**{**defaults, **changes})
    return SimulatedBatches(get_recipe(recipe), spec, 12, engine)


def _take(batches: SimulatedBatches, number: int, **arguments) -> list:
    dataset = batches.dataset(**arguments)
    return [tuple(x.numpy() for x in batch) for batch in itertools.islice(dataset, number)]


def _assert_same(batches: list, others: list) -> None:
    for batch, other in zip(batches, others, strict=True):
        for array, other_array in zip(batch, other, strict=True):
            assert array.dtype == other_array.dtype == np.float32
            np.testing.assert_array_equal(array, other_array)


# Which lenses.


@pytest.mark.parametrize("classes", [None, ["cdm"], ["axion", "no_sub"]])
def test_classes_take_turns_and_nothing_repeats(classes):
    batches = _batches("model_ii", "lenstronomy", batch_size=8, classes=classes)
    names = classes or list(get_recipe("model_ii").classes)
    keys = [key for step in range(5) for key in batches.keys(8 * step, 8)]
    assert len(set(keys)) == 40
    assert [key.dm_class for key in keys] == list(itertools.islice(itertools.cycle(names), 40))
    for name in names:
        indices = [key.index for key in keys if key.dm_class == name]
        assert indices == list(range(STREAM_START, STREAM_START + len(indices)))
    assert {key.seed for key in keys} == {SEED}


def test_no_stored_split_has_the_lenses():
    # The largest index of a split is below the next one's start, and a split of a billion
    # examples is refused by the builder.
    assert max(SPLIT_START.values()) + 10**9 <= STREAM_START
    keys = _batches(engine="lenstronomy").keys(0, 3) + _batches().keys(10**9, 3)
    assert all(key.index >= STREAM_START and split_of(key.index) == "train" for key in keys)


def test_lenses_of_the_reference_engine_are_the_simulators():
    batches = _batches("model_ii", "lenstronomy")
    simulator = Simulator(get_recipe("model_ii"))
    ((images, targets),) = _take(batches, 1, start_step=1)
    for row, (dm_class, index) in enumerate(
        # Examples 4 to 7 of no_sub, axion, cdm in turn.
        [("axion", 1), ("cdm", 1), ("no_sub", 2), ("axion", 2)]
    ):
        lens = simulator.simulate(dm_class, SEED, STREAM_START + index)
        np.testing.assert_array_equal(images[row], lens.image)
        expected = [lens.parameters["theta_E"], lens.parameters["source_x"]]
        np.testing.assert_allclose(targets[row], expected, rtol=1e-6)


def test_noise_free_images_of_the_fast_engine_are_the_simulators():
    # The recipe has no noise, so that its images are twice their models.
    batches = _batches("model_ii_legacy", targets=["source_x"], classes=["cdm"])
    ((images, targets),) = _take(batches, 1)
    for engine, tolerance in (("fast", 1e-6), ("lenstronomy", 1e-4)):
        simulator = Simulator(get_recipe("model_ii_legacy"), engine)
        lenses = simulator.simulate_many("cdm", SEED, range(STREAM_START, STREAM_START + 4))
        for image, target, lens in zip(images, targets, lenses, strict=True):
            assert np.abs(image - lens.image).max() < tolerance * lens.image.max()
            assert target == np.float32(lens.parameters["source_x"])


def test_noise_of_the_fast_engine():
    batches = _batches(classes=["axion", "no_sub"], targets=["source_x"])
    recipe = get_recipe("model_ii_instrument")
    scenes = [draw(recipe, *key) for key in batches.keys(0, 16)]
    models = np.concatenate(
        [make_cached("fast", recipe).render(scenes[i : i + 4]) for i in range(0, 16, 4)]
    )
    images = np.concatenate([images for images, _ in _take(batches, 4)])
    background, shot = instrument_noise(models, recipe)
    noise = (images - models) / np.sqrt(background**2 + shot**2)
    # Standard normal, and independent from image to image; each with five standard errors.
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert noise.var() == pytest.approx(1.0, abs=5 * np.sqrt(2 / noise.size))
    correlation = np.corrcoef(noise.reshape(16, -1))
    assert np.abs(correlation - np.eye(16)).max() < 5 / np.sqrt(64 * 64)


def test_noise_depends_on_the_lens_alone():
    seeds = {
        tuple(_noise_seed(LensKey(dm_class, seed, index)))
        for dm_class in ("axion", "cdm")
        for seed in (0, 1, 2**32 - 1)
        for index in (STREAM_START, STREAM_START + 1, STREAM_START + 10**9, 2**32 - 1)
    }
    assert len(seeds) == 2 * 3 * 4


# The same, however it is asked for.


@pytest.mark.parametrize("engine", ["lenstronomy", "fast"])
def test_resuming_gives_the_same_batches(engine):
    whole = _take(_batches(engine=engine), 4)
    _assert_same(_take(_batches(engine=engine), 4), whole)
    _assert_same(_take(_batches(engine=engine), 2, start_step=2), whole[2:])
    first, second = whole[0][0], whole[1][0]
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("replicas", "workers"), [(2, 1), (4, 2), (2, 2)])
def test_pieces_make_up_the_global_batch(replicas, workers):
    changes = {"augmentation": "rot180", "batch_size": 8}
    whole = _take(_batches(**changes), 2)
    own = replicas // workers
    pieces = [
        _take(_batches(**changes), 2 * own, replicas=replicas, pipeline=w, num_pipelines=workers)
        for w in range(workers)
    ]
    for step, batch in enumerate(whole):
        parts = [pieces[w][step * own + i] for w in range(workers) for i in range(own)]
        assert all(len(images) == 8 // replicas for images, _ in parts)
        _assert_same([tuple(map(np.concatenate, zip(*parts, strict=True)))], [batch])


def test_each_worker_simulates_its_own_rows_only(monkeypatch):
    simulated = []
    batches = _batches(batch_size=8)
    simulate = batches._simulate
    monkeypatch.setattr(batches, "_simulate", lambda keys: simulated.extend(keys) or simulate(keys))
    _take(batches, 2, replicas=2, pipeline=1, num_pipelines=2)
    assert simulated[:4] == batches.keys(4, 4) and simulated[4:8] == batches.keys(12, 4)


def test_a_lens_is_the_same_in_batches_of_any_size():
    large, small = _take(_batches(batch_size=8), 1), _take(_batches(batch_size=4), 2)
    _assert_same(large, [tuple(map(np.concatenate, zip(*small, strict=True)))])


def test_seeds_give_different_lenses():
    ((images, targets),) = _take(_batches(), 1)
    ((other_images, other_targets),) = _take(_batches(seed=SEED + 1), 1)
    assert not np.any(targets == other_targets)
    assert not np.any(images == other_images)


def test_sample_images_are_those_of_the_first_steps():
    batches = _batches(augmentation="rot180")
    samples = batches.sample_images(10)
    plain = np.concatenate([images for images, _ in _take(_batches(), 3)])
    np.testing.assert_array_equal(samples, plain[:10])


def test_an_epoch_is_what_was_asked_for():
    batches = _batches()
    assert (batches.num_examples, batches.steps_per_epoch) == (12, 3)


# Labels.


def test_half_turns_change_the_sign_of_positions():
    plain, turned = _take(_batches(), 4), _take(_batches(augmentation="rot180"), 4)
    _assert_same(_take(_batches(augmentation="rot180"), 2, start_step=2), turned[2:])
    signs = []
    for (plain_images, plain_targets), (images, targets) in zip(plain, turned, strict=True):
        np.testing.assert_array_equal(targets[:, 0], plain_targets[:, 0])
        for i in range(4):
            sign = np.sign(targets[i, 1] * plain_targets[i, 1])
            assert abs(targets[i, 1]) == pytest.approx(abs(plain_targets[i, 1]), abs=1e-6)
            expected = plain_images[i] if sign > 0 else plain_images[i, ::-1, ::-1]
            np.testing.assert_array_equal(images[i], expected)
            signs.append(sign)
    assert 0 < signs.count(-1) < len(signs)


# Bad input.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "slow"}, "unknown engine 'slow'; valid: lenstronomy, fast"),
        ({"classes": ["wdm"]}, "'wdm'; valid: no_sub, axion, cdm"),
        ({"augmentation": "d8"}, "unknown augmentation 'd8'; valid: none"),
        ({"batch_size": 13}, "batch_size 13 is larger than the 12 images of an epoch"),
    ],
)
def test_bad_input_is_one_line(changes, message):
    with pytest.raises(UserError, match=message) as info:
        _batches(**changes)
    assert "\n" not in str(info.value)


def test_failing_simulation_is_explained(monkeypatch):
    draw = simulated_module.draw

    def failing_draw(recipe, dm_class, seed, index, galaxies=None):
        if index == STREAM_START + 6:
            raise UserError("there are too many halos")
        return draw(recipe, dm_class, seed, index, galaxies)

    monkeypatch.setattr(simulated_module, "draw", failing_draw)
    batches = _batches()
    with (
        pytest.raises(UserError, match=r"^there are too many halos$"),
        batches.explained_errors(),
    ):
        assert len(_take(batches, 5)) == 1  # never true: the error comes first
