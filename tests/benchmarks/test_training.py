import json
import subprocess
import sys
from pathlib import Path

import pytest
from dlens_tf.benchmarks import training
from dlens_tf.benchmarks.report import Report, measure, summary
from dlens_tf.benchmarks.training import MODEL, PLAN, TARGETS, UNTIMED_STEPS, Options

from dlens_tf.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# In a process of its own: two tools would define the same flags.
QUICKSTART = """
import dataclasses, json
from absl import flags
from dlens_tf.tools import train

flags.FLAGS(["train", "--flagfile=configs/quickstart.flags", "--run_dir=run"])
print(json.dumps(dataclasses.asdict(train.run_options())))
"""


def test_the_network_is_the_quickstart_s():
    command = [sys.executable, "-c", QUICKSTART]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    options = json.loads(done.stdout)
    assert options["model"] == MODEL
    assert {name: options["plan"][name] for name in PLAN} == PLAN
    assert tuple(options["targets"]) == TARGETS
    assert options["batch_size"] == Options().batch_size
    assert options["config"] == Options().config


def test_the_first_steps_are_not_timed(monkeypatch):
    clock = {"now": 0.0, "steps": 0}

    def step():
        clock["steps"] += 1
        clock["now"] += 100.0 if clock["steps"] <= UNTIMED_STEPS else 0.5

    monkeypatch.setattr(training.time, "perf_counter", lambda: clock["now"])
    assert training._rate(step, 4, 32) == pytest.approx(32 / 0.5)
    assert clock["steps"] == UNTIMED_STEPS + 4


def test_table():
    row = {"images_per_measurement": 64}
    rows = [
        {"data": "cached TFRecords", "loss_percent": 0.0, **row, **summary([200.0])},
        {"data": "simulate:a", "loss_percent": 12.5, **row, **summary([170.0, 175.0, 180.0])},
    ]
    settings = {"config": "a", "batch_size": 32, "repeats": 3}
    text = training.table(Report("training", settings, {}, "", rows))
    assert "| cached TFRecords | 200 | 200 | 200 | – |" in text
    assert "| simulate:a | 175 | 170 | 180 | 12.5 % |" in text


def test_a_recipe_without_a_fixed_macro_model_is_refused(tmp_path):
    from dlens_tf.pipeline.build import build_dataset

    sizes = {"train": 4, "validation": 1, "test": 1}
    build_dataset("deeplense", "model_ii", tmp_path, sizes=sizes, num_shards=1, workers=1)
    options = Options(data_dir=str(tmp_path), config="model_ii", batch_size=2)
    with pytest.raises(UserError, match="smooth_residual"):
        next(training.run(options))


@pytest.mark.slow
def test_both_trainings(tiny_data_dir):
    options = Options(data_dir=str(tiny_data_dir), batch_size=8, images=16, repeats=2)
    report = measure("training", options, None)
    names = [row["data"] for row in report.rows]
    assert names == ["cached TFRecords", "simulate:model_ii_instrument"]
    for row in report.rows:
        assert len(row["rates"]) == 2 and min(row["rates"]) > 0
    cached, simulated = (row["median"] for row in report.rows)
    assert report.rows[1]["loss_percent"] == pytest.approx(100 * (cached - simulated) / cached)
    assert "| simulate:model_ii_instrument | " in report.markdown()
