import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import Manifest
from dlens_tf.serving.check import check_bundle
from dlens_tf.serving.warmup import write_warmup_requests

IMAGES = np.random.default_rng(0).normal(size=(3, 64, 64, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def model(exported_run):
    keras_model = keras.models.load_model(exported_run / "model.keras")

    def call(images):
        return {name: np.array(value) for name, value in keras_model(images).items()}

    return call


@pytest.fixture
def bundle(exported_run, tmp_path):
    return shutil.copytree(exported_run / "export" / "1", tmp_path / "1")


def check(bundle, model, **kwargs):
    check_bundle(bundle, model, Manifest.read(bundle).parameters, IMAGES, **kwargs)


def test_good_bundle(bundle, model):
    check(bundle, model)


@pytest.mark.parametrize("name", ["mean", "stddev", "quantiles"])
@pytest.mark.parametrize("change", [2e-5, np.nan])
def test_difference_of_one_output(bundle, model, name, change):
    def shifted(images):
        outputs = model(images)
        # The second parameter's prior is 0.7 wide.
        outputs[name][:, 1] += 0.7 * change
        return outputs

    with pytest.raises(UserError, match=f"export check failed: {name} from serving_default of 1"):
        check(bundle, shifted)


def test_tolerance_is_relative_to_the_prior(bundle, model):
    def shifted(images):
        outputs = model(images)
        outputs["stddev"][:, 1] += 0.7 * 0.5e-5
        return outputs

    check(bundle, shifted)


@pytest.mark.parametrize("change", [2e-4, np.nan])
def test_difference_of_the_density(bundle, model, change):
    def shifted(images):
        outputs = model(images)
        outputs["density"][:, 1] += change * np.maximum(1.0, np.abs(outputs["density"][:, 1]))
        return outputs

    with pytest.raises(UserError, match="export check failed: density from serve_density of 1"):
        check(bundle, shifted)


def test_missing_output(bundle, model):
    with pytest.raises(UserError, match=r"gives mean, quantiles, stddev, the model gives mean$"):
        check(bundle, lambda images: {"mean": model(images)["mean"]})


def test_warmup_requests_are_replayed(bundle, model):
    # Images of another shape than the signature's: only the replay can notice.
    write_warmup_requests(bundle, np.zeros((1, 32, 32, 1), np.float32))
    with pytest.raises((UserError, ValueError, tf.errors.OpError)):
        check(bundle, model)


def test_paths_of_this_machine(bundle, model):
    with pytest.raises(UserError, match="holds a path of this machine, serving_default"):
        check(bundle, model, foreign_paths=("serving_default",))


def test_python_code_is_refused(tmp_path, model):
    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 64, 64, 1], tf.float32, "image")])
        def serve(self, image):
            mean = tf.numpy_function(lambda x: x[:, 0, :2, 0], [image], tf.float32)
            return {"mean": mean}

    module = Module()
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.serve})
    with pytest.raises(UserError, match="signature serving_default calls Python"):
        check_bundle(tmp_path, model, None, IMAGES)
