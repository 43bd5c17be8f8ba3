import dataclasses
import json

import pytest
from dlens_tf.benchmarks import reading, report
from dlens_tf.benchmarks.report import Report, measure, summary

from dlens_tf.errors import UserError

ROW = {"reader": "ours", "core": 1, "images": 10, "images_read": 20, "image_shape": [4, 4, 1]}


def test_summary_is_of_the_rates():
    assert summary([4.0, 1.0, 3.0, 10.0]) == {
        "median": 3.5, "lowest": 1.0, "highest": 10.0, "rates": [4.0, 1.0, 3.0, 10.0],
    }  # fmt: skip


def test_markdown_table():
    assert report.markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


@pytest.fixture
def three_rows(monkeypatch):
    """Makes the reading suite yield rows of 1, 2, 3 images a second; returns how it ended."""
    state = {"stop": None, "closed": False}

    def run(options):
        assert options.repeats == 1
        try:
            for rate in (1.0, 2.0, 3.0):
                yield ROW | summary([rate])
                if rate == 2.0 and state["stop"]:
                    raise state["stop"]
        finally:
            state["closed"] = True

    monkeypatch.setattr(reading, "run", run)
    return state


def test_measure_keeps_every_row(three_rows, tmp_path):
    path = tmp_path / "results.json"
    result = measure("reading", reading.Options(repeats=1), path)
    assert result.complete
    assert [row["median"] for row in result.rows] == [1.0, 2.0, 3.0]
    content = json.loads(path.read_text())
    assert content == json.loads(json.dumps(dataclasses.asdict(result)))
    assert content["settings"]["num_examples"] == 2000
    assert {"tensorflow", "lenstronomy", "processor", "cores", "load"} <= content["machine"].keys()
    assert Report.read(path) == dataclasses.replace(
        result, settings=content["settings"], rows=content["rows"]
    )
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_an_interrupted_run_keeps_what_it_has(three_rows, tmp_path):
    three_rows["stop"] = KeyboardInterrupt
    path = tmp_path / "results.json"
    result = measure("reading", reading.Options(repeats=1), path)
    assert not result.complete and three_rows["closed"]
    read = Report.read(path)
    assert [row["median"] for row in read.rows] == [1.0, 2.0] and not read.complete
    assert "The run was interrupted" in read.markdown()


def test_markdown_names_machine_and_versions(three_rows):
    result = measure("reading", reading.Options(repeats=1), None)
    machine = {**result.machine, "processor": "A 1000", "git_commit": "0123456789abcdef+changes"}
    text = dataclasses.replace(result, machine=machine, date="2026-01-02T03:04:05").markdown()
    assert "| ours | 3 | 3 | 3 |" in text
    assert "A 1000" in text and "; 2026-01-02; " in text
    assert f"({'012345678'}+changes), TensorFlow {machine['tensorflow']}" in text
    assert "interrupted" not in text


def test_unknown_suite():
    with pytest.raises(UserError, match="unknown suite 'speed'; valid: simulation, reading, train"):
        report.suite_module("speed")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"suite": "reading"}', "\x00"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"is not a result of tools/benchmark\.py"):
        Report.read(path)
