import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from dlens_tf.benchmarks import information_limit
from dlens_tf.benchmarks.information_limit import (
    Options,
    limit,
    stratified_mean,
    table,
    truth_of,
)
from dlens_tf.benchmarks.report import Report, measure

from dlens_tf.errors import UserError
from dlens_tf.inference.cells import ACCURACY
from dlens_tf.simulation.recipes import get_recipe

RECIPE = "model_ii_instrument"
REPORTS = Path(__file__).parents[2] / "docs" / "information_limit"


class StandIn:
    """In place of the brute force: posteriors that are right."""

    def __init__(self, recipe):
        self.recipe = recipe


def stand_in_row(exact, seed, index):
    rng = np.random.default_rng([seed, index])
    truth = truth_of(exact.recipe, seed, index)
    width = 0.02 if truth < -23.0 else 0.2
    return {
        "recipe": exact.recipe.name,
        "index": index,
        "truth": truth,
        "median": truth + width * rng.normal(),
        "expected_error": width,
        "rank": rng.uniform(),
        "doubt": 0.3 if index == 7 else 0.05,
        "unconverged_mass": 0.02 if index < 2 else 0.0,
        "points": 800 + index,
    }


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(information_limit, "BruteForce", StandIn)
    monkeypatch.setattr(information_limit, "image_row", stand_in_row)


def test_truths_fill_the_prior_evenly():
    recipe = get_recipe(RECIPE)
    for seed in (0, 1):
        truths = np.array([truth_of(recipe, seed, index) for index in range(64)])
        assert np.histogram(truths, np.linspace(-24, -22, 9))[0].tolist() == [8] * 8
    assert truth_of(recipe, 0, 5) != truth_of(recipe, 1, 5)


def test_stratified_mean_weighs_bins_equally():
    truth = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.9])
    values = np.array([1.0, 2.0, 3.0, 2.0, 10.0, 14.0])
    estimate = stratified_mean(values, truth, np.array([0.0, 0.5, 1.0]))
    assert estimate.bins == (2.0, 12.0)
    assert estimate.value == 7.0
    errors = np.std([1, 2, 3, 2], ddof=1) / 2.0, np.std([10, 14], ddof=1) / np.sqrt(2.0)
    assert estimate.error == pytest.approx(np.hypot(*errors) / 2.0)


def test_few_images_have_an_error_all_the_same():
    one = stratified_mean(np.array([0.3]), np.array([0.1]), np.array([0.0, 0.5, 1.0]))
    assert one.value == 0.3 and np.isnan(one.error) and np.isnan(one.bins[1])
    values = np.array([1.0, 3.0])
    two = stratified_mean(values, np.array([0.1, 0.9]), np.array([0.0, 0.5, 1.0]))
    assert two.error == pytest.approx(1.0)


def test_report_has_limit_bins_and_coverage(quick):
    report = measure("information_limit", Options([RECIPE], 64), None)
    assert report.complete and len(report.rows) == 64
    text = report.markdown()
    assert f"| {RECIPE} | 64 | 0.1100 ± 0.0000 |" in text
    assert f"| {RECIPE} |" + 4 * " 0.0200 |" + 4 * " 0.2000 |" in text
    assert "| recipe | in 50 % | in 68 % | in 90 % | in 95 % | p of uniform ranks |" in text
    assert f"| {RECIPE} | 1 | 0.30 | 2 | 2.0 % | 832 |" in text
    old = [{k: v for k, v in row.items() if k != "doubt"} for row in report.rows]
    assert f"| {RECIPE} | – | – | – | – | – |" in table(dataclasses.replace(report, rows=old))
    found = limit(RECIPE, report.rows)
    assert found.mae == 0.11 and found.mae_error == 0.0
    assert found.bin_edges == get_recipe(RECIPE).information_limit.bin_edges
    assert found.bin_mae == (0.02,) * 4 + (0.2,) * 4


def test_a_later_run_goes_on_where_the_first_stopped(quick, tmp_path, monkeypatch):
    output = tmp_path / "limit.json"
    measure("information_limit", Options([RECIPE], 5), output)
    first = json.loads(output.read_text())["rows"]
    asked = []

    def row(exact, seed, index):
        asked.append(index)
        return stand_in_row(exact, seed, index)

    monkeypatch.setattr(information_limit, "image_row", row)
    report = measure("information_limit", Options([RECIPE], 8), output)
    assert asked == [5, 6, 7]
    assert report.rows[:5] == first
    assert [r["index"] for r in Report.read(output).rows] == list(range(8))
    with pytest.raises(UserError, match="holds results of seed 0, not 1; name another file"):
        measure("information_limit", Options([RECIPE], 8, seed=1), output)


def test_ctrl_c_keeps_what_is_done(quick, tmp_path, monkeypatch):
    def interrupted(exact, seed, index):
        if index == 3:
            raise KeyboardInterrupt
        return stand_in_row(exact, seed, index)

    monkeypatch.setattr(information_limit, "image_row", interrupted)
    output = tmp_path / "limit.json"
    report = measure("information_limit", Options([RECIPE], 8), output)
    assert not report.complete and len(Report.read(output).rows) == 3


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ([], "there is no recipe"),
        (["model_v"], "unknown recipe 'model_v'"),
        (["model_ii_legacy"], "has no noise: its information limit is 0"),
        (["wdm"], "recipe wdm has no vortex"),
    ],
)
def test_recipes_without_a_limit_are_refused(recipes, message):
    with pytest.raises(UserError, match=message):
        Options(recipes)


@pytest.mark.slow
def test_an_image_gives_the_same_row_again():
    exact = information_limit.BruteForce(get_recipe(RECIPE))
    row = information_limit.image_row(exact, 3, 1)
    assert row == information_limit.image_row(exact, 3, 1)
    assert abs(row["median"] - row["truth"]) < 6.0 * row["stddev"]
    assert row["quantiles"] == sorted(row["quantiles"])
    assert row["doubt"] < ACCURACY or row["points"] >= 1500  # as far as it went, or may go
    assert row["unconverged_mass"] < 0.01 and row["points"] > 100


@pytest.mark.parametrize("name", ["model_ii", "model_iii"])
def test_recipes_have_the_limits_that_were_measured(name):
    report = Report.read(REPORTS / f"{name}.json")
    measured, stated = limit(name, report.rows), get_recipe(name).information_limit
    assert report.complete
    assert (measured.parameter, measured.source) == (stated.parameter, stated.source)
    assert measured.mae == pytest.approx(stated.mae, abs=5e-4)
    assert measured.mae_error == pytest.approx(stated.mae_error, abs=2e-3)
    np.testing.assert_allclose(measured.bin_mae, stated.bin_mae, atol=5.1e-4)


@pytest.mark.parametrize("name", ["model_i_legacy", "model_ii_instrument", "model_iii_instrument"])
def test_limits_of_a_fixed_lens_are_those_that_another_code_found(name):
    report = Report.read(REPORTS / f"{name}.json")
    measured, stated = limit(name, report.rows), get_recipe(name).information_limit
    assert report.complete and measured.parameter == stated.parameter
    error = math.hypot(measured.mae_error, stated.mae_error)
    assert measured.mae == pytest.approx(stated.mae, abs=2.0 * error)
