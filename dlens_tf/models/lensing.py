"""Smooth lenses in Keras ops: deflections, a Sersic source and their derivatives.

The formulae are those of the fast engine (`simulation.kernels`), for batches of lenses and in
backend-agnostic operations, so that a network can fit lenses inside its graph.

Arrays are float32: positions [P] or [N, P] in arcsec, parameters [N, 1].
"""

import math

from keras import ops

_MIN_ELLIPTICITY = 1e-6
_SOFTENING = 0.01
"""Of a point mass, arcsec."""
_SERSIC_FLOOR = 1e-6
"""Square of the radius, in half-light radii, within which the brightness is constant."""
LOG_FLUX_PER_MAGNITUDE = -0.4 * math.log(10.0)


def isothermal(x, y, *, theta_E, e1, e2, center_x, center_y):
    """Deflection by a singular isothermal ellipsoid, two arrays [N, P], arcsec.

    Reference: Kormann, Schneider & Bartelmann 1994, A&A 284, 285, in lenstronomy's convention.
    """
    size = ops.sqrt(e1 * e1 + e2 * e2 + _MIN_ELLIPTICITY**2)
    q = (1.0 - size) / (1.0 + size)
    twice_cos = e1 / size
    cos = ops.sqrt(ops.maximum(0.5 * (1.0 + twice_cos), 0.0))
    sin = ops.where(e2 >= 0.0, 1.0, -1.0) * ops.sqrt(ops.maximum(0.5 * (1.0 - twice_cos), 0.0))
    dx, dy = x - center_x, y - center_y
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    f = ops.sqrt(ops.maximum(1.0 - q * q, 4.0 * _MIN_ELLIPTICITY))
    inverse = ops.rsqrt(q * q * u * u + v * v + 1e-8)
    strength = theta_E * ops.sqrt(q) / f
    across = ops.clip(f * v * inverse, -0.999999, 0.999999)
    along = strength * ops.arctan(f * u * inverse)
    across = strength * 0.5 * ops.log((1.0 + across) / (1.0 - across))
    return cos * along - sin * across, sin * along + cos * across


def point_mass(x, y, *, theta_E, center_x, center_y):
    """Deflection by a point mass of Einstein radius `theta_E`, two arrays [N, P], arcsec."""
    dx, dy = x - center_x, y - center_y
    pull = theta_E**2 / (dx * dx + dy * dy + _SOFTENING**2)
    return pull * dx, pull * dy


def shear(x, y, *, gamma1, gamma2):
    """Deflection by an external shear about the origin, two arrays [N, P], arcsec."""
    return gamma1 * x + gamma2 * y, gamma2 * x - gamma1 * y


def _log_gamma(z):
    """Logarithm of the gamma function for z > 0, to 1e-6: Stirling's series after a shift."""
    shifted = z + 5.0
    product = z * (z + 1.0) * (z + 2.0) * (z + 3.0) * (z + 4.0)
    series = 1.0 / (12.0 * shifted) - 1.0 / (360.0 * shifted**3)
    stirling = (shifted - 0.5) * ops.log(shifted) - shifted + 0.5 * math.log(2.0 * math.pi)
    return stirling + series - ops.log(product)


def sersic_log_flux(R_sersic, n_sersic):
    """Logarithm of the flux of a Sersic profile of brightness 1 at R_sersic; arrays of a shape."""
    b_n = _b_n(n_sersic)
    power = b_n - 2.0 * n_sersic * ops.log(b_n) + _log_gamma(2.0 * n_sersic)
    return math.log(2.0 * math.pi) + ops.log(n_sersic) + 2.0 * ops.log(R_sersic) + power


def _b_n(n_sersic):
    """lenstronomy's approximation."""
    return 1.9992 * n_sersic - 0.3271


def sersic(x, y, *, source_x, source_y, source_R_sersic, source_n_sersic, source_e1, source_e2):
    """Surface brightness, 1 at R_sersic, and its gradient by x and y, each [N, P]."""
    norm = ops.sqrt(ops.abs(1.0 - source_e1**2 - source_e2**2)) * source_R_sersic
    xx, xy, yy = (1.0 - source_e1) / norm, -source_e2 / norm, (1.0 + source_e1) / norm
    dx, dy = x - source_x, y - source_y
    u, v = xx * dx + xy * dy, xy * dx + yy * dy
    square = ops.maximum(u * u + v * v, _SERSIC_FLOOR)
    b_n = _b_n(source_n_sersic)
    power = ops.exp(0.5 / source_n_sersic * ops.log(square))
    brightness = ops.exp(b_n - b_n * power)
    slope = -brightness * b_n * power / (source_n_sersic * square)
    return brightness, slope * (xx * u + xy * v), slope * (xy * u + yy * v)
