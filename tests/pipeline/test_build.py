import os
import signal
import subprocess
import sys
import time

import pytest
import tensorflow as tf
from dlens_tf.datasets.deeplense import Builder

from dlens_tf.errors import UserError
from dlens_tf.pipeline.build import build_dataset
from dlens_tf.simulation import generate

CONFIG = "model_iii_instrument_classes"
SIZES = {"train": 12, "validation": 4, "test": 4}
BLOCK_SIZE = 4

# The command, with blocks small enough to be interrupted between them and shards that take their
# time to be written.
BUILD = f"""
import sys, time
from dlens_tf.pipeline import builder
from dlens_tf.pipeline.build import build_dataset
from dlens_tf.quiet import silence_tensorflow
from dlens_tf.simulation import generate
if __name__ == "__main__":
    silence_tensorflow()
    generate.BLOCK_SIZE = {BLOCK_SIZE}
    write = builder._CanonicalWriter.write
    def write_slowly(self, path, examples):
        write(self, path, examples)
        time.sleep(0.3)
    builder._CanonicalWriter.write = write_slowly
    data_dir, engine, workers = sys.argv[1:]
    build_dataset("deeplense", {CONFIG!r}, data_dir, sizes={SIZES!r}, num_shards=2,
                  engine=engine, workers=int(workers))
"""


