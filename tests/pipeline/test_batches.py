"""Training batches: order, resumption, pieces for replicas, labels."""

import itertools
import shutil

import numpy as np
import pytest
import tensorflow as tf

from dlens_tf.errors import UserError
from dlens_tf.pipeline import batches as batches_module
from dlens_tf.pipeline import reading
from dlens_tf.pipeline.batches import BatchSpec, TrainingBatches
from dlens_tf.pipeline.build import build_dataset
from dlens_tf.simulation.recipes import CLASSES


@pytest.fixture(scope="module")
def folder(tiny_data_dir):
    return reading.open_dataset("deeplense", "model_ii_instrument", tiny_data_dir)


def _spec(**changes) -> BatchSpec:
    defaults = {"targets": ["log10_m_axion", "source_x"], "batch_size": 8, "seed": 5}
    return BatchSpec(**{**defaults, "augmentation": "rot180", **changes})


def _take(batches: TrainingBatches, number: int, **arguments) -> list:
    dataset = batches.dataset(**arguments)
    return [tuple(x.numpy() for x in batch) for batch in itertools.islice(dataset, number)]


@pytest.mark.parametrize("cache", batches_module.CACHES)
def test_an_epoch_is_a_permutation_and_epochs_differ(folder, cache):
    batches = TrainingBatches(folder, _spec(cache=cache))
    assert batches.steps_per_epoch == 3
    masses = [targets[:, 0] for _, targets in _take(batches, 6)]
    first, second = np.concatenate(masses[:3]), np.concatenate(masses[3:])
    stored = np.concatenate(
        [b["parameters/log10_m_axion"] for b in reading.read_batches(folder, "train", 8)]
    )
    np.testing.assert_array_equal(np.sort(first), np.sort(stored))
    np.testing.assert_array_equal(np.sort(second), np.sort(stored))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, stored)


@pytest.mark.parametrize("cache", batches_module.CACHES)
@pytest.mark.parametrize("start", [1, 4])
def test_resuming_gives_the_same_batches(folder, cache, start):
    batches = TrainingBatches(folder, _spec(cache=cache))
    whole = _take(batches, 6)
    resumed = _take(TrainingBatches(folder, _spec(cache=cache)), 6 - start, start_step=start)
    for (images, targets), (images_again, targets_again) in zip(
        whole[start:], resumed, strict=True
    ):
        np.testing.assert_array_equal(images, images_again)
        np.testing.assert_array_equal(targets, targets_again)


@pytest.mark.parametrize(("replicas", "workers"), [(2, 1), (4, 2)])
def test_pieces_make_up_the_global_batch(folder, replicas, workers):
    batches = TrainingBatches(folder, _spec())
    whole = _take(batches, 3)
    own = replicas // workers
    pieces = [
        _take(batches, 3 * own, replicas=replicas, pipeline=w, num_pipelines=workers)
        for w in range(workers)
    ]
    for step, (images, _) in enumerate(whole):
        parts = [pieces[w][step * own + i][0] for w in range(workers) for i in range(own)]
        np.testing.assert_array_equal(np.concatenate(parts), images)


def test_half_turns_change_the_sign_of_positions(folder):
    plain = _take(TrainingBatches(folder, _spec(augmentation="none")), 3)
    turned = _take(TrainingBatches(folder, _spec()), 3)
    before, after = (np.concatenate([t[:, 1] for _, t in part]) for part in (plain, turned))
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=1e-6)
    assert 0 < (before * after < 0).sum() < len(before)
    for (plain_images, plain_targets), (images, targets) in zip(plain, turned, strict=True):
        for i in range(8):
            expected = plain_images[i]
            if targets[i, 1] * plain_targets[i, 1] < 0:
                expected = expected[::-1, ::-1]
            np.testing.assert_array_equal(images[i], expected)


def test_arrays_are_the_stored_examples(folder):
    arrays = batches_module.load_arrays(folder, "train", ["theta_E"])
    stored = next(iter(reading.read_batches(folder, "train", 100)))
    np.testing.assert_array_equal(arrays.images, stored["image"])
    np.testing.assert_array_equal(arrays.parameters["theta_E"], stored["parameters/theta_E"])
    assert arrays.images.dtype == arrays.parameters["theta_E"].dtype == np.float32


def test_arrays_hold_the_chosen_classes_only(tmp_path):
    sizes = {"train": 3, "validation": 1, "test": 1}
    build_dataset("deeplense", "model_ii_legacy_classes", tmp_path, sizes=sizes, num_shards=1)
    folder = reading.open_dataset("deeplense", "model_ii_legacy_classes", tmp_path)
    arrays = batches_module.load_arrays(folder, "train", ["theta_E"], ["cdm"])
    stored = next(iter(reading.read_batches(folder, "train", 100)))
    of_class = stored["label"].numpy() == CLASSES.index("cdm")
    assert len(arrays) == len(arrays.parameters["theta_E"]) == 3
    np.testing.assert_array_equal(arrays.images, stored["image"].numpy()[of_class])


@pytest.mark.parametrize("cache", batches_module.CACHES)
def test_lost_records_stop_training(tiny_data_dir, tmp_path, cache):
    shutil.copytree(tiny_data_dir, tmp_path / "data")
    folder = reading.open_dataset("deeplense", "model_ii_instrument", tmp_path / "data")
    shard = folder.shards("train")[1]
    (first, *_) = tf.data.TFRecordDataset(shard).as_numpy_iterator()
    with tf.io.TFRecordWriter(shard) as writer:
        writer.write(first)
    with (
        pytest.raises(UserError, match=r"00001-of-00002 in .* holds 1 records instead of 12"),
        reading.explained_read_errors(folder, "train"),
    ):
        _take(TrainingBatches(folder, _spec(cache=cache)), 4)


def test_a_batch_larger_than_the_split_is_refused(folder):
    with pytest.raises(UserError, match="batch_size 25 is larger than the 24 training"):
        TrainingBatches(folder, _spec(batch_size=25))


def test_unknown_cache_lists_the_valid_ones(folder):
    with pytest.raises(UserError, match="valid: memory, none"):
        TrainingBatches(folder, _spec(cache="disk"))
