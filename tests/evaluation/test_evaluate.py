import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import mean_absolute_error

from dlens_tf.errors import UserError
from dlens_tf.evaluation import evaluate
from dlens_tf.pipeline.reading import open_dataset, read_batches


def stored(data_dir, split="test"):
    folder = open_dataset("deeplense", "model_ii_instrument", data_dir)
    return next(read_batches(folder, split, 100).as_numpy_iterator())


def test_whole_evaluation_by_the_tool(make_run, tiny_data_dir, run_tool):
    run = make_run()
    done = run_tool("evaluate", f"--run_dir={run.path}", "--batch_size=3")
    assert done.returncode == 0, done.stderr
    folder = run.path / "evaluation"
    assert f"report: {folder / 'test.html'}" in done.stdout
    assert re.search(r"^log10_m_axion \[dex\] +MAE +MAE / limit", done.stdout, re.M)
    assert [line.split("  ")[0] for line in done.stdout.splitlines() if " ± " in line] == [
        "this model",
        "linear regression",
        "prior's centre",
        "information limit",
        "this model",
        "linear regression",
        "prior's centre",
    ]

    # Numbers against the model called here, on images read here, and scikit-learn.
    batch = stored(tiny_data_dir)
    outputs = {k: np.asarray(v) for k, v in run.model(batch["image"]).items()}
    result = json.loads((folder / "test.json").read_text(), parse_constant=pytest.fail)
    # It travels with exported models: nothing of this machine is in it.
    assert str(tiny_data_dir.parent) not in json.dumps(result)
    assert (result["num_examples"], result["num_available"]) == (8, 8)
    for i, name in enumerate(run.targets.names):
        entry = result["parameters"][name]
        truth = batch[f"parameters/{name}"]
        assert entry["metrics"]["mae"]["value"] == pytest.approx(
            mean_absolute_error(truth, outputs["mean"][:, i]), rel=1e-4
        )
        centre = next(row for row in entry["rows"] if row["kind"] == "centre")
        middle = np.mean(run.targets[name].prior.support)
        assert centre["metrics"]["mae"]["value"] == pytest.approx(
            np.mean(np.abs(truth - middle)), rel=1e-5
        )
        assert sum(b["count"] for b in entry["by_truth"]) == 8
        assert sum(b["count"] for b in entry["by_snr"]) == 8
        assert entry["rows"][0]["kind"] == "model"
    mass = result["parameters"]["log10_m_axion"]
    assert mass["rows"][-1]["kind"] == "limit"
    assert mass["rows"][0]["mae_over_limit"]["value"] == pytest.approx(
        mass["metrics"]["mae"]["value"] / 0.053
    )
    assert len(mass["limit_by_truth"]) == len(mass["by_truth"]) == 8

    with np.load(folder / "test" / "predictions.npz", allow_pickle=False) as arrays:
        assert arrays["parameters"].tolist() == run.targets.names
        np.testing.assert_allclose(arrays["mean"], outputs["mean"], rtol=1e-5)
        np.testing.assert_allclose(arrays["stddev"], outputs["stddev"], rtol=1e-5)
        np.testing.assert_array_equal(arrays["index"], batch["metadata/index"])
        np.testing.assert_array_equal(arrays["snr"], batch["metadata/snr"])
    plots = {p.name for p in (folder / "test").glob("*.png")}
    assert plots == {
        f"{name}_{plot}.png"
        for name in run.targets.names
        for plot in ("scatter", "residuals", "by_truth", "by_snr", "calibration", "images")
    }
    assert not list(folder.rglob("*.partial"))


def test_point_head_has_no_calibration(make_run):
    run = make_run("point")
    result = evaluate.evaluate_run(run.path, "validation", max_examples=1)
    assert result["num_examples"] == 1
    entry = result["parameters"]["log10_m_axion"]
    assert set(entry["metrics"]) == {"mae", "rmse", "bias", "r2"}
    assert entry["metrics"]["mae"]["standard_error"] is None
    assert not (run.path / "evaluation/validation/log10_m_axion_calibration.png").exists()
    with np.load(run.path / "evaluation/validation/predictions.npz") as arrays:
        assert "stddev" not in arrays


