"""The table of results and the document that it is printed in."""

import json
import re
import shutil

import pytest

from dlens_tf.errors import UserError
from dlens_tf.evaluation.results import (
    SNR_COVERAGE,
    add_result,
    check_results,
    print_results,
    read_results,
    render_document,
    results_table,
)
from dlens_tf.io.files import file_checksum
from dlens_tf.simulation.recipes import RECIPES

DOCUMENT = (
    "# Results\n\n<!-- results: model_ii_instrument -->\nold\n<!-- end of results -->\n\nEnd.\n"
)


def write_result(folder, row="cnn", config="model_i_legacy", mae=0.2, **changes):
    """A result written by hand."""
    path = folder / config / f"{row}.json"
    path.parent.mkdir(parents=True, exist_ok=True)

    def estimate(value, error):
        return {"value": value, "standard_error": error}

    metrics = {
        "mae": estimate(mae, 0.003),
        "nll": estimate(-0.5, 0.02),
        "crps": estimate(0.15, 0.002),
        **{f"coverage_{n}": estimate(n / 100.0, 0.007) for n in (50, 68, 90, 95)},
    }
    entry = {
        "name": "log10_m_axion",
        "prior": {"kind": "uniform", "low": -24.0, "high": -22.0},
        "metrics": metrics,
        "by_truth": [],
        "by_snr": [],
        "calibration": {},
        "baselines": {
            "centre": {"name": "prior's centre", "metrics": {"mae": estimate(0.5, 0.004)}},
            "linear": {"name": "linear regression", "metrics": {"mae": estimate(0.37, 0.003)}},
        },
    }
    cost = {
        "images": 400_000,
        "steps": 6250,
        "batch_size": 64,
        "minutes": 90.2,
        "machine": "2 CPU cores",
        "curve": [{"images": 1000, "mae": {"log10_m_axion": 0.4}}],
    }
    content = {
        "format_version": 1,
        "name": row,
        "description": "a network",
        "num_parameters": 690_290,
        "git_commit": None,
        "dataset": {"config": config, "recipe": config},
        "num_examples": 5000,
        "cost": cost,
        "parameters": {"log10_m_axion": entry},
        **changes,
    }
    path.write_text(json.dumps(content))
    return path


