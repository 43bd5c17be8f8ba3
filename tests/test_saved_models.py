"""The ready-to-use models load, are what their manifest says, and answer fresh simulations."""

from pathlib import Path

import numpy as np
import pytest

from dlens_tf.inference.bundle import find_bundle
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.simulator import Simulator

FOLDER = Path(__file__).parents[1] / "saved_models"
MODELS = sorted(path.parent for path in FOLDER.glob("*/README.md"))


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_model_answers_fresh_images(model):
    from dlens_tf.inference.predictor import Predictor

    predictor = Predictor.load(model)
    predictor.manifest.verify(find_bundle(model))
    recipe = get_recipe(predictor.manifest.recipe)
    seed = 77  # no data set of a released model is made with it
    lenses = Simulator(recipe).simulate_many("axion", seed, range(60))
    posterior = predictor.predict(np.stack([lens.image for lens in lenses]))
    names = predictor.manifest.parameters.names
    truth = np.array([[lens.parameters[name] for name in names] for lens in lenses])
    error = np.abs(posterior.mean - truth).mean(axis=0)
    # The prior's middle scores 0.87 standard deviations; 60 images leave a scatter of 0.06.
    assert (error < 0.6 * predictor.manifest.parameters.stds).all()
    inside = np.abs(posterior.mean - truth) < 1.96 * posterior.stddev
    assert inside.mean() > 0.85


@pytest.mark.skipif(not FOLDER.is_dir(), reason="a source distribution leaves the models out")
def test_every_model_has_a_card():
    assert MODELS
    assert sorted(path for path in FOLDER.iterdir() if path.is_dir()) == MODELS