def start_build(data_dir, engine="lenstronomy", workers=2):
    """Starts the command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(data_dir), engine, str(workers)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def blocks_of(data_dir):
    return list((data_dir / ".dlens_blocks" / "deeplense" / CONFIG).glob("*.npz"))


def wait_for(process, condition):
    deadline = time.monotonic() + 180
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.01)


@pytest.fixture
def build(monkeypatch):
    monkeypatch.setattr(generate, "BLOCK_SIZE", BLOCK_SIZE)

    def build(data_dir, **changes):
        arguments = {"sizes": SIZES, "num_shards": 2, **changes}
        return build_dataset("deeplense", CONFIG, data_dir, **arguments)

    return build


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The data set built in one go by one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "BLOCK_SIZE", BLOCK_SIZE)
        return build_dataset(
            "deeplense", CONFIG, tmp_path_factory.mktemp("reference"), sizes=SIZES, num_shards=2
        )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_reference_is_complete(reference):
    names = set(contents(reference))
    assert {f"deeplense-train.tfrecord-0000{i}-of-00002" for i in (0, 1)} <= names
    assert not list(reference.parents[2].glob(".dlens_blocks"))


def test_number_of_workers_leaves_no_trace(reference, build, tmp_path):
    assert contents(build(tmp_path, workers=2)) == contents(reference)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_build_completes_with_the_same_bytes(reference, build, tmp_path, sent):
    process = start_build(tmp_path)
    wait_for(process, lambda: len(blocks_of(tmp_path)) >= 2)
    # As Ctrl-C does it: to the workers too.
    os.killpg(process.pid, sent)
    _, messages = process.communicate(timeout=60)
    assert process.returncode != 0
    if sent == signal.SIGINT:
        assert "the same command goes on from here" in messages
    assert len(blocks_of(tmp_path)) >= 2
    assert not (tmp_path / "deeplense" / CONFIG / "1.0.0").exists()
    assert contents(build(tmp_path)) == contents(reference)
    assert [path.name for path in tmp_path.iterdir()] == ["deeplense"]


def kill_while_writing(process, data_dir):
    shards = (data_dir / "deeplense" / CONFIG).glob
    wait_for(process, lambda: any(shards("incomplete.*/*tfrecord-00000*")))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def test_build_killed_while_it_writes_completes_with_the_same_bytes(reference, build, tmp_path):
    kill_while_writing(start_build(tmp_path), tmp_path)
    assert contents(build(tmp_path)) == contents(reference)
    assert [path.name for path in tmp_path.iterdir()] == ["deeplense"]
    assert [path.name for path in (tmp_path / "deeplense" / CONFIG).iterdir()] == ["1.0.0"]


@pytest.mark.slow
def test_fast_build_killed_twice_completes_with_the_same_bytes(build, tmp_path):
    """In the middle of simulation, then of writing; another number of processes each time."""
    uninterrupted = build(tmp_path / "whole", engine="fast", workers=2)
    process = start_build(tmp_path, "fast", workers=1)
    wait_for(process, lambda: blocks_of(tmp_path))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert 0 < len(blocks_of(tmp_path)) < 15
    kill_while_writing(start_build(tmp_path, "fast", workers=2), tmp_path)
    assert contents(build(tmp_path, engine="fast")) == contents(uninterrupted)


def test_second_build_of_the_same_is_refused(reference, build, tmp_path):
    process = start_build(tmp_path)
    wait_for(process, lambda: blocks_of(tmp_path))
    name = f"deeplense/{CONFIG}"
    with pytest.raises(UserError, match=rf"building {name} is under way already \(process \d+ on"):
        build(tmp_path)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 0, messages
    assert contents(build(tmp_path)) == contents(reference)
    assert [path.name for path in tmp_path.iterdir()] == ["deeplense"]


def test_calibration_split_leaves_the_others_as_they_are(reference, build, tmp_path):
    sizes = {**SIZES, "calibration": 4}
    built = contents(build(tmp_path, sizes=sizes))
    shards = {name: records for name, records in contents(reference).items() if "tfrecord" in name}
    assert len(shards) == 6
    assert {name: built[name] for name in shards} == shards
    more = {name for name in built if "tfrecord" in name} - set(shards)
    assert more == {f"deeplense-calibration.tfrecord-0000{i}-of-00002" for i in (0, 1)}
    with pytest.raises(UserError, match="exists with sizes_per_class"):
        build(tmp_path)


def test_other_processes_write_the_same_records(reference, tmp_path):
    """Protobuf orders features by a seed that each process has for itself."""
    process = start_build(tmp_path, workers=1)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 0, messages
    assert contents(tmp_path / "deeplense" / CONFIG / "1.0.0") == contents(reference)


def test_half_written_shards_are_cleared_away(reference, build, tmp_path):
    half = tmp_path / "deeplense" / CONFIG / "incomplete.AB12CD_1.0.0"
    half.mkdir(parents=True)
    (half / "deeplense-train.tfrecord-00000-of-00002").write_bytes(b"half")
    assert contents(build(tmp_path)) == contents(reference)
    assert not half.exists()


def test_complete_data_set_is_left_alone(build, reference, capsys):
    before = {path: path.stat().st_mtime_ns for path in reference.iterdir()}
    assert build(reference.parents[2]) == reference
    assert capsys.readouterr().out == f"{reference} is complete already\n"
    assert {path: path.stat().st_mtime_ns for path in reference.iterdir()} == before


def test_other_seed_is_refused_or_overwrites(build, reference, tmp_path):
    path = build(tmp_path)
    with pytest.raises(UserError, match=r"exists with seed 0, not 1; .* --overwrite"):
        build(tmp_path, seed=1)
    assert contents(path) == contents(reference)
    build(tmp_path, seed=1, overwrite=True)
    shard = "deeplense-train.tfrecord-00000-of-00002"
    assert contents(path)[shard] != contents(reference)[shard]


def test_no_more_shards_than_examples(build, tmp_path):
    path = build(tmp_path, sizes={"train": 3, "validation": 1, "test": 1}, num_shards=8)
    assert len(list(path.glob("*train.tfrecord*"))) == 3


@pytest.mark.parametrize("number", [0, 100_000_000])
def test_absurd_number_of_shards(build, tmp_path, number):
    with pytest.raises(UserError, match="num_shards must be between 1 and 10,000, not"):
        build(tmp_path, num_shards=number)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "slow"}, "unknown engine 'slow'; valid: lenstronomy, fast"),
        ({"galaxies": "/x"}, "takes no galaxies; leave out --galaxies=/x"),
    ],
)
def test_bad_arguments_leave_nothing(build, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        build(tmp_path / "data", **changes)
    assert not list(tmp_path.iterdir())


def test_engine_that_cannot_render_is_known_before_anything_is_written(
    build, tmp_path, monkeypatch
):
    from dlens_tf.simulation import fast_engine

    monkeypatch.setattr(fast_engine, "MAX_ELLIPTICITY", 0.01)
    with pytest.raises(UserError, match="use --engine=lenstronomy"):
        build(tmp_path / "data", engine="fast")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dataset", "config", "message"),
    [
        ("imagenet", "model_ii", "unknown data set 'imagenet'; valid: deeplense, dark_matter"),
        ("dark_matter", "model_v", "unknown configuration of dark_matter 'model_v'; valid: cdm"),
    ],
)
def test_unknown_data_set(tmp_path, dataset, config, message):
    with pytest.raises(UserError, match=message):
        build_dataset(dataset, config, tmp_path, sizes=SIZES)


def test_empty_galaxy_catalogue(tmp_path):
    from astropy.table import Table

    columns = ["IDENT", "GAL_FILENAME", "GAL_HDU", "PIXEL_SCALE", "NOISE_MEAN"]
    empty = Table(names=columns, dtype=["i4", "S8", "i4", "f8", "f8"])
    empty.write(tmp_path / "galaxies.fits")
    with pytest.raises(UserError, match="galax") as raised:
        build_dataset(
            "dark_matter", "cdm_hst_cosmos", tmp_path / "data", sizes=SIZES,
            galaxies=tmp_path / "galaxies.fits",
        )  # fmt: skip
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "data").exists()


def test_folder_that_is_no_data_set(build, tmp_path):
    (tmp_path / "deeplense" / CONFIG / "1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match="is no data set; remove it or add --overwrite"):
        build(tmp_path)


def test_unwritable_folder(build, tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match=f"can't write to {file}/data: Not a directory"):
        build(file / "data")


def test_full_disk(build, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez", full)
    with pytest.raises(UserError, match=r"can't write .*: No space left on device"):
        build(tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("incomplete.*"))


def _wrapped(error: Exception) -> RuntimeError:
    wrapped = RuntimeError(f"Failed to finalize writing of split 'train': {error}")
    wrapped.__cause__ = error
    return wrapped


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "x.tfrecord; No space left on device"),
        _wrapped(tf.errors.ResourceExhaustedError(None, None, "No space left on device")),
        _wrapped(OSError(28, "No space left on device")),
    ],
)
def test_full_disk_while_shards_are_written(build, tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(Builder, "download_and_prepare", full)
    with pytest.raises(UserError, match=r"can't write to .*: .*No space left on device") as raised:
        build(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("/catalogue/images.fits", "can't use /catalogue/images.fits: No such file or directory"),
        ("{data_dir}/block.npz", "can't write to {data_dir}: No such file or directory"),
    ],
)
def test_missing_file_elsewhere_is_named(build, tmp_path, monkeypatch, file, message):
    def fail(*_, **__):
        raise FileNotFoundError(2, "No such file or directory", file.format(data_dir=tmp_path))

    monkeypatch.setattr(Builder, "download_and_prepare", fail)
    with pytest.raises(UserError) as raised:
        build(tmp_path)
    assert str(raised.value) == message.format(data_dir=tmp_path)


def test_defects_are_not_taken_for_a_full_disk(build, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a defect")

    monkeypatch.setattr(Builder, "download_and_prepare", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        build(tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_overwriting_keeps_the_old_data_set(build, reference, tmp_path, monkeypatch, error):
    path = build(tmp_path)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("numpy.savez", fail)
    with pytest.raises((UserError, KeyboardInterrupt)):
        build(tmp_path, seed=1, overwrite=True)
    assert contents(path) == contents(reference)
    assert [child.name for child in path.parent.iterdir()] == ["1.0.0"]
    monkeypatch.undo()
    monkeypatch.setattr(generate, "BLOCK_SIZE", BLOCK_SIZE)
    build(tmp_path, seed=1, overwrite=True)
    assert [child.name for child in path.parent.iterdir()] == ["1.0.0"]
    assert contents(path) != contents(reference)


def test_overwriting_that_was_killed_keeps_the_old_data_set(build, reference, tmp_path, capsys):
    path = build(tmp_path)
    path.rename(path.with_name("replaced_1.0.0"))
    capsys.readouterr()
    build(tmp_path)
    assert capsys.readouterr().out == f"{path} is complete already\n"
    assert contents(path) == contents(reference)
    assert [child.name for child in path.parent.iterdir()] == ["1.0.0"]


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "metadata.json"])
def test_damaged_data_set_is_not_called_complete(build, reference, tmp_path, name):
    path = build(tmp_path)
    (path / name).write_bytes(b"{")
    with pytest.raises(UserError, match=r"is damaged; build it again with: .* --overwrite"):
        build(tmp_path)
    build(tmp_path, overwrite=True)
    assert contents(path) == contents(reference)
