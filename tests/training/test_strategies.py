"""Strategies that can be made or refused in a process that has used TensorFlow."""

import json
from types import SimpleNamespace

import pytest
import tensorflow as tf

from dlens_tf.errors import UserError
from dlens_tf.training import strategies


def test_one_device():
    strategy = strategies.make_strategy("one_device")
    assert strategy.num_replicas_in_sync == 1
    assert strategies.is_chief(strategy)


def test_unknown_strategy_lists_the_valid_ones():
    with pytest.raises(UserError, match="valid: one_device, mirrored, multi_worker"):
        strategies.make_strategy("tpu")


def test_logical_devices_come_too_late():
    tf.constant(0.0)
    with pytest.raises(UserError, match="must be set before TensorFlow is used"):
        strategies.make_strategy("mirrored", logical_devices=2)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        "[]",
        json.dumps({"cluster": {"worker": ["localhost:1"]}}),
        json.dumps({"cluster": {"ps": ["localhost:1"]}, "task": {"type": "ps", "index": 0}}),
        json.dumps(
            {"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 9}}
        ),
    ],
)
def test_bad_cluster_description(monkeypatch, text):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="needs the environment variable TF_CONFIG") as info:
        strategies.make_strategy("multi_worker")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("jobs", "task_type", "task_id", "chief"),
    [
        (["worker"], "worker", 0, True),
        (["worker"], "worker", 1, False),
        (["chief", "worker"], "chief", 0, True),
        (["chief", "worker"], "worker", 0, False),
    ],
)
def test_one_worker_is_chief(jobs, task_type, task_id, chief):
    cluster = tf.train.ClusterSpec({job: ["localhost:1", "localhost:2"] for job in jobs})
    resolver = SimpleNamespace(task_type=task_type, task_id=task_id, cluster_spec=lambda: cluster)
    assert strategies.is_chief(SimpleNamespace(cluster_resolver=resolver)) == chief
