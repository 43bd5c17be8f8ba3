import re
import subprocess
import sys
import time

import dlens_tf.datasets.deeplense  # noqa: F401 (registers the builder)
import pytest
import tensorflow_datasets as tfds

SMALL = ("--num_examples=6", "--num_validation=2", "--num_test=3", "--num_shards=2")


@pytest.fixture(scope="module")
def built(run_tool, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    command = ("build_dataset", "--config=model_iii_instrument", f"--data_dir={data_dir}", *SMALL)
    return data_dir, command, run_tool(*command, "--workers=1")


def test_builds_what_tfds_load_reads(built):
    data_dir, _, _ = built
    splits = tfds.load("deeplense/model_iii_instrument", data_dir=data_dir, download=False)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 6, "validation": 2, "test": 3,
    }  # fmt: skip


def test_output_is_one_bar_and_what_was_written(built):
    data_dir, _, done = built
    path = data_dir / "deeplense" / "model_iii_instrument" / "1.0.0"
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "train: 6 examples in 2 shards",
        "validation: 2 examples in 2 shards",
        "test: 3 examples in 2 shards",
        f"wrote {path}",
    ]
    updates = [line for line in done.stderr.splitlines() if line.strip()]
    assert updates[0].startswith("simulate model_iii_instrument:   0%")
    assert all(line.startswith(("simulate model_iii", "write model_iii")) for line in updates)
    assert updates[-1].startswith("write model_iii_instrument: 100%")
    assert "11/11" in updates[-1]
    assert [path.name for path in data_dir.iterdir()] == ["deeplense"]


def test_again_says_complete(built, run_tool):
    _, command, _ = built
    done = run_tool(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("model_iii_instrument/1.0.0 is complete already\n")


def test_other_seed_is_refused(built, run_tool):
    _, command, _ = built
    done = run_tool(*command, "--seed=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "exists with seed 0, not 1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=model_v"], "unknown configuration of deeplense 'model_v'; valid: model_i_leg"),
        (["--config=cdm"], "is of data set dark_matter (--dataset=dark_matter), not deeplense"),
        (["--config=model_i", "--dataset=dark_matter"], "'model_i' is of data set deeplense"),
        (["--config=model_i", "--dataset=imagenet"], "one of <deeplense|dark_matter>"),
        (["--config=model_i", "--engine=slow"], "one of <lenstronomy|fast>"),
        (["--config=model_i", "--galaxies=/x"], "takes no galaxies; leave out --galaxies=/x"),
        (["--config=model_i", "--num_shards=99999999"], "num_shards must be between 1 and"),
        (["--config=model_i", "--beam_options=x=1"], "given without a beam_runner"),
        (["--config=model_i", "--num_examples=0"], "--num_examples=0"),
        (["--config=model_i", "--num_calibration=0"], "--num_calibration=0"),
        (["--config=model_i", "--seed=-1"], "--seed=-1"),
        (["--config=model_i", f"--seed={2**63}"], f"--seed={2**63}"),
        (["--config=model_i", "--data_dir="], "flag --data_dir is missing"),
        (["--config=model_i", "--workers=many"], "--workers=many"),
        (["--config=model_i", "--data_dir=/dev/null/x"], "can't write to /dev/null/x"),
        ([], "flag --config is missing"),
    ],
)
def test_bad_input_gives_one_line(run_tool, arguments, message):
    done = run_tool("build_dataset", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_is_quick(run_tool):
    start = time.monotonic()
    done = run_tool("build_dataset", "--help")
    assert "--num_shards" in done.stdout
    assert re.search(r"--config=model_ii_instrument \\\n +--data_dir=data ", done.stdout)
    # Under a second on an idle core; this leaves room for a busy one.
    assert time.monotonic() - start < 5.0


def test_nothing_heavy_is_imported_for_help():
    code = (
        "import sys, dlens_tf.tools.build_dataset\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'keras', 'lenstronomy', 'astropy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
