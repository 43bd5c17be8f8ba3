"""The ready-to-use models load, are what their manifest says, and answer fresh simulations."""

import json
from pathlib import Path

import numpy as np
import pytest

import dlens_tf
from dlens_tf import hub
from dlens_tf.evaluation.recalibration import Recalibration
from dlens_tf.evaluation.report import format_estimate
from dlens_tf.inference.bundle import find_bundle
from dlens_tf.serving.answers import answers
from dlens_tf.serving.publish import MAX_BYTES
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.simulator import Simulator

FOLDER = Path(__file__).parents[1] / "saved_models"
NAMES = hub.model_names(FOLDER)

each = pytest.mark.parametrize("name", NAMES)


@each
def test_model_answers_fresh_images(name):
    predictor = dlens_tf.load(name)
    recipe = get_recipe(predictor.manifest.recipe)
    seed = 77  # no data set of a released model is made with it
    [dm_class, *_] = predictor.manifest.dataset["classes"]
    lenses = Simulator(recipe).simulate_many(dm_class, seed, range(60))
    posterior = predictor.predict(np.stack([lens.image for lens in lenses]))
    names = predictor.manifest.parameters.names
    truth = np.array([[lens.parameters[name] for name in names] for lens in lenses])
    error = np.abs(posterior.mean - truth).mean(axis=0)
    # The prior's middle scores 0.87 standard deviations; 60 images leave a scatter of 0.06.
    assert (error < 0.6 * predictor.manifest.parameters.stds).all()
    low, high = np.moveaxis(posterior.interval(0.95), -1, 0)
    assert ((low < truth) & (truth < high)).mean() > 0.85


@each
def test_folder_is_whole_and_small(name):
    hub.verify_checksums(FOLDER / name)
    bundle = [path for path in find_bundle(FOLDER / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in bundle) <= MAX_BYTES
    assert (FOLDER / name / hub.WEIGHTS).stat().st_size <= MAX_BYTES


@each
def test_weights_answer_as_the_bundle(name):
    import keras

    import dlens_tf.models  # registers the layers

    predictor = dlens_tf.load(name)
    manifest = predictor.manifest
    lenses = Simulator(get_recipe(manifest.recipe)).simulate_many(
        manifest.dataset["classes"][0], 78, range(2)
    )
    images = np.stack([lens.image for lens in lenses]).astype(np.float32)
    posterior = predictor.predict(images)
    recalibration = manifest.recalibration
    model = keras.models.load_model(FOLDER / name / hub.WEIGHTS, compile=False)
    if recalibration is not None:
        recalibration = Recalibration.from_dict(recalibration)
    expected = answers(model, recalibration)(images.reshape(-1, *manifest.image.shape))
    scale = manifest.parameters.stds
    np.testing.assert_allclose(posterior.mean / scale, expected["mean"] / scale, atol=1e-3)
    np.testing.assert_allclose(posterior.stddev / scale, expected["stddev"] / scale, atol=1e-3)


@each
def test_card_agrees_with_the_evaluation(name):
    card = hub.available_models(FOLDER)[name].card
    evaluation = json.loads((FOLDER / name / hub.EVALUATION).read_text())
    assert card.startswith(f"# {name}\n")
    for section in ("## How good it is", "## Limits of use", "## How it was made"):
        assert f"\n{section}\n" in card
    for entry in evaluation["parameters"].values():
        mae = entry["metrics"]["mae"]
        assert f"**{format_estimate(mae)}**" in card
    metrics = hub.available_models(FOLDER)[name].test_mae
    assert metrics == {k: v["metrics"]["mae"] for k, v in evaluation["parameters"].items()}


def test_every_model_is_listed():
    from dlens_tf.serving.publish import models_table

    assert NAMES
    assert sorted(path.name for path in FOLDER.iterdir() if path.is_dir()) == NAMES
    assert models_table(FOLDER) in (FOLDER / "README.md").read_text()
