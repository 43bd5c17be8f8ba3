"""Augmentation that turns the labels with the image.

An augmentation is a mirror image (x → -x) followed by a rotation from +x towards +y, x being
the second image axis and y the first, upwards. Quarter turns and mirror images move pixels
exactly; free rotations interpolate (by Keras-CV's `RandomRotation`), which smooths and
correlates pixel noise a little and leaves zeros in the corners.

Components of spin s (positions 1, ellipticity and shear 2) turn by s times the angle, position
angles by the angle; their transformation is declared with each `Parameter`.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dlens_tf.errors import choose
from dlens_tf.parameters import CATALOGUE

AUGMENTATIONS = ("none", "rot180", "d4", "rotate")
"""rot180: half turns. d4: quarter turns and mirror images. rotate: any angle and mirror images."""


class Turns(NamedTuple):
    """One augmentation per example, each [B]: mirrored or not, quarter turns, extra angle."""

    mirror: np.ndarray | tf.Tensor
    quarters: np.ndarray | tf.Tensor
    angle: np.ndarray | tf.Tensor


def draw_turns(augmentation: str, rng: np.random.Generator, number: int) -> Turns:
    """Draws augmentations for `number` examples: bool, int32 and float32 (rad) arrays."""
    choose("augmentation", augmentation, AUGMENTATIONS)
    mirror = np.zeros(number, bool)
    quarters = np.zeros(number, np.int32)
    angle = np.zeros(number, np.float32)
    if augmentation == "rot180":
        quarters = 2 * rng.integers(0, 2, number, dtype=np.int32)
    elif augmentation == "d4":
        mirror = rng.integers(0, 2, number).astype(bool)
        quarters = rng.integers(0, 4, number, dtype=np.int32)
    elif augmentation == "rotate":
        mirror = rng.integers(0, 2, number).astype(bool)
        angle = rng.uniform(0.0, 2.0 * math.pi, number).astype(np.float32)
    return Turns(mirror, quarters, angle)


def partners(names: list[str]) -> list[str]:
    """`names` and the other components that are needed to turn them."""
    needed = dict.fromkeys(names)
    for name in names:
        partner = CATALOGUE[name].partner
        if partner is not None:
            needed.setdefault(partner)
    return list(needed)


@functools.lru_cache(maxsize=1)
def _rotation_layer():
    import keras_cv

    return keras_cv.layers.RandomRotation(
        factor=1.0, fill_mode="constant", interpolation="bilinear"
    )


def turn_images(images: tf.Tensor, turns: Turns, free_rotation: bool) -> tf.Tensor:
    """Turns images [B, N, N, C]; the angle is used only with `free_rotation`."""

    def pick(condition, changed, unchanged):
        return tf.where(condition[:, None, None, None], changed, unchanged)

    images = pick(turns.mirror, tf.reverse(images, [2]), images)
    half = tf.reverse(images, [1, 2])
    images = pick(turns.quarters >= 2, half, images)
    quarter = tf.reverse(tf.transpose(images, (0, 2, 1, 3)), [2])
    images = pick(turns.quarters % 2 == 1, quarter, images)
    if free_rotation:
        # Keras-CV turns counter-clockwise with the first axis downwards: the other way round.
        images = _rotation_layer().augment_images(images, {"angles": -turns.angle})
    return images


def turn_parameters(values: Mapping[str, tf.Tensor], turns: Turns) -> dict[str, tf.Tensor]:
    """Turns parameters, each [B], by name; partners must be among them (see `partners`)."""
    angle = turns.angle + tf.cast(turns.quarters, tf.float32) * (math.pi / 2.0)
    turned = {}
    for name, value in values.items():
        parameter = CATALOGUE[name]
        if parameter.period is not None:
            value = tf.where(turns.mirror, math.pi - value, value) + angle
            turned[name] = tf.math.floormod(value, parameter.period)
        elif parameter.spin:
            first, second = (value, values[parameter.partner])
            if parameter.component == 1:
                first, second = second, first
            # x → -x changes the sign of the x of positions and of the sine of ellipticities.
            if parameter.spin == 1:
                first = tf.where(turns.mirror, -first, first)
            else:
                second = tf.where(turns.mirror, -second, second)
            cos, sin = tf.cos(parameter.spin * angle), tf.sin(parameter.spin * angle)
            turned[name] = (
                cos * first - sin * second
                if parameter.component == 0
                else sin * first + cos * second
            )
        else:
            turned[name] = value
    return turned
