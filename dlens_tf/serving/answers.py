"""What a bundle answers: a model's outputs, recalibrated in the graph where there are maps."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dlens_tf.evaluation.calibration import LEVELS, WEIGHTS
from dlens_tf.evaluation.recalibration import Recalibration
from dlens_tf.inference.out_of_distribution import Detector, with_score
from dlens_tf.quantiles import QUANTILE_LEVELS


def answers(
    model: keras.Model, recalibration: Recalibration | None, detector: Detector | None = None
) -> Callable:
    """A function from images [N, H, W, C] to the dict of a head's outputs.

    And "features" [N, F], what the network gives to its head, and "ood_score" [N] where there is
    a detector.

    With a recalibration, `mean`, `stddev` and `quantiles` are those of the recalibrated marginals,
    Q'(τ) = Q(G⁻¹(τ)), as `RecalibratedPosterior` computes them; `density` stays as the network
    gives it, for `Posterior.from_outputs`.

    Args:
      model: with a layer "head".
      recalibration: maps of its parameters, in its order; None for none.
      detector: of images unlike the training images; None for none.
    """
    ask = with_score(model, detector)
    if recalibration is None:
        return ask
    head = model.get_layer("head")
    low, high = head.ends.T
    maps = list(recalibration.maps.values())

    def quantiles(numbers, levels):
        """At recalibrated levels, [Q, N, P] in physical units."""
        levels = np.stack([table.invert(levels) for table in maps], axis=-1)
        u = np.float32(levels)[:, np.newaxis] * ops.ones((1, ops.shape(numbers)[0], 1))
        values = low + (high - low) * head.density.icdf(numbers, u)
        return ops.clip(values, low, high)

    def answer(images):
        outputs = ask(images)
        numbers = outputs["density"]
        weights = np.float32(WEIGHTS)[:, np.newaxis, np.newaxis]
        grid = quantiles(numbers, LEVELS)
        mean = ops.sum(weights * grid, axis=0)
        variance = ops.sum(weights * (grid - mean) ** 2, axis=0)
        return outputs | {
            "mean": ops.clip(mean, low, high),  # which rounding alone may leave
            "stddev": ops.sqrt(variance),
            "quantiles": ops.moveaxis(quantiles(numbers, QUANTILE_LEVELS), 0, -1),
        }

    return answer


NUM_SAMPLES = 256
"""Draws that `sampler` makes for an image."""


def sampler(model: keras.Model, recalibration: Recalibration | None) -> Callable:
    """A function from a head's "density" [N, D] and seeds int64 [N] to draws [N, S, P].

    Draws are from the joint posterior, in physical units. With a recalibration each parameter is
    moved from its old to its new marginal, as `RecalibratedPosterior` does. An image's draws depend
    on its own seed only, not on the batch.

    Args:
      model: with a layer "head" that gives a density.
      recalibration: as in `answers`.
    """
    head = model.get_layer("head")
    tables = [] if recalibration is None else list(recalibration.maps.values())

    def uniforms(seed):
        shape = (NUM_SAMPLES, head.density.num_uniforms)
        return tf.random.stateless_uniform(shape, tf.stack([seed, 0]), alg="philox")

    def draw(numbers, seeds):
        low, high = np.float32(head.ends.T)
        u = tf.map_fn(uniforms, seeds, fn_output_signature=tf.float32)
        x = head.density.sample(numbers, ops.moveaxis(u, 1, 0))
        if tables:
            levels = head.density.cdf(numbers, x)
            inverted = [
                _interpolated(levels[..., p], table.calibrated, table.levels)
                for p, table in enumerate(tables)
            ]
            x = head.density.icdf(numbers, ops.stack(inverted, axis=-1))
        return ops.clip(low + (high - low) * ops.moveaxis(x, 0, 1), low, high)

    return draw


def _interpolated(x, knots: np.ndarray, values: np.ndarray):
    """Linear interpolation in a table, whose knots increase."""
    knots, values = np.float32(knots), np.float32(values)
    right = ops.searchsorted(knots, ops.reshape(x, (-1,)), side="right")
    right = ops.reshape(ops.clip(right, 1, len(knots) - 1), ops.shape(x))
    x0, x1 = ops.take(knots, right - 1), ops.take(knots, right)
    y0, y1 = ops.take(values, right - 1), ops.take(values, right)
    step = ops.where(x1 > x0, x1 - x0, 1.0)
    return y0 + (y1 - y0) * ops.clip((x - x0) / step, 0.0, 1.0)
