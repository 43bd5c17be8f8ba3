"""Apache Beam gives what the process pool gives. Needs the extra `beam`."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tensorflow as tf

from dlens_tf.errors import UserError
from dlens_tf.pipeline import on_beam
from dlens_tf.pipeline.build import build_dataset
from dlens_tf.simulation import generate

CONFIG = "model_iii_instrument_classes"
SIZES = {"train": 6, "validation": 2, "test": 2}


@pytest.fixture
def build(monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "BLOCK_SIZE", 4)

    def build(name: str, **changes) -> Path:
        arguments = {"sizes": SIZES, "num_shards": 2, **changes}
        return build_dataset("deeplense", CONFIG, tmp_path / name, **arguments)

    return build


def records(folder: Path) -> dict[str, list[bytes]]:
    """The records of each split, in stored order."""
    return {
        split: [
            record
            for shard in sorted(map(str, folder.glob(f"*-{split}.tfrecord*")))
            for record in tf.data.TFRecordDataset(shard).as_numpy_iterator()
        ]
        for split in SIZES
    }


def descriptions(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("features.json", "metadata.json")}


@pytest.mark.parametrize("engine", ["lenstronomy", "fast"])
def test_beam_gives_the_same_examples_in_the_same_order(build, engine):
    pool = build("pool", engine=engine)
    beam = build("beam", engine=engine, beam_runner="DirectRunner")
    assert records(beam) == records(pool)
    assert descriptions(beam) == descriptions(pool)
    assert [path.name for path in beam.parents[2].iterdir()] == ["deeplense"]


@pytest.mark.slow
def test_beam_workers_give_the_same_examples(build):
    pool = build("pool")
    options = ["direct_num_workers=2", "direct_running_mode=multi_processing"]
    beam = build("beam", beam_runner="DirectRunner", beam_options=options)
    assert records(beam) == records(pool)


def test_wrong_runner_and_options_are_one_line(capfd):
    for runner, options, message in [
        ("SlowRunner", [], "has no runner 'SlowRunner'; valid: .*DirectRunner"),
        ("DirectRunner", ["direct_workers=2"], "has no option 'direct_workers'"),
        (
            "DirectRunner",
            ["direct_num_workers=two"],
            "not take the option 'direct_num_workers=two'",
        ),
        ("DataflowRunner", ["project=p"], "beam_options: Missing .*region"),
    ]:
        with pytest.raises(UserError, match=message) as raised:
            on_beam.download_arguments(runner, options)
        assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_options_of_the_documented_commands_are_accepted():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    found = re.findall(r"--beam_runner=(\w+) \\\n +--beam_options=(\S+)", text)
    assert {runner for runner, _ in found} == {
        "DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner",
    }  # fmt: skip
    for runner, options in found:
        filled = options.replace("BUCKET", "bucket").replace("PROJECT", "project")
        filled = filled.replace("REGION", "europe-west1").replace("IMAGE", "image")
        arguments = on_beam.download_arguments(runner, filled.split(","))
        given = arguments["beam_options"].get_all_options(drop_default=True)
        assert len(given) >= len(options.split(",")) - 1


def test_options_without_a_runner(build):
    with pytest.raises(UserError, match="beam_options are given without a beam_runner"):
        build("beam", beam_options=["direct_num_workers=2"])


def test_remote_folder_without_a_runner():
    with pytest.raises(UserError, match="gs://bucket/data is no local folder: it needs --beam_run"):
        build_dataset("deeplense", CONFIG, "gs://bucket/data", sizes=SIZES)


def test_user_errors_of_workers_are_found():
    wrapped = RuntimeError(
        "Traceback (most recent call last):\n  File ...\n"
        "dlens_tf.errors.UserError: too many halos [while running 'train/FlatMap(_simulate)']\n\n"
    )
    assert str(on_beam.user_error(wrapped)) == "too many halos"
    assert on_beam.user_error(RuntimeError("a defect")) is None


def test_overlapping_submits_leave_the_environment_alone(monkeypatch):
    """The second one begins before the first is done, and would end after it."""
    seen = []

    class Pool:
        def __init__(self, *_):
            pass

        def submit(self, *_):
            seen.append(os.environ["OMP_NUM_THREADS"])
            time.sleep(0.2 * len(seen))

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(generate, "worker_pool", Pool)
    monkeypatch.setattr(on_beam, "_POOLS", {})
    block = generate.Block("model_ii", "axion", 0, 0, 1)
    threads = [threading.Thread(target=on_beam._submit, args=(block,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["1", "1"]
    assert "OMP_NUM_THREADS" not in os.environ


def test_mistake_in_a_worker_is_one_line(build, monkeypatch):
    def examples(*_):
        raise UserError("too many halos")

    monkeypatch.setattr(generate, "block_examples", examples)
    with pytest.raises(UserError, match=r"^too many halos$"):
        build("beam", beam_runner="DirectRunner")


def test_missing_beam_names_the_extra():
    code = (
        "import sys; sys.modules['apache_beam'] = None\n"
        "from dlens_tf.pipeline import on_beam\non_beam.download_arguments('DirectRunner')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        'Apache Beam is not installed; install it with: pip install "dlens_tf[beam]"'
        in (done.stderr.splitlines()[-1])
    )
