"""metrics.jsonl after crashes, and what TensorBoard finds."""

import json
import os

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlens_tf.errors import UserError
from dlens_tf.training.logger import RunLogger


def _line(step: int) -> str:
    return json.dumps({"step": step, "split": "train", "loss": 1.0 / step}) + "\n"


def test_resuming_drops_later_lines_and_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(_line(2) + _line(3) + _line(4) + _line(5)[:-9])
    RunLogger(path, tmp_path / "logs", resumed_step=3).close()
    assert path.read_text() == _line(2) + _line(3)


def test_appends(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        logger = RunLogger(path, tmp_path / "logs", resumed_step=step - 1)
        logger.scalars("train", step, {"loss": 1.0 / step})
        logger.close()
    assert path.read_text() == _line(1) + _line(2)


@pytest.mark.parametrize("damage", ["{oops\n", "[1, 2]\n", '{"split": "train"}\n', "\n"])
def test_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_text(_line(1) + damage + _line(2))
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged at line 2") as info:
        RunLogger(path, tmp_path / "logs", resumed_step=9)
    assert "\n" not in str(info.value)
    assert path.read_text() == _line(1) + damage + _line(2)


def test_rewriting_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text(_line(1) + _line(2))

    def fail(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"can't write .*metrics\.jsonl: No space left"):
        RunLogger(path, tmp_path / "logs", resumed_step=1)
    assert path.read_text() == _line(1) + _line(2)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_numbers_that_json_lacks_are_refused(tmp_path):
    logger = RunLogger(tmp_path / "metrics.jsonl", tmp_path / "logs", resumed_step=0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        logger.scalars("train", 1, {"loss": float("nan")})
    logger.close()


def _events(folder) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


def test_tensorboard_shows_scalars(finished_run, read_metrics):
    lines = read_metrics(finished_run.path)
    errors = {"mae/log10_m_axion", "mae/source_x"}
    for split, tags in [
        ("train", {"loss", "nll", "learning_rate", "gradient_norm", "images_per_second", *errors}),
        ("validation", {"nll", *errors}),
    ]:
        events = _events(finished_run.logs_dir / split)
        assert tags <= set(events.Tags()["tensors"])
        # The same numbers as in metrics.jsonl.
        for tag in tags - {"images_per_second"}:
            shown = [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]
            kept = [(line["step"], line[tag]) for line in lines if line["split"] == split]
            assert [step for step, _ in shown] == [step for step, _ in kept]
            assert [v for _, v in shown] == pytest.approx([v for _, v in kept], rel=1e-6)


def test_tensorboard_shows_pictures(finished_run):
    events = _events(finished_run.logs_dir / "validation")
    for tag, steps in [
        ("predicted/log10_m_axion", [3, 6]),
        ("predicted/source_x", [3, 6]),
        ("samples", [3]),
    ]:
        assert [e.step for e in events.Tensors(tag)] == steps
        width, height, png = tf.make_ndarray(events.Tensors(tag)[0].tensor_proto)
        assert tf.io.decode_png(png).shape == (int(height), int(width), 3)
