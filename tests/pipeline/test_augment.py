"""Augmentation against simulating the turned lens."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from dlens_tf.errors import UserError
from dlens_tf.parameters import CATALOGUE
from dlens_tf.pipeline import augment
from dlens_tf.pipeline.augment import Turns
from dlens_tf.simulation.lenstronomy_engine import LenstronomyEngine
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.scene import Scene, draw
from dlens_tf.simulation.substructure import Halos

PARAMETERS = {
    "log10_m_axion": -23.6,
    "phi_vortex": 0.4,
    "theta_E": 1.3,
    "e1": 0.12,
    "e2": -0.07,
    "gamma1": 0.03,
    "gamma2": 0.05,
    "center_x": 0.04,
    "center_y": -0.02,
    "source_x": 0.2,
    "source_y": 0.1,
    "source_R_sersic": 0.3,
    "source_n_sersic": 1.2,
    "source_e1": 0.1,
    "source_e2": 0.2,
    "source_magnitude": 21.0,
}


def _render(parameters) -> np.ndarray:
    recipe = get_recipe("model_ii_instrument")
    # As the simulator draws it, so a vortex off the lens's centre would be noticed.
    points = recipe.substructure["axion"].draw(parameters, None, recipe.plane)
    points = points.shifted(parameters["center_x"], parameters["center_y"])
    scene = Scene("axion", parameters, points, Halos.none())
    return LenstronomyEngine(recipe).render([scene])[0].astype(np.float32)


def _turned(turns: Turns, free_rotation: bool = False):
    image = tf.constant(_render(PARAMETERS)[np.newaxis])
    labels = {name: tf.constant([value], tf.float32) for name, value in PARAMETERS.items()}
    turned_image = augment.turn_images(image, turns, free_rotation).numpy()[0]
    turned_labels = augment.turn_parameters(labels, turns)
    return turned_image, {name: float(value[0]) for name, value in turned_labels.items()}


def _one(mirror=False, quarters=0, angle=0.0) -> Turns:
    return Turns(
        tf.constant([mirror]), tf.constant([quarters], tf.int32), tf.constant([angle], tf.float32)
    )


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_quarter_turns_equal_the_simulated_turned_lens(mirror, quarters):
    image, labels = _turned(_one(mirror, quarters))
    expected = _render(labels)
    np.testing.assert_allclose(image, expected, atol=2e-5 * expected.max())


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_turn_galaxies_and_lens_light_too(quarters):
    """In three bands; mirror images are left out: a mirrored galaxy is another galaxy."""
    recipe = get_recipe("model_iv")
    engine = LenstronomyEngine(recipe)
    scene = draw(recipe, "no_sub", 0, 1)
    assert scene.parameters["source_phi"] > 0.1
    turns = _one(quarters=quarters)
    image = engine.render([scene]).astype(np.float32)
    turned = augment.turn_images(tf.constant(image), turns, False).numpy()[0]
    labels = augment.turn_parameters(
        {name: tf.constant([value], tf.float32) for name, value in scene.parameters.items()}, turns
    )
    parameters = {name: float(value[0]) for name, value in labels.items()}
    expected = engine.render([dataclasses.replace(scene, parameters=parameters)])[0]
    np.testing.assert_allclose(turned, expected, atol=1e-4 * expected.max())
    assert np.abs(turned - image[0]).max() > 0.1 * expected.max()


def test_free_rotation_equals_the_simulated_turned_lens():
    image, labels = _turned(_one(mirror=True, angle=0.7), free_rotation=True)
    expected = _render(labels)
    inner = slice(12, 52)
    difference = np.abs(image - expected)[inner, inner]
    # Bilinear interpolation smooths the arcs, but a wrong sense or label would be off by ~1.
    assert difference.max() < 0.2 * expected.max()
    assert difference.mean() < 0.02 * expected.max()


def test_free_rotation_with_wrong_sense_is_far_off():
    image, labels = _turned(_one(angle=0.7), free_rotation=True)
    _, wrong = _turned(_one(angle=-0.7))
    expected = _render(wrong)
    assert np.abs(image - expected).max() > 0.3 * expected.max()
    assert labels["e1"] != pytest.approx(wrong["e1"])


def test_four_quarter_turns_are_the_identity():
    images = tf.constant(np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32))
    turned = images
    for _ in range(4):
        one = Turns(tf.zeros(2, tf.bool), tf.ones(2, tf.int32), tf.zeros(2))
        turned = augment.turn_images(turned, one, False)
    np.testing.assert_array_equal(turned, images)


def test_flux_is_kept_exactly():
    images = tf.constant(np.random.default_rng(0).normal(size=(4, 9, 9, 2)).astype(np.float32))
    turns = Turns(tf.constant([True, False, True, False]), tf.constant([0, 1, 2, 3]), tf.zeros(4))
    turned = augment.turn_images(images, turns, False)
    np.testing.assert_array_equal(
        np.sort(turned.numpy().reshape(4, -1)), np.sort(images.numpy().reshape(4, -1))
    )


@pytest.mark.parametrize("augmentation", augment.AUGMENTATIONS)
def test_draws_stay_in_the_group(augmentation):
    turns = augment.draw_turns(augmentation, np.random.default_rng(3), 1000)
    allowed = {"none": {0}, "rot180": {0, 2}, "d4": {0, 1, 2, 3}, "rotate": {0}}[augmentation]
    assert set(turns.quarters) == allowed
    assert turns.mirror.any() == (augmentation in ("d4", "rotate"))
    assert (turns.angle.max() > 6.0) == (augmentation == "rotate")
    assert turns.angle.max() <= 2 * math.pi


def test_unknown_augmentation_lists_the_valid_ones():
    with pytest.raises(UserError, match="valid: none, rot180, d4, rotate"):
        augment.draw_turns("flip", np.random.default_rng(0), 1)


def test_partners_complete_the_pairs():
    assert augment.partners(["e1", "log10_m_axion"]) == ["e1", "log10_m_axion", "e2"]
    for parameter in CATALOGUE.values():
        assert set(augment.partners([parameter.name])) >= {parameter.name}