def test_table_has_every_row(tmp_path):
    write_result(tmp_path, "cnn", mae=0.2)
    write_result(tmp_path, "ensemble", mae=0.195, cost=None)
    write_result(tmp_path, "vit", mae=0.25, num_examples=1000)
    [results] = read_results(tmp_path)
    lines = results_table(results, results.targets["log10_m_axion"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == [
        "predictor", "MAE", "MAE / limit", "in 50 %", "in 68 %", "in 90 %", "in 95 %", "CRPS",
        "NLL", "weights", "images seen", "training",
    ]  # fmt: skip
    published = sorted(RECIPES["model_i_legacy"].published, key=lambda r: r.mae)
    assert len(published) > 5
    assert [row[0] for row in cells[2:]] == [
        "prior's centre",
        "linear regression",
        *(f"{result.model} (published)" for result in published[4::-1]),
        "**`vit`**",
        "**`cnn`**",
        "**`ensemble`**",
        "information limit",
    ]
    rows = {row[0]: row[1:] for row in cells[2:]}
    # 0.2 / 0.189 = 1.058; relative errors 0.003 / 0.2 and 0.002 / 0.189 add up to 0.0184.
    assert rows["**`cnn`**"] == [
        "0.200 ± 0.003", "1.058 ± 0.019", "0.500 ± 0.007", "0.680 ± 0.007", "0.900 ± 0.007",
        "0.950 ± 0.007", "0.150 ± 0.002", "-0.50 ± 0.02", "690,290", "400,000",
        "90 minutes, 2 CPU cores",
    ]  # fmt: skip
    assert rows["**`ensemble`**"][-3:] == ["690,290", "", ""]
    assert rows["information limit"][:2] == ["0.189 ± 0.002", ""]


def test_worst_coverage_in_bins_of_signal_to_noise(tmp_path):
    path = write_result(tmp_path)
    content = json.loads(path.read_text())
    content["parameters"]["log10_m_axion"]["by_snr"] = [
        {"metrics": {"coverage_50": {"value": value, "standard_error": error}, "mae": None}}
        for value, error in ((0.52, 0.01), (0.47, 0.02), (0.51, 0.01))
    ]
    path.write_text(json.dumps(content))
    [results] = read_results(tmp_path)
    table = results_table(results, results.targets["log10_m_axion"]).splitlines()
    column = [cell.strip() for cell in table[0].split("|")].index(SNR_COVERAGE)
    cells = {row.split("|")[1].strip(): row.split("|")[column].strip() for row in table}
    assert cells["**`cnn`**"] == "0.03 ± 0.02"
    assert cells["information limit"] == cells["linear regression"] == ""


def test_row_says_what_of_its_cost_came_before(tmp_path):
    path = write_result(tmp_path)
    content = json.loads(path.read_text())
    content["cost"] |= {"initial_minutes": 30.0, "start": {"minutes": 7.0}}
    path.write_text(json.dumps(content))
    [results] = read_results(tmp_path)
    assert (
        "| 90 minutes, 2 CPU cores, of which 30 minutes for the weights to begin with; before, the "
        "network to start from: 7 minutes |"
    ) in results_table(results, results.targets["log10_m_axion"])


def test_noise_free_data_have_no_limit(tmp_path):
    write_result(tmp_path, config="model_ii_legacy")
    [results] = read_results(tmp_path)
    table = results_table(results, results.targets["log10_m_axion"])
    assert "MAE / limit" not in table
    assert "| information limit | 0 (no noise) |" in table


def test_document_keeps_what_is_written_by_hand(tmp_path):
    write_result(tmp_path, "cnn", "model_ii_instrument")
    write_result(tmp_path, "vit", "model_ii_instrument", num_examples=1000)
    results = read_results(tmp_path)
    text = render_document(DOCUMENT, results)
    assert text.startswith("# Results\n\n<!-- results: model_ii_instrument -->\n\nMAE and CRPS of ")
    assert text.endswith("\n<!-- end of results -->\n\nEnd.\n")
    assert "old" not in text
    assert "in dex, 5,000 test images (`vit` 1,000)." in text
    assert "](images/cost_model_ii_instrument.png)" in text
    assert render_document(text, results) == text
    write_result(tmp_path, "cnn", "model_iii_legacy")
    with pytest.raises(UserError, match="needs one place for model_iii_legacy: lines '<!-- res"):
        render_document(text, read_results(tmp_path))
    assert "-->\n\nNo results yet.\n\n<!-- end" in render_document(text, [])


def test_members_of_an_ensemble_are_named(tmp_path):
    made = {"members": ["runs/model_ii_instrument_cnn", "runs/other"], "tta": "none"}
    write_result(tmp_path, "ensemble", "model_ii_instrument", **made)
    write_result(tmp_path, "turned", "model_ii_instrument", **{**made, "tta": "rot180"})
    write_result(tmp_path, "older", "model_ii_instrument")
    text = render_document(DOCUMENT, read_results(tmp_path))
    for line in (
        "- `ensemble`: a network, of cnn, other",
        "- `turned`: a network, of cnn, other, turned by rot180",
        "- `older`: a network",
    ):
        assert f"\n{line}\n" in text


def test_what_makes_the_row_again_is_kept(evaluated_run, tmp_path):
    kept = json.loads(add_result(evaluated_run, "model_ii_instrument/a", tmp_path).read_text())
    assert kept["recalibration"] is None and not {"members", "tta"} & set(kept)
    run = tmp_path / "run"
    shutil.copytree(evaluated_run, run)
    (run / "metrics.jsonl").unlink()
    (run / "recalibration.json").write_text("{}")
    config = json.loads((run / "run.json").read_text())
    config |= {"members": [{"run": f"/home/me/runs/model_{n}"} for n in "ab"], "tta": "rot180"}
    (run / "run.json").write_text(json.dumps(config))
    evaluation = json.loads((run / "evaluation" / "test.json").read_text())
    evaluation["recalibration"] = {
        "method": "isotonic",
        "sha256": file_checksum(run / "recalibration.json"),
        "num_examples": 2000,
        "split": "calibration",
    }
    (run / "evaluation" / "test.json").write_text(json.dumps(evaluation))
    kept = json.loads(add_result(run, "model_ii_instrument/b", tmp_path).read_text())
    assert kept["recalibration"] == {"method": "isotonic", "split": "calibration"}
    assert (kept["members"], kept["tta"]) == (["runs/model_a", "runs/model_b"], "rot180")


def test_add_print_and_check(evaluated_run, tmp_path):
    document = tmp_path / "results.md"
    document.write_text(DOCUMENT)
    (tmp_path / "images").mkdir()
    folder = tmp_path / "results"
    path = add_result(evaluated_run, "model_ii_instrument/tiny", folder)
    assert path == folder / "model_ii_instrument" / "tiny.json"
    assert path.stat().st_size < 40_000
    with pytest.raises(UserError, match=r"results\.md is not what .*results says; run python too"):
        check_results(folder, document)
    picture = tmp_path / "images" / "cost_model_ii_instrument.png"
    assert print_results(folder, document) == [document, picture]
    assert picture.read_bytes().startswith(b"\x89PNG")
    check_results(folder, document)
    text = document.read_text()
    evaluation = json.loads((evaluated_run / "evaluation" / "test.json").read_text())
    for name in ("log10_m_axion", "source_x"):
        metrics = evaluation["parameters"][name]["metrics"]
        shown = re.search(
            rf"`{name}` in (?:dex|arcsec), 8 test images.*?\*\*`tiny`\*\* \| (\S+) ± (\S+) \|",
            text,
            re.DOTALL,
        )
        assert float(shown[1]) == pytest.approx(metrics["mae"]["value"], rel=0.1)
        assert float(shown[2]) == pytest.approx(metrics["mae"]["standard_error"], rel=0.5)
    flags = path.with_suffix(".flags").read_text()
    assert "--run_dir=runs/model_ii_instrument_tiny\n" in flags and "--data_dir=data\n" in flags
    assert str(tmp_path.parent) not in path.read_text() + flags


def test_curve_is_the_validation_error(evaluated_run, tmp_path):
    content = json.loads(add_result(evaluated_run, "model_ii_instrument/a", tmp_path).read_text())
    assert [point["images"] for point in content["cost"]["curve"]] == [24, 48]
    assert content["cost"]["curve"][1]["mae"]["source_x"] == 0.2


def test_mistakes(evaluated_run, tmp_path):
    for name in ("model_ii_instrument", "model_ii_instrument/", "model_ii_instrument/A b", "a/b/c"):
        with pytest.raises(UserError, match="write <data set>/<row>"):
            add_result(evaluated_run, name, tmp_path)
    with pytest.raises(UserError, match="is evaluated on model_ii_instrument"):
        add_result(evaluated_run, "model_i_legacy/cnn", tmp_path)
    with pytest.raises(UserError, match="holds no results"):
        read_results(tmp_path)
    path = write_result(tmp_path)
    shutil.copy(path, path.with_name("other.json"))
    with pytest.raises(UserError, match=r"other\.json is no result"):
        read_results(tmp_path)
    path.with_name("other.json").write_text("{")
    with pytest.raises(UserError, match=r"other\.json is no result"):
        read_results(tmp_path)
    with pytest.raises(UserError, match="there is no document"):
        check_results(tmp_path, tmp_path / "none.md")
