import keras
import numpy as np

from dlens_tf.models.evidence import PadAngles, PoolAngles, evidence_features


def maps(seed=0):
    return np.random.default_rng(seed).normal(size=(2, 7, 8, 3)).astype(np.float32)


def test_angles_are_padded_periodically_and_masses_with_zeros():
    x = maps()
    padded = np.array(PadAngles()(x))
    assert padded.shape == (2, 9, 10, 3)
    np.testing.assert_array_equal(
        padded,
        np.pad(
            np.pad(x, [(0, 0), (0, 0), (1, 1), (0, 0)], mode="wrap"),
            [(0, 0), (1, 1), (0, 0), (0, 0)],
        ),
    )


def test_pooling_keeps_masses_apart():
    x = maps()
    pooled = np.array(PoolAngles()(x)).reshape(2, 7, 6)
    np.testing.assert_allclose(pooled[..., :3], x.max(axis=2), rtol=1e-6)
    np.testing.assert_allclose(pooled[..., 3:], x.mean(axis=2), rtol=1e-4, atol=1e-6)


def test_features_do_not_depend_on_where_the_angles_start():
    image = keras.Input((7, 8, 3))
    model = keras.Model(image, evidence_features(image, width=4, units=5))
    x = maps()
    expected = np.array(model(x))
    assert expected.std() > 0.01
    for shift in (1, 3):
        np.testing.assert_allclose(
            np.array(model(np.roll(x, shift, axis=2))), expected, rtol=1e-4, atol=1e-5
        )


def test_serialisation(tmp_path):
    image = keras.Input((7, 8, 3))
    model = keras.Model(image, evidence_features(image, width=4, units=5))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.array(model(maps())), np.array(again(maps())))
