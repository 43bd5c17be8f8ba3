"""Simple summary statistics of an image: for the linear baseline, and to tell unlike images.

What one would measure on a lens without a network: brightness, size, shape, radial profile,
azimuthal structure, symmetry, roughness. All in keras.ops over a batch at once, so that the same
statistics can be served in a graph.

Pixel coordinates run from the image's centre in units of half its side. The border (the outer
tenth on each side) gives the background level b and its rms s. Moments weigh pixels by
w = max(I - b - 2 s, 0), which noise hardly enters; where no pixel stands out (w = 0 everywhere)
they are 0.
"""

import math
from collections.abc import Callable

import numpy as np
from keras import ops

NUM_ANNULI = 6
_ORDERS = (1, 2, 3, 4)

NAMES = (
    "flux",  # Σ (I - b)
    "peak",  # max (I - b)
    "background",  # b
    "background_rms",  # s
    "log_flux_to_noise",  # asinh(flux / (s √pixels))
    "log_peak_to_noise",  # asinh(peak / s)
    "area_3_rms",  # fraction of pixels with I - b > 3 s
    "area_10_rms",
    "centroid_x",  # <x>, <> weighted by w
    "centroid_y",
    "size",  # √(<(x-<x>)²> + <(y-<y>)²>)
    "ellipticity_1",  # (Mxx - Myy) / (Mxx + Myy), M the second central moments
    "ellipticity_2",  # 2 Mxy / (Mxx + Myy)
    *(f"annulus_{i}" for i in range(NUM_ANNULI)),  # share of Σw at (i … i+1)/6 of the half side
    *(f"multipole_{m}_{part}" for m in (2, 4) for part in ("cos", "sin")),  # <cos mφ>, <sin mφ>
    *(f"multipole_{m}" for m in _ORDERS),  # √(<cos mφ>² + <sin mφ>²), in the brightest annulus
    "asymmetry",  # Σ |I - I turned by 180°| / Σ |I - b|
    "roughness",  # rms of I minus its mean over the four neighbours, over the rms of I - b
)
"""Names of the statistics of one channel, in order."""


def _weighted(weights, values):
    """Σ w v / Σ w over pixels: weights [N, M], values [M] or [N, M]; 0 where Σ w is 0."""
    total = ops.sum(weights, axis=1)
    return ops.sum(weights * values, axis=1) / ops.where(total > 0.0, total, 1.0)


def _ratio(numerator, denominator):
    """0 / 1 where there is nothing to divide by."""
    return numerator / ops.where(denominator > 0.0, denominator, 1.0)


def _one_channel(images):
    """Statistics, a list of len(NAMES) arrays [N], of images [N, H, W]."""
    height, width = images.shape[1:]
    # Computed in the graph, which would be large with a picture for each constant.
    x, y = (ops.linspace(-1.0, 1.0, n, dtype=images.dtype) for n in (width, height))
    x, y = (ops.reshape(v, (-1,)) for v in ops.meshgrid(x, y))
    rows, columns = (np.abs(np.linspace(-1.0, 1.0, n)) >= 0.8 for n in (height, width))
    border = np.flatnonzero(rows[:, None] | columns)
    radius, angle = ops.sqrt(x**2 + y**2), ops.arctan2(y, x)
    annulus = ops.floor(radius * NUM_ANNULI)

    flat = ops.reshape(images, (-1, height * width))
    around = ops.take(flat, border, axis=1)
    level = ops.mean(around, axis=1)
    signal = flat - level[:, None]
    peak = ops.max(signal, axis=1)
    # Noise-free images have a quiet border; the floor keeps what is divided by it in range.
    rms = ops.maximum(ops.std(around, axis=1), 1e-4 * ops.abs(peak))
    safe_rms = ops.where(rms > 0.0, rms, 1.0)
    flux = ops.sum(signal, axis=1)

    weights = ops.maximum(signal - 2.0 * rms[:, None], 0.0)
    centroid_x, centroid_y = _weighted(weights, x), _weighted(weights, y)
    dx, dy = x - centroid_x[:, None], y - centroid_y[:, None]
    xx, yy, xy = (_weighted(weights, v) for v in (dx * dx, dy * dy, dx * dy))
    size = xx + yy

    rings = [ops.cast(annulus == i, images.dtype) for i in range(NUM_ANNULI)]
    shares = ops.stack([_weighted(weights, ring) for ring in rings], axis=1)
    brightest = ops.one_hot(ops.argmax(shares, axis=1), NUM_ANNULI, dtype=images.dtype)
    in_ring = weights * ops.matmul(brightest, ops.stack(rings))
    waves = {m: (ops.cos(m * angle), ops.sin(m * angle)) for m in _ORDERS}

    turned = ops.reshape(ops.flip(images, axis=(1, 2)), (-1, height * width))
    inner = images[:, 1:-1, 1:-1]
    neighbours = 0.25 * (
        images[:, :-2, 1:-1] + images[:, 2:, 1:-1] + images[:, 1:-1, :-2] + images[:, 1:-1, 2:]
    )
    return [
        flux,
        peak,
        level,
        rms,
        ops.arcsinh(flux / (safe_rms * math.sqrt(height * width))),
        ops.arcsinh(peak / safe_rms),
        *(
            ops.mean(ops.cast(signal > n * safe_rms[:, None], images.dtype), axis=1)
            for n in (3.0, 10.0)
        ),
        centroid_x,
        centroid_y,
        ops.sqrt(size),
        _ratio(xx - yy, size),
        _ratio(2.0 * xy, size),
        *(shares[:, i] for i in range(NUM_ANNULI)),
        *(_weighted(weights, wave) for m in (2, 4) for wave in waves[m]),
        *(
            ops.sqrt(_weighted(in_ring, cosine) ** 2 + _weighted(in_ring, sine) ** 2)
            for cosine, sine in waves.values()
        ),
        _ratio(ops.sum(ops.abs(flat - turned), axis=1), ops.sum(ops.abs(signal), axis=1)),
        _ratio(ops.std(inner - neighbours, axis=(1, 2)), ops.std(signal, axis=1)),
    ]


def statistics(images):
    """Summary statistics of a tensor of images.

    Args:
      images: float [N, H, W, C], raw flux, sides of at least 3 pixels.

    Returns:
      [N, C × len(NAMES)] of the same dtype, channel by channel.
    """
    return by_channel(_one_channel, images)


def by_channel(statistics_of: Callable, images):
    """Statistics of each channel, side by side: [N, C × K].

    Args:
      statistics_of: from images [N, H, W] of one channel to a list of K arrays [N].
      images: [N, H, W, C].
    """
    channels = [statistics_of(images[..., c]) for c in range(images.shape[-1])]
    return ops.stack([values for channel in channels for values in channel], axis=1)


def summarise(images: np.ndarray) -> np.ndarray:
    """Summary statistics of an array of images, in double precision.

    Args:
      images: [N, H, W, C], as `statistics` takes them.

    Returns:
      float64 [N, C × len(NAMES)], channel by channel.
    """
    images = np.asarray(images, np.float64)
    if images.ndim != 4:
        raise ValueError(f"images must be [N, H, W, C], got shape {images.shape}")
    return ops.convert_to_numpy(statistics(ops.convert_to_tensor(images)))
