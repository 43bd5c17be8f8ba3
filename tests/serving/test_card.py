import dataclasses
import json
from types import SimpleNamespace

import pytest

from dlens_tf.models import HEADS
from dlens_tf.models.ensemble import EnsembleHead
from dlens_tf.serving import card
from dlens_tf.training.cost import TrainingCost


def test_every_head_has_words():
    assert set(card._HEADS) == {*HEADS, EnsembleHead.kind}


@pytest.mark.parametrize(
    ("data", "cache", "text"),
    [
        ("dataset", "memory", "5,000 lenses of stored, classes axion"),
        (
            "simulate:model_iii",
            "memory",
            "lenses of the recipe `model_iii`, classes axion, simulated meanwhile, each seen once",
        ),
        (
            "simulate:model_iii",
            "front_end",
            "5,000 lenses of the recipe `model_iii`, classes axion, simulated before and seen in "
            "every epoch",
        ),
    ],
)
def test_training_data(data, cache, text):
    contents = SimpleNamespace(data=data, cache=cache, training_examples=5000)
    assert card._training_data(contents, "stored", "axion") == text


def test_both_tests_of_the_pit_are_told(evaluated_run):
    evaluation = json.loads((evaluated_run / "evaluation" / "test.json").read_text())
    entry = evaluation["parameters"]["source_x"]
    before = entry["calibration"]["before"]
    before["pit"]["chi2"]["p_value"] = 0.0123
    told = "Pearson's χ² test of the PIT histogram gives p = 0.012 (as the network says)."
    assert told in "\n".join(card._quality("source_x", entry, {}))
    after = {**before, "pit": {**before["pit"], "chi2": {"p_value": 1e-9}}}
    entry["calibration"]["after"] = after
    told = "gives p = 0.012 (as the network says), <0.0001 (recalibrated)."
    assert told in "\n".join(card._quality("source_x", entry, {}))


def test_standard_deviation_of_splines():
    for head, is_said in [
        ({"kind": "spline", "bins": 24}, True),
        ({"kind": "ensemble", "members": [{"kind": "gaussian"}, {"kind": "spline"}]}, True),
        ({"kind": "ensemble", "members": [{"kind": "gaussian"}]}, False),
        ({"kind": "flow", "bins": 16}, False),
    ]:
        assert any("standard deviation" in limit for limit in card._tails(head)) == is_said


def test_cost_tells_distinct_images_from_those_seen():
    cost = TrainingCost(48_000, 24_000, 750, 64, 90.0, 30.0, "2 CPU cores", (), None)
    assert card._cost(cost) == (
        "750 steps, 24,000 distinct images simulated, 48,000 images seen, 90 minutes on 2 CPU "
        "cores, of which 30 minutes to fit the lenses"
    )
    later = dataclasses.replace(cost, initial_minutes=12.0)
    assert (
        card._cost(later)
        == card._cost(cost) + ", of which 12 minutes for the weights to begin with"
    )
    older = dataclasses.replace(cost, distinct_images=None, front_end_minutes=None)
    assert card._cost(older) == "750 steps, 48,000 images seen, 90 minutes on 2 CPU cores"
