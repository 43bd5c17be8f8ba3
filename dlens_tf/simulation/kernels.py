"""Deflections and light of one lens in TensorFlow: the fast engine's formulae.

All functions take sky positions [P] (arcsec, float32) and scalars, and use only operations that
XLA compiles, on any device. They are written so that XLA fuses a lens into one pass over its
pixels: a value that is needed twice must not leave the pass, so the two components of a
deflection are kept together until the source's brightness makes one number of them.
"""

from typing import NamedTuple

import tensorflow as tf

from dlens_tf.simulation.halo_poles import POLES

ENTRIES_PER_STEP = 8
"""Entries that are summed in one pass over the pixels."""

_TINY = 1e-30


class Deflection(NamedTuple):
    """Reduced deflection angles, arcsec, each [P]."""

    x: tf.Tensor
    y: tf.Tensor

    def __add__(self, other: "Deflection") -> "Deflection":
        return Deflection(self.x + other.x, self.y + other.y)


def elliptical_power_law(
    x, y, *, theta_E, slope, axis_ratio, cos, sin, center_x, center_y, terms: int
) -> Deflection:
    """Elliptical power law by the series of Tessore & Metcalf 2015, arXiv:1507.01819, eq. 23.

    Args:
      x, y: positions.
      theta_E: Einstein radius in lenstronomy's convention.
      slope: t = gamma - 1; 1 is isothermal.
      axis_ratio: q, minor over major.
      cos, sin: of the major axis's position angle.
      center_x, center_y: of the lens.
      terms: of the series; the rest is of the order of ((1 - q) / (1 + q))^terms.
    """
    dx, dy = x - center_x, y - center_y
    real = axis_ratio * (cos * dx + sin * dy)
    imaginary = cos * dy - sin * dx
    square = tf.maximum(real * real + imaginary * imaginary, 1e-14)
    inverse = tf.math.rsqrt(square)
    term_re, term_im = real * inverse, imaginary * inverse
    twice_re = term_re * term_re - term_im * term_im
    twice_im = 2.0 * term_re * term_im
    flattening = (1.0 - axis_ratio) / (1.0 + axis_ratio)
    sum_re, sum_im = term_re, term_im
    for n in range(1, terms):
        factor = -flattening * (2.0 * n - 2.0 + slope) / (2.0 * n + 2.0 - slope)
        term_re, term_im = (
            factor * (twice_re * term_re - twice_im * term_im),
            factor * (twice_re * term_im + twice_im * term_re),
        )
        sum_re, sum_im = sum_re + term_re, sum_im + term_im
    scale = theta_E * tf.sqrt(axis_ratio)
    # b (b / R)^(t - 1), without the power's cost for isothermal lenses.
    size = 2.0 / (1.0 + axis_ratio) * scale
    if slope is not ISOTHERMAL:
        size *= tf.exp((slope - 1.0) * (tf.math.log(scale) - 0.5 * tf.math.log(square)))
    along, across = size * sum_re, size * sum_im
    return Deflection(cos * along - sin * across, sin * along + cos * across)


ISOTHERMAL = 1.0
"""Pass this very object as `slope` for a lens that is isothermal in every image."""


def shear(x, y, *, gamma1, gamma2) -> Deflection:
    """External shear about the origin."""
    return Deflection(gamma1 * x + gamma2 * y, gamma2 * x - gamma1 * y)


def convergence_sheet(x, y, *, kappa, center_x, center_y) -> Deflection:
    """Uniform convergence."""
    return Deflection(kappa * (x - center_x), kappa * (y - center_y))