@pytest.mark.parametrize("front_end", ["flux", "smooth_residual"])
def test_front_end_is_said(make_run, front_end):
    run = make_run(model={"backbone": "vit", "front_end": front_end, "options": {}})
    result = evaluate.evaluate_run(run.path, max_examples=3)
    description = f"vit with {front_end} front end and gaussian head"
    assert result["run"]["description"].startswith(description)
    rows = result["parameters"]["log10_m_axion"]["rows"]
    assert rows[0]["source"] == description
    given = [note for note in result["notes"] if "fixed macro-model" in note]
    assert len(given) == (front_end == "smooth_residual")


def test_unknown_recipe_is_said(make_run):
    result = evaluate.evaluate_run(make_run(recipe="model_ix").path, max_examples=3)
    assert any("'model_ix' is unknown" in note for note in result["notes"])
    kinds = [row["kind"] for row in result["parameters"]["log10_m_axion"]["rows"]]
    assert kinds == ["model", "linear", "centre"]


def test_published_numbers_stand_in_the_table(make_run):
    result = evaluate.evaluate_run(make_run(recipe="model_ii_legacy").path, max_examples=3)
    rows = result["parameters"]["log10_m_axion"]["rows"]
    published = [
        (r["name"], r["metrics"]["mae"]["value"]) for r in rows if r["kind"] == "published"
    ]
    assert published[0] == ("ResNet34, ImageNet-pretrained", 0.2162)
    assert all(r["kind"] != "published" for r in result["parameters"]["source_x"]["rows"])


def test_order_and_batches_do_not_matter(make_run):
    run = make_run()
    first = evaluate.evaluate_run(run.path, batch_size=8)
    second = evaluate.evaluate_run(run.path, batch_size=3)
    values = [r["parameters"]["source_x"]["metrics"]["nll"]["value"] for r in (first, second)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_non_finite_predictions_stop(make_run):
    run = make_run()
    weights = run.model.get_weights()
    run.model.set_weights([np.full_like(w, np.nan) for w in weights])
    run.model.save(run.path / "model.keras")
    with pytest.raises(UserError, match="the model's mean is nan for 8 of 8 images"):
        evaluate.evaluate_run(run.path)
    assert not (run.path / "evaluation").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": [32, 32, 1]}, r"images of shape \(64, 64, 1\).*takes \(32, 32, 1\)"),
        ({"config": "model_iii"}, "model_iii.*missing; build it with"),
    ],
)
def test_data_set_that_does_not_fit(make_run, changes, message):
    with pytest.raises(UserError, match=message):
        evaluate.evaluate_run(make_run(**changes).path)


def test_lost_records_stop(make_run, tiny_data_dir, tmp_path):
    shutil.copytree(tiny_data_dir, tmp_path / "data")
    run = make_run(data_dir=str(tmp_path / "data"))
    shard = open_dataset("deeplense", "model_ii_instrument", tmp_path / "data").shards("test")[0]
    (first, *_) = tf.data.TFRecordDataset(shard).as_numpy_iterator()
    with tf.io.TFRecordWriter(shard) as writer:
        writer.write(first)
    with pytest.raises(UserError, match=r"00000-of-00002 in .* holds 1 records instead of 4"):
        evaluate.evaluate_run(run.path)
    assert not (run.path / "evaluation").exists()


def test_truth_outside_the_prior_stops(make_run):
    run = make_run()
    config = json.loads((run.path / "run.json").read_text())
    config["targets"][0]["prior"] = {"kind": "uniform", "low": -22.1, "high": -22.0}
    (run.path / "run.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"'log10_m_axion'.*leaves the range"):
        evaluate.evaluate_run(run.path)


def test_unknown_split(make_run):
    with pytest.raises(UserError, match="unknown split 'tset'; valid: train, validation, test"):
        evaluate.evaluate_run(make_run().path, "tset")
