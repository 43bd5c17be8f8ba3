import json
import shutil

import pytest

from dlens_tf.errors import UserError
from dlens_tf.training.cost import format_minutes, training_cost
from dlens_tf.training.run_folder import RunFolder


def test_cost_of_a_run(evaluated_run):
    cost = training_cost(RunFolder(evaluated_run))
    assert (cost.steps, cost.batch_size, cost.images) == (6, 8, 48)
    assert cost.minutes == pytest.approx(24 / 0.4 / 60 + 24 / 0.1 / 60)
    assert cost.machine == "2 CPU cores"
    assert cost.curve == (
        {"images": 24, "mae": {"log10_m_axion": 0.6, "source_x": 0.3}},
        {"images": 48, "mae": {"log10_m_axion": 0.5, "source_x": 0.2}},
    )


def test_cost_of_a_real_training(finished_run):
    cost = training_cost(finished_run)
    assert cost.images == cost.steps * cost.batch_size == 48
    assert [point["images"] for point in cost.curve] == [24, 48]
    assert 0.0 < cost.minutes < 10.0
    assert cost.curve[-1]["mae"].keys() == {"log10_m_axion", "source_x"}


def test_cost_of_an_ensemble_is_that_of_its_members(evaluated_run, tmp_path):
    config = json.loads((evaluated_run / "run.json").read_text())
    ensemble = RunFolder(tmp_path / "ensemble")
    ensemble.path.mkdir()
    for members, images in [
        ([evaluated_run, evaluated_run], 96),
        ([evaluated_run, tmp_path / "gone"], None),
        ([], None),
    ]:
        content = {**config, "members": [{"run": str(member)} for member in members]}
        ensemble.config_path.write_text(json.dumps(content))
        cost = training_cost(RunFolder(ensemble.path))
        assert (cost and cost.images) == images
        if cost:
            assert (cost.steps, cost.machine, cost.curve) == (12, "2 CPU cores", ())
            assert cost.minutes == pytest.approx(10.0)


def test_kept_front_end_and_start_run_are_part_of_the_cost(evaluated_run, tmp_path):
    """Members that share a filled folder, seed and start count these once."""

    def write(name: str, **changes) -> RunFolder:
        folder = shutil.copytree(evaluated_run, tmp_path / name)
        config = {**json.loads((folder / "run.json").read_text()), **changes}
        (folder / "run.json").write_text(json.dumps(config))
        return RunFolder(folder)

    simulated = {"data": "simulate:model_ii_instrument", "training_examples": 24}
    start = write("start", **simulated)
    kept = {
        **simulated, "cache": "front_end", "front_end_dir": "/kept", "front_end_seconds": 90.0,
        "start_run": str(start.path),
    }  # fmt: skip
    runs = [write("a", **kept), write("b", **kept)]
    cost = training_cost(runs[0])
    assert (cost.images, cost.distinct_images, cost.front_end_minutes) == (48, 24, 1.5)
    assert cost.minutes == pytest.approx(6.5)
    assert (cost.start.images, cost.start.distinct_images, cost.start.curve) == (48, 48, ())
    together = {"members": [{"run": str(run.path)} for run in runs]}
    both = write("both", **together)
    both.metrics_path.unlink()
    cost = training_cost(both)
    assert (cost.images, cost.distinct_images, cost.front_end_minutes) == (96, 24, 1.5)
    assert (cost.minutes, cost.start.images) == (pytest.approx(11.5), 48)
    other = write("other", **{**kept, "seed": 5, "front_end_dir": "/b", "start_run": "/gone"})
    assert training_cost(other).start is None
    mixed = write("mixed", members=[{"run": str(run.path)} for run in (runs[0], other)])
    mixed.metrics_path.unlink()
    cost = training_cost(mixed)
    assert (cost.distinct_images, cost.front_end_minutes) == (48, 3.0)


def test_cost_holds_that_of_the_weights_to_begin_with(evaluated_run, tmp_path):
    """A chain of runs, and an ensemble of two of its ends: each run counts once."""

    def write(name: str, **changes) -> RunFolder:
        folder = shutil.copytree(evaluated_run, tmp_path / name)
        config = {"training_examples": 24, **json.loads((folder / "run.json").read_text())}
        (folder / "run.json").write_text(json.dumps({**config, **changes}))
        return RunFolder(folder)

    start = write("start")
    stored = write("stored", start_run=str(start.path))
    easy = {"data": "simulate:model_ii_instrument", "initial_run": str(stored.path)}
    simulated = write("simulated", **easy, start_run=str(start.path))
    ends = [write(name, initial_run=str(simulated.path)) for name in ("a", "b")]
    cost = training_cost(ends[0])
    assert (cost.images, cost.steps, cost.batch_size) == (3 * 48, 3 * 6, 8)
    assert cost.distinct_images == 24 + 48  # first and last on the same stored images
    assert (cost.minutes, cost.initial_minutes) == (pytest.approx(15.0), pytest.approx(10.0))
    assert [point["images"] for point in cost.curve] == [96 + 24, 96 + 48]
    assert (cost.start.images, cost.start.initial_minutes) == (48, 0.0)
    ensemble = write("ensemble", members=[{"run": str(run.path)} for run in ends])
    ensemble.metrics_path.unlink()
    cost = training_cost(ensemble)
    assert (cost.images, cost.distinct_images, cost.curve) == (4 * 48, 24 + 48, ())
    assert cost.initial_minutes == pytest.approx(10.0)
    assert cost.start.images == 48
    kept = {"cache": "front_end", "front_end_dir": "/kept"}  # nobody knows how long this took
    known = {**kept, "front_end_dir": "/own", "front_end_seconds": 90.0}
    last = write("last", **known, initial_run=str(write("older", **kept).path))
    cost = training_cost(last)
    assert (cost.minutes, cost.initial_minutes) == (pytest.approx(11.5), pytest.approx(5.0))
    assert cost.front_end_minutes is None
    shutil.rmtree(stored.path)
    assert training_cost(ends[0]) is None


def test_runs_that_do_not_say_how_they_were_cached(evaluated_run, tmp_path):
    run = RunFolder(shutil.copytree(evaluated_run, tmp_path / "run"))
    assert run.cache is None
    with open(run.flags_path, "a") as stream:
        stream.write("--cache=front_end\n")
    assert run.cache == "front_end"
    cost = training_cost(run)
    assert (cost.front_end_minutes, cost.minutes) == (None, pytest.approx(5.0))


def test_machines_and_damage(evaluated_run, tmp_path):
    run = RunFolder(shutil.copytree(evaluated_run, tmp_path / "run"))
    for environment, text in [
        ({"cpus": 1}, "1 CPU core"),
        ({"cpus": 16, "gpus": ["NVIDIA H100", "NVIDIA H100"]}, "2 × NVIDIA H100"),
    ]:
        run.environment_path.write_text(json.dumps(environment))
        assert training_cost(run).machine == text
    run.environment_path.write_text("{}")
    with pytest.raises(UserError, match=r"environment\.json is damaged"):
        training_cost(run)
    run.metrics_path.write_text('{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl or .*flags\.cfg is damaged"):
        training_cost(run)
    run.metrics_path.unlink()
    assert training_cost(run) is None


def test_format_minutes():
    assert [format_minutes(m) for m in (0.7, 99.4, 100.0, 180.0)] == [
        "42 seconds", "99 minutes", "1.7 hours", "3.0 hours",
    ]  # fmt: skip
