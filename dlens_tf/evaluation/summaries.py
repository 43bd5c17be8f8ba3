"""Simple summary statistics of an image, for the linear baseline.

What one would measure on a lens without a network: brightness, size, shape, radial profile,
azimuthal structure, symmetry, roughness. All in numpy over a batch at once.

Pixel coordinates run from the image's centre in units of half its side. The border (the outer
tenth on each side) gives the background level b and its rms s. Moments weigh pixels by
w = max(I - b - 2 s, 0), which noise hardly enters; where no pixel stands out (w = 0 everywhere)
they are 0.
"""

import numpy as np

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


def _weighted(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Σ w v / Σ w over pixels: weights [N, M], values [M] or [N, M]; 0 where Σ w is 0."""
    total = weights.sum(axis=1)
    return (weights * values).sum(axis=1) / np.where(total > 0.0, total, 1.0)


def _one_channel(images: np.ndarray) -> np.ndarray:
    """Statistics [N, len(NAMES)] of images [N, H, W]."""
    num, height, width = images.shape
    y, x = np.meshgrid(np.linspace(-1.0, 1.0, height), np.linspace(-1.0, 1.0, width), indexing="ij")
    border = np.maximum(np.abs(x), np.abs(y)) >= 0.8
    flat = images.reshape(num, -1)
    level = flat[:, border.ravel()].mean(axis=1)
    signal = flat - level[:, None]
    peak = signal.max(axis=1)
    # Noise-free images have a quiet border; the floor keeps what is divided by it in range.
    rms = np.maximum(flat[:, border.ravel()].std(axis=1), 1e-4 * np.abs(peak))
    safe_rms = np.where(rms > 0.0, rms, 1.0)
    flux = signal.sum(axis=1)

    weights = np.maximum(signal - 2.0 * rms[:, None], 0.0)
    x, y = x.ravel(), y.ravel()
    centroid_x, centroid_y = _weighted(weights, x), _weighted(weights, y)
    dx, dy = x - centroid_x[:, None], y - centroid_y[:, None]
    xx, yy, xy = (_weighted(weights, v) for v in (dx * dx, dy * dy, dx * dy))
    trace = np.where(xx + yy > 0.0, xx + yy, 1.0)

    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    annulus = np.floor(radius * NUM_ANNULI).astype(int)
    shares = np.stack(
        [_weighted(weights, (annulus == i).astype(float)) for i in range(NUM_ANNULI)], axis=1
    )
    turns = {m: np.exp(1j * m * angle) for m in _ORDERS}
    whole = {m: _weighted(weights, turns[m]) for m in (2, 4)}
    in_ring = weights * (annulus == shares.argmax(axis=1)[:, None])
    amplitudes = [np.abs(_weighted(in_ring, turns[m])) for m in _ORDERS]

    turned = images[:, ::-1, ::-1].reshape(num, -1)
    absolute = np.abs(signal).sum(axis=1)
    inner = images[:, 1:-1, 1:-1]
    neighbours = 0.25 * (
        images[:, :-2, 1:-1] + images[:, 2:, 1:-1] + images[:, 1:-1, :-2] + images[:, 1:-1, 2:]
    )
    contrast = signal.std(axis=1)
    return np.stack(
        [
            flux,
            peak,
            level,
            rms,
            np.arcsinh(flux / (safe_rms * np.sqrt(flat.shape[1]))),
            np.arcsinh(peak / safe_rms),
            (signal > 3.0 * safe_rms[:, None]).mean(axis=1),
            (signal > 10.0 * safe_rms[:, None]).mean(axis=1),
            centroid_x,
            centroid_y,
            np.sqrt(xx + yy),
            (xx - yy) / trace,
            2.0 * xy / trace,
            *shares.T,
            *(part(whole[m]) for m in (2, 4) for part in (np.real, np.imag)),
            *amplitudes,
            np.abs(flat - turned).sum(axis=1) / np.where(absolute > 0.0, absolute, 1.0),
            (inner - neighbours).reshape(num, -1).std(axis=1)
            / np.where(contrast > 0.0, contrast, 1.0),
        ],
        axis=1,
    )


def summarise(images: np.ndarray) -> np.ndarray:
    """Summary statistics of images.

    Args:
      images: float [N, H, W, C], raw flux, sides of at least 3 pixels.

    Returns:
      float64 [N, C × len(NAMES)], channel by channel.
    """
    images = np.asarray(images, np.float64)
    if images.ndim != 4:
        raise ValueError(f"images must be [N, H, W, C], got shape {images.shape}")
    return np.concatenate([_one_channel(images[..., c]) for c in range(images.shape[-1])], axis=1)
