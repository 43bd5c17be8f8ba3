import shutil

import keras
import numpy as np
import pytest

from dlens_tf.errors import UserError
from dlens_tf.inference.predictor import Predictor
from dlens_tf.serving.export import export_run

IMAGES = np.random.default_rng(0).normal(size=(10, 64, 64, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def predictor(exported_run):
    return Predictor.load(exported_run / "export")


def test_equals_the_model(exported_run, predictor):
    model = keras.models.load_model(exported_run / "model.keras")
    expected = model(IMAGES)
    posterior = predictor.predict(IMAGES)
    np.testing.assert_allclose(posterior.mean, expected["mean"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(posterior.stddev, expected["stddev"], rtol=1e-5)
    assert posterior.parameters.names == ["log10_m_axion", "source_x"]
    assert len(np.unique(posterior.mean[:, 0])) == len(IMAGES)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_batch_size_does_not_matter(predictor, batch_size):
    posterior = predictor.predict(IMAGES, batch_size=batch_size)
    whole = predictor.predict(IMAGES)
    np.testing.assert_allclose(posterior.mean, whole.mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(posterior.stddev, whole.stddev, rtol=1e-5)


@pytest.mark.parametrize("signature", ["serving_default", "serve_density"])
def test_served_quantiles_are_the_posteriors(predictor, signature):
    served = predictor._saved_model.signatures[signature](image=IMAGES)["quantiles"]
    np.testing.assert_allclose(served, predictor.predict(IMAGES).quantiles(), atol=1e-5)


def test_one_image_without_batch_and_channel(predictor):
    one = predictor.predict(IMAGES[0, :, :, 0].astype(np.float64))
    np.testing.assert_allclose(one.mean, predictor.predict(IMAGES[:1]).mean)


def test_bad_images(predictor):
    for images, message in [
        (IMAGES[:, :63], r"images: shape \[10, 63, 64, 1\], but the model takes \[64, 64, 1\]"),
        (np.repeat(IMAGES, 3, -1), "3 channels"),
        (np.full_like(IMAGES, np.nan), "NaN"),
        (IMAGES.astype(str), "values are of type"),
        (IMAGES[:0], "there is no image"),
    ]:
        with pytest.raises(UserError, match=message):
            predictor.predict(images)
    with pytest.raises(UserError, match="batch size must be at least 1, not 0"):
        predictor.predict(IMAGES, batch_size=0)


def test_image_without_an_answer_is_named(predictor):
    images = IMAGES.copy()
    images[4] = 3e38 * np.sign(images[4])  # finite, but its sums overflow
    with pytest.raises(UserError, match=r"^image 4: the model's mean is (nan|-?inf); "):
        predictor.predict(images, batch_size=3)
    names = [f"lens_{i}.npy[0]" for i in range(len(images))]
    with pytest.raises(UserError, match=r"^lens_4\.npy\[0\]: the model's mean is "):
        predictor.predict(images, names=names)


def test_point_head(write_run, tmp_path):
    predictor = Predictor.load(export_run(write_run(tmp_path / "run", head="point")))
    assert predictor.manifest.quantile_levels == ()
    posterior = predictor.predict(IMAGES)
    assert posterior.mean.shape == (10, 2)
    with pytest.raises(UserError, match="point estimates"):
        posterior.quantiles()


def test_damaged_bundle_is_not_loaded(exported_run, tmp_path):
    bundle = shutil.copytree(exported_run / "export" / "1", tmp_path / "1")
    with open(bundle / "saved_model.pb", "ab") as stream:
        stream.write(b"\0")
    with pytest.raises(UserError, match=r"saved_model\.pb is damaged"):
        Predictor.load(tmp_path)
