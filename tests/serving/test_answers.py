"""Recalibration is the same in the served graph, in Python's posterior and in the evaluation."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import interpolate

from dlens_tf.evaluation.calibration import LEVELS
from dlens_tf.evaluation.recalibration import Recalibration
from dlens_tf.inference.posterior import Posterior
from dlens_tf.inference.predictor import Predictor
from dlens_tf.io.files import file_checksum
from dlens_tf.quantiles import QUANTILE_LEVELS
from dlens_tf.serving.answers import answers
from dlens_tf.serving.export import export_run
from dlens_tf.training.run_folder import RunFolder

IMAGES = np.random.default_rng(0).normal(size=(5, 64, 64, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def run(evaluated_run, tmp_path_factory):
    """A run with maps that widen one parameter and shift the other."""
    folder = shutil.copytree(evaluated_run, tmp_path_factory.mktemp("recalibrated") / "run")
    run = RunFolder(folder)
    rng = np.random.default_rng(1)
    pit = np.stack([rng.beta(0.5, 0.5, 1000), rng.beta(3.0, 1.5, 1000)], axis=-1)
    source = {"split": "calibration", "model_sha256": file_checksum(run.model_path)}
    maps = Recalibration.fit("isotonic", pit, run.targets, source)
    run.recalibration_path.write_text(json.dumps(maps.to_dict()))
    shutil.rmtree(run.evaluation_dir)  # which is that of the posteriors without maps
    return run


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor.load(export_run(run.path))


@pytest.fixture(scope="module")
def raw(run):
    """The posterior as the network gives it."""
    model = run.load_model()
    outputs = {name: np.asarray(value) for name, value in model(IMAGES).items()}
    return Posterior.from_outputs(run.targets, model.get_layer("head").density_config, outputs)


def expected_quantiles(run, raw, levels):
    """Q(G⁻¹(τ)), with G⁻¹ read from the file by another library."""
    tables = json.loads(run.recalibration_path.read_text())["parameters"]
    columns = []
    for p, name in enumerate(run.targets.names):
        table = tables[name]
        inverse = interpolate.make_interp_spline(table["calibrated"], table["levels"], k=1)
        columns.append(raw.quantiles(inverse(levels))[:, p])
    return np.stack(columns, axis=1)


def test_served_quantiles_are_recalibrated(run, raw, predictor):
    expected = expected_quantiles(run, raw, np.array(QUANTILE_LEVELS))
    widths = np.ptp(run.targets.supports, axis=1)[:, np.newaxis]
    assert np.abs((expected - raw.quantiles()) / widths).max() > 0.02  # the maps do something
    loaded = tf.saved_model.load(str(predictor.bundle))
    strings = tf.constant([image.tobytes() for image in IMAGES])
    for served in (
        loaded.signatures["serving_default"](image=tf.constant(IMAGES)),
        loaded.signatures["serve_bytes"](image_bytes=strings),
    ):
        np.testing.assert_allclose(served["quantiles"] / widths, expected / widths, atol=1e-5)


def test_served_moments_are_those_of_the_quantiles(run, raw, predictor):
    # By the trapezoid rule over probability, not over its probit.
    levels = np.linspace(0.0005, 0.9995, 1000)
    quantiles = expected_quantiles(run, raw, levels)
    served = tf.saved_model.load(str(predictor.bundle)).signatures["serving_default"](image=IMAGES)
    np.testing.assert_allclose(served["mean"], quantiles.mean(axis=-1), rtol=0, atol=2e-3)
    np.testing.assert_allclose(served["stddev"], quantiles.std(axis=-1), rtol=0.01)


def test_predictor_agrees_with_the_graph(run, raw, predictor):
    posterior = predictor.predict(IMAGES)
    served = answers(run.load_model(), Recalibration.read(run.recalibration_path, run.targets))
    outputs = served(IMAGES)
    np.testing.assert_allclose(posterior.quantiles(), outputs["quantiles"], atol=2e-5)
    np.testing.assert_allclose(posterior.mean, outputs["mean"], atol=2e-5)
    np.testing.assert_allclose(posterior.stddev, outputs["stddev"], atol=2e-5)
    expected = expected_quantiles(run, raw, LEVELS[1:-1])
    np.testing.assert_allclose(posterior.quantiles(LEVELS[1:-1]), expected, atol=2e-5)


def test_manifest_holds_the_maps(run, predictor):
    stored = json.loads(run.recalibration_path.read_text())
    assert predictor.manifest.recalibration == stored


def test_bundle_and_evaluation_agree(run, tiny_data_dir):
    from dlens_tf.evaluation.evaluate import evaluate_run
    from dlens_tf.pipeline.reading import open_dataset, read_batches

    result = evaluate_run(run.path)
    folder = open_dataset("deeplense", "model_ii_instrument", tiny_data_dir)
    batches = list(read_batches(folder, "test", 8).as_numpy_iterator())
    images = np.concatenate([batch["image"] for batch in batches])
    posterior = Predictor.load(export_run(run.path)).predict(images)
    for p, name in enumerate(run.targets.names):
        truth = np.concatenate([batch[f"parameters/{name}"] for batch in batches])
        low, high = posterior.interval(0.5)[:, p].T
        metrics = result["parameters"][name]["metrics"]
        mae = np.abs(posterior.median[:, p] - truth).mean()
        assert metrics["mae"]["value"] == pytest.approx(mae, rel=1e-4)
        inside = ((low <= truth) & (truth <= high)).mean()
        assert metrics["coverage_50"]["value"] == pytest.approx(inside)


def test_nothing_changes_without_maps(evaluated_run):
    model = keras.models.load_model(evaluated_run / "model.keras")
    answer = answers(model, None)(IMAGES)
    for name, value in model(IMAGES).items():
        np.testing.assert_array_equal(answer[name], value)
    features = keras.Model(model.input, model.get_layer("head").input)(IMAGES)
    np.testing.assert_array_equal(answer["features"], features)


def test_graph_is_in_the_file_once(run, predictor):
    """Neither weights nor operations are written for each signature again."""
    names = [n for n, _ in tf.train.list_variables(str(predictor.bundle / "variables/variables"))]
    weights = [name for name in names if name.endswith("VARIABLE_VALUE")]
    assert len(weights) == len(run.load_model().variables)
    loaded = tf.saved_model.load(str(predictor.bundle))
    convolutions = [
        node.op
        for function in loaded.signatures["serve_bytes"].graph.as_graph_def().library.function
        for node in function.node_def
        if node.op == "Conv2D"
    ]
    assert len(convolutions) == 1
