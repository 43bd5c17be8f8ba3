"""What a bundle answers: a model's outputs, recalibrated in the graph where there are maps."""

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from dlens_tf.evaluation.calibration import LEVELS, WEIGHTS
from dlens_tf.evaluation.recalibration import Recalibration
from dlens_tf.quantiles import QUANTILE_LEVELS


def answers(model: keras.Model, recalibration: Recalibration | None) -> Callable:
    """A function from images [N, H, W, C] to the dict of a head's outputs.

    With a recalibration, `mean`, `stddev` and `quantiles` are those of the recalibrated marginals,
    Q'(τ) = Q(G⁻¹(τ)), as `RecalibratedPosterior` computes them; `density` stays as the network
    gives it, for `Posterior.from_outputs`.

    Args:
      model: with a layer "head".
      recalibration: maps of its parameters, in its order; None for none.
    """
    if recalibration is None:
        return lambda images: model(images, training=False)
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
        outputs = model(images, training=False)
        numbers = outputs["density"]
        weights = np.float32(WEIGHTS)[:, np.newaxis, np.newaxis]
        grid = quantiles(numbers, LEVELS)
        mean = ops.sum(weights * grid, axis=0)
        variance = ops.sum(weights * (grid - mean) ** 2, axis=0)
        return {
            "mean": ops.clip(mean, low, high),  # which rounding alone may leave
            "stddev": ops.sqrt(variance),
            "quantiles": ops.moveaxis(quantiles(numbers, QUANTILE_LEVELS), 0, -1),
            "density": numbers,
        }

    return answer
