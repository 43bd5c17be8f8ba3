import dataclasses

import keras
import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance

from dlens_tf.errors import UserError
from dlens_tf.inference.out_of_distribution import (
    LARGEST,
    MIN_IMAGES,
    Detector,
    features_of,
    read_detector,
    with_features,
    with_score,
)
from dlens_tf.io.files import file_checksum
from dlens_tf.training.run_folder import RunFolder

RNG = np.random.default_rng(0)
MIXING = {"image": RNG.normal(size=(6, 6)), "network": RNG.normal(size=(3, 3))}


def sample(number, shift=0.0):
    """Correlated features, with means and units far from one."""
    return {
        name: 50.0 + 8.0 * (RNG.normal(size=(number, len(mix))) + shift) @ mix
        for name, mix in MIXING.items()
    }


@pytest.fixture(scope="module")
def detector():
    return Detector.fit(sample(4000), sample(4000), "0" * 64)


def test_distance_is_mahalanobis(detector):
    training, other = sample(2000), sample(50, shift=2.0)
    learnt = Detector.fit(training, sample(500), "")
    for name in training:
        covariance = EmpiricalCovariance().fit(training[name])
        expected = np.sqrt(covariance.mahalanobis(other[name]))
        found = np.asarray(learnt.groups[name].distance(np.float32(other[name])))
        np.testing.assert_allclose(found / expected, (found / expected)[0], rtol=5e-3)


def test_one_in_a_hundred_alike_is_above_the_threshold(detector):
    score = np.asarray(detector.score(sample(20000)))
    assert np.mean(score > 1.0) == pytest.approx(0.01, abs=0.006)


def test_unlike_in_one_group_is_enough(detector):
    for name in MIXING:
        unlike = sample(200) | {name: sample(200, shift=8.0)[name]}
        assert np.mean(np.asarray(detector.score(unlike)) > 1.0) > 0.99


def test_no_number_is_most_unlike(detector):
    features = sample(4)
    features["image"][1, 2], features["network"][2, 0] = np.nan, np.inf
    score = np.asarray(detector.score(features))
    assert (score[[1, 2]] == LARGEST).all() and (score[[0, 3]] < 10.0).all()


def test_constant_features_notice_a_change():
    def constant(number):
        return {
            "image": np.concatenate([np.full((number, 1), 2.0), RNG.normal(size=(number, 1))], 1)
        }

    detector = Detector.fit(constant(500), constant(500), "")
    changed = constant(100)
    changed["image"][:, 0] = 2.1
    assert (np.asarray(detector.score(changed)) > 1.0).all()


def test_a_unit_that_is_nearly_always_silent_is_not_all_that_counts():
    """A rectified unit that spoke a little for one image in 4,000, and does for a new one."""

    def network(number, spoken):
        values = np.maximum(RNG.normal(size=(number, 20)), 0.0)
        values[:, 0] = values[:, 8:] = 0.0  # most never speak
        values[0, 0] = spoken
        return {"network": values}

    detector = Detector.fit(network(4000, 1e-3), network(4000, 1e-3), "")
    alike = network(1, 0.0)["network"]
    spoken = alike.copy()
    spoken[0, 0] = 5e-3
    silent, little, loud = (
        float(detector.score({"network": values})[0])
        for values in (alike, spoken, spoken + np.eye(1, 20))
    )
    assert little == pytest.approx(silent, abs=0.3) and loud > 1.5


def test_detector_of_other_features_is_none(detector, tmp_path):
    run = RunFolder(tmp_path)
    run.model_path.write_bytes(b"model")
    own = dataclasses.replace(detector, model_sha256=file_checksum(run.model_path))
    own.write(run.detector_path)
    assert read_detector(run) is not None
    for other in ({"model_sha256": "0" * 64}, {"features_version": 1}):
        dataclasses.replace(own, **other).write(run.detector_path)
        assert read_detector(run) is None
    with np.load(run.detector_path) as arrays:  # as it was before there were versions
        old = {name: arrays[name] for name in arrays.files if name != "features_version"}
    np.savez(run.detector_path, **old)
    assert read_detector(run) is None


def test_file(detector, tmp_path):
    detector.write(tmp_path / "d.npz")
    again = Detector.read(tmp_path / "d.npz")
    features = sample(10, shift=1.0)
    np.testing.assert_array_equal(again.score(features), detector.score(features))
    assert again.describe() == detector.describe() and again.model_sha256 == "0" * 64
    (tmp_path / "d.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="is damaged; remove it and evaluate the run again"):
        Detector.read(tmp_path / "d.npz")


def test_too_few_images():
    with pytest.raises(UserError, match=f"at least {MIN_IMAGES} training"):
        Detector.fit(sample(MIN_IMAGES - 1), sample(MIN_IMAGES), "")


def test_score_beside_a_models_outputs(exported_run):
    model = keras.models.load_model(exported_run / "model.keras")
    images = RNG.normal(size=(300, 64, 64, 1)).astype(np.float32)
    outputs = with_features(model).predict(images, verbose=0)
    features = features_of(outputs)
    assert {k: v.shape[1] for k, v in features.items()} == {
        "image": 29,
        "pixels": 3,
        "network": 256,
    }
    detector = Detector.fit(features, features, "")
    answer = with_score(model, detector)(images[:5])
    np.testing.assert_allclose(
        answer["ood_score"], np.asarray(detector.score(features))[:5], rtol=1e-4
    )
    np.testing.assert_allclose(answer["mean"], outputs["mean"][:5], atol=1e-5)
    assert np.asarray(with_score(model, detector)(5.0 * images)["ood_score"]).min() > 1.0
    assert "ood_score" not in with_score(model, None)(images[:5])
