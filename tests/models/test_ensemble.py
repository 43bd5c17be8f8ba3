"""Mixtures against the mean of their members' densities, and turns against the pipeline's."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import integrate

from dlens_tf.errors import UserError
from dlens_tf.models import ModelSpec, build_model
from dlens_tf.models.densities import make_density
from dlens_tf.models.ensemble import TURNS, EnsembleHead, Turn, build_ensemble
from dlens_tf.models.heads import HEADS, PointHead
from dlens_tf.parameters import ParameterSet, Uniform
from dlens_tf.pipeline import augment
from dlens_tf.simulation.recipes import get_recipe

TARGETS = ParameterSet.from_priors(
    {"log10_m_axion": Uniform(-24.0, -22.0), "theta_E": Uniform(0.5, 2.0)}
)
SPLINE = {"kind": "spline", "bins": 5}
MEMBERS = [SPLINE, SPLINE, {"kind": "gaussian"}, SPLINE, {"kind": "mixture", "components": 2}]


def _numbers(density, number: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return density.initial_numbers() + rng.normal(size=(number, density.num_numbers))


@pytest.fixture(scope="module")
def mixture():
    """The mixture, its numbers [3, D], its members and theirs, in float64."""
    density = make_density({"kind": "ensemble", "members": MEMBERS}, 2)
    members = [make_density(member, 2) for member in MEMBERS]
    numbers = _numbers(density)
    parts = np.split(numbers, np.cumsum([m.num_numbers for m in members])[:-1], axis=1)
    return density, tf.constant(numbers), members, [tf.constant(part) for part in parts]


def test_functions_are_the_members_means(mixture):
    density, numbers, members, parts = mixture
    x = np.random.default_rng(1).uniform(0.01, 0.99, size=(4, 3, 2))
    for name, axis in (("cdf", None), ("log_prob", 1), ("joint_log_prob", 1)):
        answers = np.stack([getattr(m, name)(n, x) for m, n in zip(members, parts, strict=True)])
        expected = answers.mean(axis=0) if axis is None else np.log(np.exp(answers).mean(axis=0))
        np.testing.assert_allclose(getattr(density, name)(numbers, x), expected, rtol=1e-6)


def test_moments_are_those_of_the_density(mixture):
    density, numbers, _, _ = mixture
    mean, stddev = density.moments(numbers)
    for p in range(2):

        def moment(function, p=p):
            """Mean of a function of x, for the first example."""
            x = np.linspace(0.0, 1.0, 4001)
            points = np.zeros((len(x), 3, 2)) + x[:, np.newaxis, np.newaxis]
            weight = np.exp(density.log_prob(numbers, points)[:, 0, p])
            return integrate.simpson(weight * function(x), x=x)

        first = moment(lambda x: x)
        assert moment(np.ones_like) == pytest.approx(1.0, abs=1e-3)
        assert float(mean[0, p]) == pytest.approx(first, abs=2e-3)
        second = moment(lambda x, first=first: (x - first) ** 2)
        assert float(stddev[0, p]) == pytest.approx(np.sqrt(second), rel=1e-2)


def test_quantiles_invert_the_distribution_function(mixture):
    density, numbers, _, _ = mixture
    levels = [0.01, 0.16, 0.5, 0.9]
    quantiles = np.moveaxis(density.quantiles(numbers, levels), -1, 0)
    expected = np.broadcast_to(np.reshape(levels, (-1, 1, 1)), quantiles.shape)
    np.testing.assert_allclose(density.cdf(numbers, quantiles), expected, atol=1e-4)


def test_samples_come_from_every_member(mixture):
    density, numbers, _, _ = mixture
    uniforms = np.random.default_rng(2).random((4000, 3, density.num_uniforms))
    samples = np.asarray(density.sample(numbers, uniforms))
    mean, stddev = density.moments(numbers)
    np.testing.assert_allclose(samples.mean(axis=0), mean, atol=0.02)
    np.testing.assert_allclose(samples.std(axis=0), stddev, rtol=0.06)
    # Uniform if the distribution function is theirs.
    ranks = np.sort(density.cdf(numbers, samples), axis=0)
    even = (np.arange(len(ranks)) + 0.5) / len(ranks)
    assert np.abs(ranks - even[:, np.newaxis, np.newaxis]).max() < 0.03


@pytest.mark.parametrize("augmentation", ["rot180", "d4"])
def test_turns_are_the_pipelines(augmentation):
    drawn = augment.draw_turns(augmentation, np.random.default_rng(0), 200)
    pairs = {(bool(m), int(q)) for m, q in zip(drawn.mirror, drawn.quarters, strict=True)}
    assert pairs == set(TURNS[augmentation]) and len(pairs) == len(TURNS[augmentation])
    images = np.random.default_rng(1).normal(size=(2, 6, 6, 3)).astype(np.float32)
    for mirror, quarters in TURNS[augmentation]:
        turns = augment.Turns(
            np.array([mirror] * 2), np.array([quarters] * 2, np.int32), np.zeros(2, np.float32)
        )
        expected = augment.turn_images(tf.constant(images), turns, free_rotation=False)
        np.testing.assert_array_equal(Turn(mirror, quarters)(images), expected)


def _member(seed: int, kind: str = "spline", **options) -> keras.Model:
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Dense(12, activation="tanh")(keras.layers.Flatten()(image))
    head = HEADS[kind].for_targets(
        TARGETS, "nll" if kind != "point" else "mae", name="head", **options
    )
    model = keras.Model(image, head(x), name="dlens_member")
    for weight in model.weights:
        weight.assign(weight + np.random.default_rng(seed).normal(size=weight.shape))
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).normal(size=(5, 8, 8, 1)).astype(np.float32)


@pytest.mark.parametrize("augmentation", ["none", "rot180", "d4"])
def test_ensemble_is_the_mean_over_members_and_turns(images, augmentation):
    models = [_member(0, bins=4), _member(1, "gaussian")]
    outputs = build_ensemble(models, TURNS[augmentation], TARGETS)(images)
    turned = [Turn(*turn)(images) for turn in TURNS[augmentation]]
    answers = [model(picture) for model in models for picture in turned]
    np.testing.assert_array_equal(outputs["density"], np.hstack([a["density"] for a in answers]))
    means, stddevs = (np.stack([a[k] for a in answers]) for k in ("mean", "stddev"))
    np.testing.assert_allclose(outputs["mean"], means.mean(axis=0), rtol=1e-5)
    variance = (stddevs**2 + means**2).mean(axis=0) - means.mean(axis=0) ** 2
    np.testing.assert_allclose(outputs["stddev"], np.sqrt(variance), rtol=2e-3)


def test_turned_image_gives_the_same_answer(images):
    model = build_ensemble([_member(0)], TURNS["d4"], TARGETS)
    for turn in TURNS["d4"]:
        for name in ("mean", "stddev", "quantiles"):
            np.testing.assert_allclose(
                model(Turn(*turn)(images))[name], model(images)[name], atol=1e-4
            )


def test_one_member_is_itself(images):
    member = _member(4)
    expected = member(images)
    outputs = build_ensemble([member], TURNS["none"], TARGETS)(images)
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, atol=1e-4, err_msg=name)


def test_ensembles_of_ensembles(images):
    models = [_member(seed) for seed in range(3)]
    inner = build_ensemble(models[:2], TURNS["none"], TARGETS)
    outer = build_ensemble([inner, models[2]], TURNS["none"], TARGETS)
    means = np.stack([model(images)["mean"] for model in models])
    expected = np.mean([means[:2].mean(axis=0), means[2]], axis=0)
    np.testing.assert_allclose(outer(images)["mean"], expected, rtol=1e-5)


def test_serialises(images, assert_serialises):
    models = [_member(0, bins=4), _member(1, "gaussian")]
    model = build_ensemble(models, TURNS["rot180"], TARGETS)
    assert isinstance(model.get_layer("head"), EnsembleHead)
    assert not model.get_layer("head").weights
    assert_serialises(model, images)


def test_what_turns_is_refused():
    targets = ParameterSet.from_priors({"source_x": Uniform(-1.0, 1.0)})
    with pytest.raises(UserError, match=r"'source_x' turns with the image, .* leave out --tta"):
        build_ensemble([_member(0)], TURNS["d4"], targets)


def test_point_heads_are_refused():
    assert isinstance(_member(0, "point").get_layer("head"), PointHead)
    with pytest.raises(UserError, match="point head has no posterior"):
        build_ensemble([_member(0, "point")], TURNS["none"], TARGETS)


def test_members_with_the_same_fit_share_it(lenses, assert_serialises):
    images, _, targets = lenses
    small = {"num_masses": 3, "num_angles": 4, "rank": 4, "steps": 1}
    models = []
    for seed in range(2):
        keras.utils.set_random_seed(seed)
        spec = ModelSpec("none", {}, "spline", "nll", "lens_fit", small, head_options={"bins": 4})
        models.append(build_model(spec, get_recipe("model_ii_instrument"), targets, images))
    expected = [np.array(model(images)["mean"]) for model in models]
    weights = sum(w.size for model in models for w in model.get_weights())
    fit = sum(w.size for w in models[0].get_layer("lens_fit").get_weights())
    start = sum(w.size for w in models[0].get_layer("start").get_weights())
    ensemble = build_ensemble(models, TURNS["none"], targets)
    assert sum(w.size for w in ensemble.get_weights()) == weights - fit - start
    np.testing.assert_allclose(np.array(ensemble(images)["mean"]), np.mean(expected, 0), atol=1e-3)
    assert_serialises(ensemble, images)
