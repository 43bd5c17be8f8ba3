"""What the front ends that fit lenses share: moments of noisy pixels, and the normal equations."""

import math

import numpy as np
from keras import ops

from dlens_tf.errors import UserError
from dlens_tf.simulation.recipes import Recipe

_SQRT_2PI = math.sqrt(2.0 * math.pi)


def check_augmentation(front_end: str, recipe: Recipe, augmentation: str) -> None:
    """Raises a `UserError` if images turned so no longer fit a lens that the recipe fixes."""
    if recipe.symmetry == "rot180" and augmentation not in ("none", "rot180"):
        raise UserError(
            f"front end '{front_end}' can't fit lenses turned by --augmentation={augmentation}:"
            " its macro-model does not turn; use auto, none or rot180"
        )


def gaussian_moments(signal, background, exposure_time: float | None):
    """Pixels under the instrument's noise.

    Args:
      signal: noise-free image.
      background: standard deviation of a pixel without signal, in the image's unit.
      exposure_time: of the photon noise, s; None without.

    Returns:
      Mean and variance, and the mean's derivative by the signal, each like `signal`.
    """
    variance = background**2 * ops.ones_like(signal)
    if exposure_time is not None:
        variance = variance + ops.maximum(signal, 0.0) / exposure_time
    return signal, variance, ops.ones_like(signal)


def count_moments(signal, background):
    """The same under Model I's noise: a Poisson draw of a normal one that is cut at zero.

    See `simulation.noise.moments`.
    """
    sigma = ops.sqrt(signal + background**2)
    z = signal / sigma
    density = ops.exp(-0.5 * z**2) / _SQRT_2PI
    cumulative = 0.5 * (1.0 + ops.erf(z / math.sqrt(2.0)))
    mean = signal * cumulative + sigma * density
    square = (signal**2 + sigma**2) * cumulative + signal * sigma * density
    return mean, square - mean**2 + mean, cumulative


def solve_positive(matrix, right):
    """Solves [N, K, K] · x = [N, K, R] for positive definite matrices, by elimination.

    A library's solver refuses the whole batch where one row is not finite; here that row alone
    becomes NaN.
    """
    size = matrix.shape[-1]
    table = ops.concatenate([matrix, right], axis=-1)
    for i in range(size):
        row = table[:, i : i + 1] / table[:, i : i + 1, i : i + 1]
        others = np.ones((1, size, 1), np.float32)
        others[0, i] = 0.0
        table = table - others * table[:, :, i : i + 1] * row
        table = ops.where(others > 0.0, table, row)
    return table[..., size:]
