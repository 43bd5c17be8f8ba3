"""Images, targets and checks that the model tests share."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.simulator import Simulator


@pytest.fixture(scope="session")
def make_lenses():
    """make_lenses(recipe's name): images [12, H, W, 1], targets [12, 2], their ParameterSet."""

    @functools.cache
    def make(name: str):
        recipe = get_recipe(name)
        targets = recipe.class_parameters("axion").select(["log10_m_axion", "source_x"])
        simulated = Simulator(recipe).simulate_many("axion", 3, range(12))
        truth = [[lens.parameters[name] for name in targets.names] for lens in simulated]
        return np.stack([lens.image for lens in simulated]), np.float32(truth), targets

    return make


@pytest.fixture(scope="session")
def lenses(make_lenses):
    """`make_lenses` of model_ii_instrument."""
    return make_lenses("model_ii_instrument")


@pytest.fixture
def assert_serialises(tmp_path):
    """assert_serialises(model, images): the same answers in all the forms a model can have.

    As a .keras file (bit for bit), compiled by XLA, as a SavedModel. Takes a model with one
    output or a dict of them.
    """

    def answers(outputs) -> dict[str, np.ndarray]:
        outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
        return {name: np.asarray(value) for name, value in outputs.items()}

    def check(model: keras.Model, images: np.ndarray) -> None:
        expected = answers(model(images))
        assert all(value.dtype == np.float32 for value in expected.values())

        model.save(tmp_path / "serialised.keras")
        loaded = keras.models.load_model(tmp_path / "serialised.keras", compile=False)
        assert loaded.to_json() == model.to_json()
        for name, value in answers(loaded(images)).items():
            np.testing.assert_array_equal(value, expected[name])

        model.export(tmp_path / "exported", verbose=False)
        served = tf.saved_model.load(str(tmp_path / "exported"))
        compiled = tf.function(model, jit_compile=True)
        for outputs in (answers(compiled(images)), answers(served.serve(images))):
            for name, value in expected.items():
                tolerance = 1e-4 * max(1.0, float(np.abs(value).max()))
                np.testing.assert_allclose(outputs[name], value, atol=tolerance, err_msg=name)

    return check


@pytest.fixture
def check_backbone(assert_serialises):
    """check_backbone(backbone, size, num_parameters, **options): what every backbone must do.

    Args:
      backbone: from pictures and options to features.
      size: of the features.
      num_parameters: guards the architecture: a change of it is a change of the model.
      options: of the backbone.
    """

    def check(backbone, size: int, num_parameters: int, **options) -> None:
        keras.utils.set_random_seed(2)
        picture = keras.Input((34, 30, 3))  # sides that no patch or stride divides
        model = keras.Model(picture, backbone(picture, dropout=0.1, **options))
        assert model.count_params() == num_parameters
        images = np.random.default_rng(0).normal(size=(3, 34, 30, 3)).astype(np.float32)
        features = model(images).numpy()
        assert features.shape == (3, size)
        # Any number of images gives the same, and each looks at its own image.
        np.testing.assert_allclose(model(images[1:2]), features[1:2], atol=1e-5)
        assert np.ptp(features, axis=0).max() > 1e-3
        assert_serialises(model, images)

    return check
