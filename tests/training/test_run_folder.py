"""The run folder's files: what they hold, and what damage to them says."""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil

import pytest

from dlens_tf.errors import UserError
from dlens_tf.training.run_folder import (
    RunFolder,
    environment,
    git_commit,
    portable_flags,
    read_flags,
    write_flags,
    write_json,
)


def test_contents(finished_run, tiny_folder):
    names = {path.name for path in finished_run.path.iterdir()}
    assert names == {
        "flags.cfg", "run.json", "environment.json", "checkpoints", "logs", "metrics.jsonl",
        "model.keras",
    }  # fmt: skip
    config = json.loads((finished_run.path / "run.json").read_text())
    expected = {
        "dataset": "deeplense",
        "config": "model_ii_instrument",
        "data_dir": str(tiny_folder.path.parents[2]),
        "dataset_version": "1.0.0",
        "classes": ["axion"],
        "targets": tiny_folder.parameters.select(["log10_m_axion", "source_x"]).to_dicts(),
        "image_shape": [64, 64, 1],
        "pixel_scale": 0.101,
        "instrument": "euclid_vis_2021",
        "recipe": "model_ii_instrument",
        "head": "gaussian",
        "seed": 0,
        "training_examples": 24,
        "num_parameters": finished_run.load_model().count_params(),
        "git_commit": git_commit(),
    }
    assert {name: config[name] for name in expected} == expected
    assert config["model"]["options"]["width"] == 8
    written = json.loads((finished_run.path / "environment.json").read_text())
    assert written["tensorflow"] == importlib.metadata.version("tensorflow")
    assert written["python"] == platform.python_version()
    assert written == {**environment(), "gpus": []}


def test_open_gives_targets_and_model(finished_run):
    run = RunFolder.open(finished_run.path)
    assert run.targets.names == ["log10_m_axion", "source_x"]
    assert run.load_model().input_shape == (None, 64, 64, 1)


def test_not_a_run_folder(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b'{"targets": [', b"[1]", b"{}", b'{"targets": [{"name": 1}]}', b"\xff\xfe"]
)
def test_damaged_run_json(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json is damaged") as info:
        RunFolder.open(tmp_path)
    assert "\n" not in str(info.value)


def test_no_model_yet(finished_run, tmp_path):
    (tmp_path / "run.json").write_bytes(finished_run.config_path.read_bytes())
    with pytest.raises(UserError, match=r"has no model\.keras yet"):
        RunFolder.open(tmp_path).load_model()


@pytest.mark.parametrize("key", ["dataset", "instrument", "pixel_scale", "num_parameters"])
def test_incomplete_run_json(finished_run, tmp_path, key):
    config = json.loads(finished_run.config_path.read_text())
    del config[key]
    (tmp_path / "run.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_damaged_model(finished_run, tmp_path, kept):
    (tmp_path / "run.json").write_bytes(finished_run.config_path.read_bytes())
    whole = finished_run.model_path.read_bytes()
    (tmp_path / "model.keras").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match=r"model\.keras is damaged") as info:
        RunFolder.open(tmp_path).load_model()
    assert "\n" not in str(info.value)


def test_flags_round_trip(tmp_path):
    flags = {"classes": ["axion", "cdm"], "jit": ["true"], "data_dir": ["a b=c --d"], "e": [""]}
    write_flags(tmp_path / "flags.cfg", flags)
    assert read_flags(tmp_path / "flags.cfg") == flags


@pytest.mark.parametrize("content", [b"--jit\n", b"\xff\xfe\n", b"\n"])
def test_damaged_flags(tmp_path, content):
    (tmp_path / "flags.cfg").write_bytes(content)
    with pytest.raises(UserError, match=r"flags\.cfg is damaged") as info:
        read_flags(tmp_path / "flags.cfg")
    assert "\n" not in str(info.value)


def test_portable_flags():
    flags = {
        "run_dir": ["/home/someone/runs/a"],
        "data_dir": ["/scratch/data"],
        "warm_start": ["/home/someone/runs/before"],
        "targets": ["a", "b"],
        "galaxies": ["galaxies/mine"],
    }
    assert portable_flags(flags, "runs/b") == {
        "run_dir": ["runs/b"],
        "data_dir": ["data"],
        "warm_start": ["runs/before"],
        "targets": ["a", "b"],
        "galaxies": ["<catalogue mine>"],
    }


def test_evaluation_of_the_present_model(evaluated_run, tmp_path):
    run = RunFolder(shutil.copytree(evaluated_run, tmp_path / "run"))
    path = run.evaluation_dir / "test.json"
    evaluation = run.read_evaluation()
    assert evaluation["num_examples"] == 8
    remedy = rf"; run python tools/evaluate\.py --run_dir={run.path}$"
    path.write_text(json.dumps({**evaluation, "num_available": 9}))
    with pytest.raises(UserError, match=rf"test\.json is of a part of the test split only{remedy}"):
        run.read_evaluation()
    assert run.read_evaluation(allow_part=True)["num_available"] == 9
    path.write_text("{}")
    with pytest.raises(UserError, match=rf"is damaged or of an older version{remedy}"):
        run.read_evaluation()
    path.write_text(json.dumps(evaluation))
    run.recalibration_path.write_text("{}")
    with pytest.raises(UserError, match=rf"recalibration\.json don't belong together{remedy}"):
        run.read_evaluation()
    run.recalibration_path.unlink()
    with run.model_path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=rf"is of another model than .*model\.keras{remedy}"):
        run.read_evaluation()
    path.unlink()
    with pytest.raises(UserError, match=rf"is not evaluated yet{remedy}"):
        run.read_evaluation()


def test_evaluation_of_the_present_recalibration(evaluated_run, tmp_path):
    run = RunFolder(shutil.copytree(evaluated_run, tmp_path / "run"))
    path = run.evaluation_dir / "test.json"
    evaluation = run.read_evaluation()
    run.recalibration_path.write_text("{}")
    told = {"sha256": hashlib.sha256(b"{}").hexdigest()}
    path.write_text(json.dumps({**evaluation, "recalibration": told}))
    os.utime(path, (0, 0))  # the checksum counts, not the age
    assert run.read_evaluation()["recalibration"] == told
    run.recalibration_path.write_text("{ }")
    with pytest.raises(UserError, match=r"recalibration\.json don't belong together"):
        run.read_evaluation()
    # Without a checksum it must be younger.
    path.write_text(json.dumps({**evaluation, "recalibration": {"method": "isotonic"}}))
    age = run.recalibration_path.stat().st_mtime
    os.utime(path, (age + 1, age + 1))
    run.read_evaluation()
    os.utime(path, (age - 1, age - 1))
    with pytest.raises(UserError, match=r"recalibration\.json don't belong together"):
        run.read_evaluation()
    run.recalibration_path.unlink()
    os.utime(path, (age + 1, age + 1))
    with pytest.raises(UserError, match=r"recalibration\.json don't belong together"):
        run.read_evaluation()


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