def line(
    x, y, *, middle_x, middle_y, cos, sin, half_length, theta_E_squared, number: int
) -> Deflection:
    """Equal point masses, evenly spaced on a line, summed in pairs about its middle.

    With z the position relative to the middle, turned so that the line is the real axis, a pair
    at ±t deflects by the conjugate of 2 z θ² / (z² - t²). The real part of z² - t² is computed
    as (u - t)(u + t) - v², which keeps float32 exact beside a mass.

    Args:
      x, y: positions.
      middle_x, middle_y, cos, sin, half_length: of the line.
      theta_E_squared: of each mass, square arcsec.
      number: of masses.
    """
    dx, dy = x - middle_x, y - middle_y
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    minus_v2, imaginary = -v * v, 2.0 * u * v
    imaginary2 = imaginary * imaginary + _TINY
    sum_re, sum_inverse = tf.zeros_like(u), tf.zeros_like(u)
    for pair in range(number // 2):
        t = half_length * ((2.0 * pair + 1.0 + number % 2) / (number - 1.0))
        real = (u - t) * (u + t) + minus_v2
        inverse = 1.0 / (real * real + imaginary2)
        sum_re += real * inverse
        sum_inverse += inverse
    sum_im = imaginary * sum_inverse
    along = 2.0 * theta_E_squared * (u * sum_re + v * sum_im)
    across = 2.0 * theta_E_squared * (u * sum_im - v * sum_re)
    if number % 2:
        inverse = theta_E_squared / (u * u + v * v + _TINY)
        along, across = along + u * inverse, across + v * inverse
    return Deflection(cos * along - sin * across, sin * along + cos * across)


def _entries_deflection(x, y, entries) -> tf.Tensor:
    """Deflection, complex [P], of entries [n, ENTRY_SIZE] with static n."""
    total_x, total_y = tf.zeros_like(x), tf.zeros_like(y)
    for i in range(entries.shape[0]):
        numbers = [entries[i, k] for k in range(entries.shape[1])]
        dx, dy = x - numbers[0], y - numbers[1]
        s = (dx * dx + dy * dy) * numbers[2]
        top, bottom = numbers[3], s + numbers[3 + POLES]
        for coefficient in numbers[4 : 3 + POLES]:
            top = top * s + coefficient
        for coefficient in numbers[4 + POLES :]:
            bottom = bottom * s + coefficient
        ratio = top / bottom
        total_x += dx * ratio
        total_y += dy * ratio
    # One complex number, not two reals: XLA would compute all of the above for each of them.
    return tf.complex(total_x, total_y)


def entries_sum(x, y, entries, steps) -> Deflection:
    """Halos and point masses in the form of `halo_poles`, a few at a time.

    Memory is that of a few images whatever the number of entries.

    Args:
      x, y: positions.
      entries: [E, ENTRY_SIZE], padded with zeros that deflect nothing.
      steps: scalar int32, how many times `ENTRIES_PER_STEP` entries to sum.
    """

    def body(step, total):
        first = step * ENTRIES_PER_STEP
        some = tf.slice(entries, [first, 0], [ENTRIES_PER_STEP, entries.shape[1]])
        return step + 1, total + _entries_deflection(x, y, some)

    zero = tf.zeros(x.shape, tf.complex64)
    _, total = tf.while_loop(lambda step, _: step < steps, body, (tf.constant(0), zero))
    return Deflection(tf.math.real(total), tf.math.imag(total))


def sersic(x, y, *, center_x, center_y, xx, xy, yy, b_n, inverse_n, floor) -> tf.Tensor:
    """Surface brightness [P] of a Sersic profile, 1 at the half-light radius.

    Args:
      x, y: positions.
      center_x, center_y: of the profile.
      xx, xy, yy: symmetric matrix that makes ellipses into circles of radius 1.
      b_n: of lenstronomy's approximation.
      inverse_n: 1 / Sersic index.
      floor: square of the radius, in units of the half-light radius, within which lenstronomy
        keeps the brightness constant.
    """
    dx, dy = x - center_x, y - center_y
    u, v = xx * dx + xy * dy, xy * dx + yy * dy
    log_square = tf.math.log(tf.maximum(u * u + v * v, floor))
    return tf.exp(b_n - b_n * tf.exp(0.5 * inverse_n * log_square))


def picture(x, y, pixels, *, center_x, center_y, cos, sin) -> tf.Tensor:
    """Bilinear interpolation [P] in a picture, as lenstronomy's INTERPOL.

    Args:
      x, y: positions.
      pixels: [n, n], zero on its border.
      center_x, center_y: where the middle of the picture is.
      cos, sin: of the picture's angle, divided by its pixel scale.
    """
    side = pixels.shape[0]
    dx, dy = x - center_x, y - center_y
    middle, last = 0.5 * (side - 1.0), side - 1.0
    column = tf.clip_by_value(cos * dx + sin * dy + middle, 0.0, last)
    row = tf.clip_by_value(cos * dy - sin * dx + middle, 0.0, last)
    left = tf.minimum(tf.floor(column), last - 1.0)
    below = tf.minimum(tf.floor(row), last - 1.0)
    right_part, above_part = column - left, row - below
    index = tf.cast(below, tf.int32) * side + tf.cast(left, tf.int32)
    flat = tf.reshape(pixels, [-1])

    def pixel(offset: int) -> tf.Tensor:
        return tf.gather(flat, index + offset)

    lower = pixel(0) + right_part * (pixel(1) - pixel(0))
    upper = pixel(side) + right_part * (pixel(side + 1) - pixel(side))
    return lower + above_part * (upper - lower)
