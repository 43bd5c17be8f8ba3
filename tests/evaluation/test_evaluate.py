import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import mean_absolute_error

from dlens_tf.errors import UserError
from dlens_tf.evaluation import evaluate
from dlens_tf.evaluation import recalibration as recalibrating
from dlens_tf.evaluation.metrics import COVERAGE
from dlens_tf.inference.posterior import Posterior
from dlens_tf.io.files import file_checksum
from dlens_tf.models.registry import given_to
from dlens_tf.pipeline.build import build_dataset
from dlens_tf.pipeline.reading import open_dataset, read_batches
from dlens_tf.quantiles import MEDIAN, QUANTILE_LEVELS
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.training.run_folder import RunFolder


def stored_folder(data_dir):
    return open_dataset("deeplense", "model_ii_instrument", data_dir)


def stored(data_dir, split="test"):
    folder = stored_folder(data_dir)
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
        "as the network says",
        "as the network says",
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
            mean_absolute_error(truth, outputs["quantiles"][:, i, MEDIAN]), rel=1e-4
        )
        centre = next(row for row in entry["rows"] if row["kind"] == "centre")
        middle = np.mean(run.targets[name].prior.support)
        assert centre["metrics"]["mae"]["value"] == pytest.approx(
            np.mean(np.abs(truth - middle)), rel=1e-5
        )
        assert sum(b["count"] for b in entry["by_truth"]) == 8
        assert sum(b["count"] for b in entry["by_snr"]) == 8
        assert entry["rows"][0]["kind"] == "model"
        before = entry["calibration"]["before"]
        assert entry["calibration"]["after"] is None
        assert before["metrics"] == entry["metrics"]
        assert sum(before["pit"]["counts"]) == sum(before["sbc"]["counts"]) == 8
        assert all(set(b["metrics"]) == set(COVERAGE) for b in before["by_snr"])
    assert result["recalibration"] is None and result["joint"]["after"] is None
    assert result["run"]["model_sha256"] == file_checksum(run.path / "model.keras")
    assert result["run"]["training"] == {"data": "dataset", "images": None, "cost": None}
    assert result["command"] == "python tools/evaluate.py --run_dir=runs/a_run --split=test"
    assert result["dataset"]["data_dir"] == "data"
    assert "--data_dir=data --num_examples=" in result["dataset"]["command"]
    mass = result["parameters"]["log10_m_axion"]
    assert mass["rows"][-1]["kind"] == "limit"
    assert mass["rows"][0]["mae_over_limit"]["value"] == pytest.approx(
        mass["metrics"]["mae"]["value"] / 0.053
    )
    assert len(mass["limit_by_truth"]) == len(mass["by_truth"]) == 8

    with np.load(folder / "test" / "predictions.npz", allow_pickle=False) as arrays:
        assert arrays["parameters"].tolist() == run.targets.names
        np.testing.assert_allclose(arrays["mean"], outputs["mean"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(arrays["stddev"], outputs["stddev"], rtol=1e-5)
        assert tuple(arrays["quantile_levels"]) == QUANTILE_LEVELS
        np.testing.assert_allclose(arrays["quantiles"], outputs["quantiles"], rtol=1e-4, atol=1e-6)
        posterior = Posterior.from_outputs(
            run.targets, run.model.get_layer("head").density_config, outputs
        )
        truth = np.stack([batch[f"parameters/{name}"] for name in run.targets.names], axis=-1)
        np.testing.assert_allclose(arrays["cdf"], posterior.cdf(truth), atol=1e-5)
        nll = result["joint"]["before"]["nll"]["value"]
        assert nll == pytest.approx(-posterior.joint_log_prob(truth).mean(), rel=1e-4)
        np.testing.assert_array_equal(arrays["index"], batch["metadata/index"])
        np.testing.assert_array_equal(arrays["snr"], batch["metadata/snr"])
    plots = {p.name for p in (folder / "test").glob("*.png")}
    assert plots == {
        f"{name}_{plot}.png"
        for name in run.targets.names
        for plot in (
            "scatter", "residuals", "by_truth", "by_snr", "pit", "calibration", "sbc", "densities",
            "images",
        )
    } | {"joint_tarp.png"}  # fmt: skip
    assert not list(folder.rglob("*.partial"))


def test_point_head_has_no_calibration(make_run):
    run = make_run("point")
    result = evaluate.evaluate_run(run.path, "validation", max_examples=1)
    assert result["num_examples"] == 1
    entry = result["parameters"]["log10_m_axion"]
    assert set(entry["metrics"]) == {"mae", "rmse", "bias", "r2"}
    assert entry["calibration"] is None and result["joint"] is None
    assert entry["metrics"]["mae"]["standard_error"] is None
    assert not (run.path / "evaluation/validation/log10_m_axion_calibration.png").exists()
    with np.load(run.path / "evaluation/validation/predictions.npz") as arrays:
        assert not {"stddev", "quantiles", "cdf"} & set(arrays)
    with pytest.raises(UserError, match="point estimates without an uncertainty"):
        evaluate.recalibrate_run(run.path, split="validation")


@pytest.mark.parametrize(
    ("data_dir", "place"),
    [
        ("{own}", "data"),
        ("{own}/../{name}", "data"),
        ("/x/fresh", "fresh"),
        ("/x/data", "other_data"),
    ],
)
def test_places_of_data_sets_are_told_apart(make_run, tiny_data_dir, data_dir, place):
    run = RunFolder(make_run().path)
    folder = stored_folder(tiny_data_dir)
    given = data_dir.format(own=tiny_data_dir, name=tiny_data_dir.name)
    path = Path(given, *folder.path.parts[-3:])
    told = evaluate._describe_data(run, dataclasses.replace(folder, path=path))
    assert told["data_dir"] == place and f"--data_dir={place} " in f"{told['command']} "


@pytest.fixture(scope="module")
def calibration_data_dir(tmp_path_factory):
    """As the tiny data set, with a calibration split besides."""
    data_dir = tmp_path_factory.mktemp("with_calibration")
    sizes = {"train": 2, "validation": 2, "test": 4, "calibration": 24}
    build_dataset("deeplense", "model_ii_instrument", data_dir, sizes=sizes, num_shards=1)
    return data_dir


def test_recalibration_is_learnt_kept_and_shown(make_run, calibration_data_dir, monkeypatch):
    monkeypatch.setattr(recalibrating, "MIN_IMAGES", 24)
    run = make_run()
    fitted = evaluate.recalibrate_run(run.path, "temperature", data_dir=calibration_data_dir)
    written = json.loads((run.path / "recalibration.json").read_text())
    assert written == fitted.to_dict()
    assert (written["split"], written["num_examples"]) == ("calibration", 24)
    assert written["model_sha256"] == file_checksum(run.path / "model.keras")
    assert str(calibration_data_dir) not in json.dumps(written)
    place = calibration_data_dir.name
    assert written["dataset"]["data_dir"] == place
    assert f"--data_dir={place} --num_examples=2 " in written["dataset"]["command"]
    assert "--num_calibration=24 --seed=0" in written["dataset"]["command"]

    # By hand: the PIT of the calibration images, and the temperature that makes it uniform.
    batch = stored(calibration_data_dir, "calibration")
    assert len(batch["image"]) == 24 and batch["metadata/index"].min() == 1_500_000_000
    outputs = {k: np.asarray(v) for k, v in run.model(batch["image"]).items()}
    head = run.model.get_layer("head").density_config
    truth = np.stack([batch[f"parameters/{name}"] for name in run.targets.names], axis=-1)
    pit = Posterior.from_outputs(run.targets, head, outputs).cdf(truth)
    for i, name in enumerate(run.targets.names):
        by_hand = recalibrating.fit_temperature(pit[:, i])
        np.testing.assert_allclose(fitted.maps[name].calibrated, by_hand.calibrated, atol=1e-4)

    result = evaluate.evaluate_run(run.path)
    assert result["recalibration"]["method"] == "temperature"
    assert any("recalibrated (temperature)" in note for note in result["notes"])
    with np.load(run.path / "evaluation" / "test" / "predictions.npz") as arrays:
        cdf = arrays["cdf"]
    for i, name in enumerate(run.targets.names):
        entry = result["parameters"][name]
        before, after = entry["calibration"]["before"], entry["calibration"]["after"]
        assert after["metrics"] == entry["metrics"] != before["metrics"]
        inside = np.mean(np.abs(2.0 * cdf[:, i] - 1.0) <= 0.9)
        assert after["metrics"]["coverage_90"]["value"] == pytest.approx(inside)
    assert result["joint"]["before"]["nll"] != result["joint"]["after"]["nll"]


def test_recalibration_of_another_model_stops(make_run, calibration_data_dir, monkeypatch):
    monkeypatch.setattr(recalibrating, "MIN_IMAGES", 24)
    run = make_run()
    evaluate.recalibrate_run(run.path, "isotonic", data_dir=calibration_data_dir)
    run.model.set_weights([w + 0.01 for w in run.model.get_weights()])
    run.model.save(run.path / "model.keras")
    with pytest.raises(UserError, match=r"was fitted to another model than .*; fit it again with"):
        evaluate.evaluate_run(run.path)


def test_missing_calibration_split_names_the_command(make_run, tiny_data_dir):
    run = make_run()
    other = f"{tiny_data_dir}_calibration"
    with pytest.raises(UserError) as caught:
        evaluate.recalibrate_run(run.path)
    message = str(caught.value)
    assert "has no calibration split; build one beside it with: python tools/build_" in message
    assert f"--data_dir={other} --num_examples=1 --num_validation=1 --num_test=1" in message
    assert "--num_calibration=2000, and name it with --calibration_data_dir=" in message
    assert not (run.path / "recalibration.json").exists()
    with pytest.raises(UserError, match=r"has no calibration split.*name it with --data_dir="):
        evaluate.evaluate_run(run.path, "calibration")


@pytest.mark.parametrize("split", ["test", "train"])
def test_no_recalibration_on_what_was_seen_or_is_told(make_run, split):
    with pytest.raises(UserError, match=f"the {split} split is not for recalibration"):
        evaluate.recalibrate_run(make_run().path, split=split)


def test_too_few_images_to_recalibrate(make_run):
    run = make_run()
    with pytest.raises(UserError, match="at least 200 images, not 8"):
        evaluate.recalibrate_run(run.path, split="validation")
    assert not (run.path / "recalibration.json").exists()


@pytest.mark.parametrize("front_end", ["flux", "smooth_residual"])
def test_front_end_is_said(make_run, front_end):
    run = make_run(model={"backbone": "vit", "front_end": front_end, "options": {}})
    result = evaluate.evaluate_run(run.path, max_examples=3)
    description = f"vit with {front_end} front end and gaussian head"
    assert result["run"]["description"].startswith(description)
    rows = result["parameters"]["log10_m_axion"]["rows"]
    assert rows[0]["source"] == description
    assert given_to(front_end, get_recipe("model_ii_instrument")) in result["notes"]
    assert (result["num_examples"], result["num_available"]) == (3, 8)


def test_validation_is_said_to_have_chosen_the_weights(make_run, monkeypatch):
    monkeypatch.setattr(recalibrating, "MIN_IMAGES", 8)
    run = make_run()
    evaluate.recalibrate_run(run.path, "temperature", "validation")
    result = evaluate.evaluate_run(run.path)
    [note] = [note for note in result["notes"] if "recalibrated" in note]
    assert note.endswith(
        "8 images of the validation split, which this evaluation has not, but by which the weights "
        "were chosen."
    )
    recalibration = run.path / "recalibration.json"
    assert result["recalibration"]["sha256"] == file_checksum(recalibration)


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


@pytest.mark.parametrize("call", [evaluate.evaluate_run, evaluate.recalibrate_run])
def test_galaxies_that_were_trained_on_stop(make_run, tiny_data_dir, tmp_path, monkeypatch, call):
    monkeypatch.setattr(recalibrating, "MIN_IMAGES", 8)
    split = {"split": "validation", "data_dir": tmp_path / "data"}
    shutil.copytree(tiny_data_dir, tmp_path / "data")
    folder = open_dataset("deeplense", "model_ii_instrument", tmp_path / "data")
    path = folder.path / "metadata.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "galaxies": "def"}))
    run = make_run(dataset_galaxies="abc")
    with pytest.raises(UserError, match=r"from galaxies abc, but .* from galaxies def") as info:
        call(run.path, **split)
    assert "\n" not in str(info.value)
    assert sorted(p.name for p in run.path.iterdir()) == ["model.keras", "run.json"]
    config = json.loads((run.path / "run.json").read_text())
    for galaxies in ("def", None):
        config["dataset_galaxies"] = galaxies
        (run.path / "run.json").write_text(json.dumps(config))
        call(run.path, **split)


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
    with pytest.raises(
        UserError, match="unknown split 'tset'; valid: train, validation, test, cal"
    ):
        evaluate.evaluate_run(make_run().path, "tset")
