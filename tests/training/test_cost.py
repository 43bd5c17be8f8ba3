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
