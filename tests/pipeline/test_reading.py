"""Reading against TFDS's own reader, and damaged data sets."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from dlens_tf.errors import UserError
from dlens_tf.pipeline import reading
from dlens_tf.pipeline.build import build_dataset
from dlens_tf.simulation.galaxies import GalaxyCatalogue


@pytest.fixture
def folder(tiny_data_dir):
    return reading.open_dataset("deeplense", "model_ii_instrument", tiny_data_dir)


@pytest.fixture(scope="module")
def classes_data_dir(tmp_path_factory):
    """A data_dir with a data set of three classes: 9 + 3 + 6 lenses."""
    data_dir = tmp_path_factory.mktemp("classes")
    sizes = {"train": 3, "validation": 1, "test": 2}
    build_dataset("deeplense", "model_ii_legacy_classes", data_dir, sizes=sizes, num_shards=2)
    return data_dir


def _copy(tiny_data_dir, tmp_path):
    shutil.copytree(tiny_data_dir, tmp_path / "data")
    return tmp_path / "data" / "deeplense" / "model_ii_instrument" / "1.0.0"


def test_equals_the_tfds_reader(folder):
    expected = list(tfds.as_numpy(tfds.builder_from_directory(folder.path).as_dataset("train")))
    read = next(iter(reading.read_batches(folder, "train", 100)))
    by_index = {int(index): i for i, index in enumerate(read["metadata/index"].numpy())}
    assert len(expected) == len(by_index) == 24
    for example in expected:
        row = by_index[int(example["metadata"]["index"])]
        np.testing.assert_array_equal(read["image"][row], example["image"])
        assert read["image"].dtype == np.float32
        for name, value in example["parameters"].items():
            assert float(read[f"parameters/{name}"][row]) == value


def test_last_batch_may_be_smaller(folder):
    sizes = [len(batch["label"]) for batch in reading.read_batches(folder, "train", 10)]
    assert sizes == [10, 10, 4]


def test_only_the_named_features_are_decoded(folder):
    batch = next(iter(reading.read_batches(folder, "test", 4, features=["metadata/snr"])))
    assert set(batch) == {"image", "metadata/snr"}


def test_class_selection(folder):
    kept = reading.read_batches(folder, "test", 4, classes=["axion"])
    assert sum(len(batch["label"]) for batch in kept) == 8
    with pytest.raises(UserError, match=r"unknown class .*'cdm'; valid: axion"):
        reading.read_batches(folder, "test", 4, classes=["cdm"])


def test_class_selection_filters(classes_data_dir):
    folder = reading.open_dataset("deeplense", "model_ii_legacy_classes", classes_data_dir)
    assert folder.num_examples("train") == 9
    assert folder.num_examples("train", ["axion", "cdm"]) == 6
    assert "log10_m_axion" not in folder.parameters
    for classes, labels in ((["cdm"], {2}), (["no_sub", "axion"], {0, 1})):
        batches = list(reading.read_batches(folder, "train", 2, classes=classes))
        found = np.concatenate([batch["label"] for batch in batches])
        assert set(found) == labels
        assert len(found) == 3 * len(labels)


def test_shuffling_shuffles_and_repeats(folder):
    def order(seed):
        batches = reading.read_shuffled_batches(
            folder, "train", 8, seed, 100, features=["metadata/index"]
        )
        return np.concatenate([batch["metadata/index"] for batch in batches])

    assert sorted(order(1)) == list(range(24))
    np.testing.assert_array_equal(order(1), order(1))
    assert not np.array_equal(order(1), order(2))


def test_missing_data_set_names_the_build_command(tmp_path):
    with pytest.raises(UserError, match=r"missing; build it with: .*--config=model_ii"):
        reading.open_dataset("deeplense", "model_ii", tmp_path)


def test_half_built_data_set_names_the_build_command(tmp_path):
    (tmp_path / "deeplense" / "model_ii" / "incomplete.X_1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"half built; build it with: .*--config=model_ii"):
        reading.open_dataset("deeplense", "model_ii", tmp_path)


def test_unknown_configuration_is_no_command(tmp_path):
    with pytest.raises(
        UserError, match=r"unknown configuration of deeplense 'model_v'; valid: model_i"
    ):
        reading.open_dataset("deeplense", "model_v", tmp_path)
    with pytest.raises(UserError, match=r"unknown data set 'imagenet'; valid: deeplense"):
        reading.open_dataset("imagenet", "cdm", tmp_path)


def test_missing_shard_is_named(tiny_data_dir, tmp_path):
    path = _copy(tiny_data_dir, tmp_path)
    next(path.glob("*train.tfrecord-00001*")).unlink()
    with pytest.raises(UserError, match=r"lacks deeplense-train.tfrecord-00001-of-00002"):
        reading.open_dataset("deeplense", "model_ii_instrument", tmp_path / "data")


def test_empty_shard_is_named(tiny_data_dir, tmp_path):
    path = _copy(tiny_data_dir, tmp_path)
    next(path.glob("*train.tfrecord-00001*")).write_bytes(b"")
    with pytest.raises(UserError, match=r"shard deeplense-train.tfrecord-00001-of-00002 .* empty"):
        reading.open_dataset("deeplense", "model_ii_instrument", tmp_path / "data")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "metadata.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"na', b"\x80\xff\x00" * 40])
def test_damaged_description_is_one_line(tiny_data_dir, tmp_path, name, content):
    path = _copy(tiny_data_dir, tmp_path)
    (path / name).unlink()
    if content is not None:
        (path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"build it( again)? with: .* --overwrite") as raised:
        reading.open_dataset("deeplense", "model_ii_instrument", tmp_path / "data")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["parameters", "classes", "seed", "recipe"])
def test_incomplete_metadata_is_damage(tiny_data_dir, tmp_path, key):
    file = _copy(tiny_data_dir, tmp_path) / "metadata.json"
    metadata = json.loads(file.read_text())
    del metadata[key]
    file.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="is damaged"):
        reading.open_dataset("deeplense", "model_ii_instrument", tmp_path / "data")


def test_command_names_the_sizes_and_the_seed(tiny_data_dir, tmp_path):
    path = _copy(tiny_data_dir, tmp_path)
    metadata = json.loads((path / "metadata.json").read_text())
    (path / "metadata.json").write_text(json.dumps({**metadata, "seed": 7}))
    command = reading.build_command(path)
    assert command == (
        "python tools/build_dataset.py --dataset=deeplense --config=model_ii_instrument "
        f"--data_dir={tmp_path / 'data'} --num_examples=24 --num_validation=8 --num_test=8 "
        "--seed=7 --overwrite"
    )
    other = reading.build_command(path, data_dir="more", num_calibration=5)
    assert other == (
        "python tools/build_dataset.py --dataset=deeplense --config=model_ii_instrument "
        "--data_dir=more --num_examples=24 --num_validation=8 --num_test=8 --seed=7 "
        "--num_calibration=5"
    )
    (path / "metadata.json").write_text(json.dumps({**metadata, "engine": "fast"}))
    fast = "--seed=0 --engine=fast --overwrite"
    assert reading.build_command(path) == command.replace("--seed=7 --overwrite", fast)
    (path / "metadata.json").write_text(json.dumps({**metadata, "seed": 7}))
    (path / "features.json").unlink()
    with pytest.raises(UserError, match=re.escape(command)):
        reading.open_dataset("deeplense", "model_ii_instrument", tmp_path / "data")


@pytest.mark.parametrize("bundled", [True, False])
def test_command_does_not_pass_over_the_galaxies(tiny_data_dir, tmp_path, bundled):
    path = _copy(tiny_data_dir, tmp_path)
    metadata = json.loads((path / "metadata.json").read_text())
    galaxies = GalaxyCatalogue.open(None).content_id if bundled else "0123456789ab"
    (path / "metadata.json").write_text(json.dumps({**metadata, "galaxies": galaxies}))
    arguments = shlex.split(reading.build_command(path))
    named = [argument for argument in arguments if argument.startswith("--galaxies")]
    assert named == ([] if bundled else ["--galaxies=<catalogue whose content_id is 0123456789ab>"])
    assert {"--seed=0", "--num_examples=24"} <= set(arguments)


def _lose_records(shard, kept):
    records = list(tf.data.TFRecordDataset(str(shard)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for record in records[:kept]:
            writer.write(record)


@pytest.mark.parametrize("classes", [None, ["axion"]])
def test_lost_records_are_noticed(tiny_data_dir, tmp_path, classes):
    path = _copy(tiny_data_dir, tmp_path)
    _lose_records(next(path.glob("*train.tfrecord-00001*")), 11)
    folder = reading.open_dataset("deeplense", "model_ii_instrument", tmp_path / "data")
    pattern = r"tfrecord-00001-of-00002 in .* holds 11 records instead of 12; build it again with"
    for batches in (
        reading.read_batches(folder, "train", 8, classes),
        reading.read_shuffled_batches(folder, "train", 8, 0, 100, classes),
    ):
        with (
            pytest.raises(UserError, match=pattern),
            reading.explained_read_errors(folder, "train"),
        ):
            list(batches)


def test_lost_records_are_noticed_beside_a_class_filter(classes_data_dir, tmp_path):
    shutil.copytree(classes_data_dir, tmp_path / "data")
    folder = reading.open_dataset("deeplense", "model_ii_legacy_classes", tmp_path / "data")
    _lose_records(folder.shards("train")[0], 1)
    with (
        pytest.raises(UserError, match="holds 1 records instead of"),
        reading.explained_read_errors(folder, "train"),
    ):
        list(reading.read_batches(folder, "train", 2, ["cdm"]))


def test_shard_of_another_split_is_noticed(tiny_data_dir, tmp_path):
    path = _copy(tiny_data_dir, tmp_path)
    train, test = (next(path.glob(f"*{split}.tfrecord-00000*")) for split in ("train", "test"))
    shutil.copy(train, test)
    folder = reading.open_dataset("deeplense", "model_ii_instrument", tmp_path / "data")
    with (
        pytest.raises(UserError, match=r"test.tfrecord.* holds 12 records instead of 4"),
        reading.explained_read_errors(folder, "test"),
    ):
        list(reading.read_batches(folder, "test", 4))


def test_damaged_record_is_named(tiny_data_dir, tmp_path):
    path = _copy(tiny_data_dir, tmp_path)
    shard = next(path.glob("*train.tfrecord-00001*"))
    content = bytearray(shard.read_bytes())
    record = len(content) // 12
    content[3 * record + 500] ^= 0xFF
    shard.write_bytes(content)
    folder = reading.open_dataset("deeplense", "model_ii_instrument", tmp_path / "data")
    pattern = r"shard deeplense-train.tfrecord-00001-of-00002 in .* damaged at record 3"
    with (
        pytest.raises(UserError, match=pattern),
        reading.explained_read_errors(folder, "train"),
    ):
        list(reading.read_batches(folder, "train", 8))


def test_truncated_shard_is_named(tiny_data_dir, tmp_path):
    path = _copy(tiny_data_dir, tmp_path)
    shard = next(path.glob("*test.tfrecord-00000*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    folder = reading.open_dataset("deeplense", "model_ii_instrument", tmp_path / "data")
    with (
        pytest.raises(UserError, match=r"deeplense-test.tfrecord-00000-of-00002 .* record 3"),
        reading.explained_read_errors(folder, "test"),
    ):
        list(reading.read_batches(folder, "test", 8))
