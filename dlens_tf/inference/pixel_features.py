"""What pixels are like that no lens decides: their noise, its correlation, and flat tops.

Few numbers that hardly differ between images of one kind, and that saturated images, or such of
other exposures, pixels or resamplings, do not share. In keras.ops, to be served in a graph.
"""

import math

from keras import ops

from dlens_tf.evaluation.summaries import by_channel

NAMES = (
    "log_noise",  # of the median |second difference along both axes|, in the border
    "log_noise_binned",  # the same of the image's mean over 2 × 2 pixels
    "log_flatness",  # of 1 - t / p: p the peak, t such that 0.5 % of the pixels are brighter
)
"""Names of the features of one channel, in order."""

_BORDER = 0.2  # of a side, at each end: there light varies less from pixel to pixel than noise
_SAMPLES = 2000
_BRIGHT = 0.005
_SMALLEST_STEP = 1e-3  # below the peak, in its units
_SMALLEST_NOISE = 1e-6  # in units of the peak: float32 ends there


def _noise(images):
    """Median roughness [N] of the border of images [N, H, W]."""
    # What varies slowly along either axis has next to none.
    rough = images[:, :-2] - 2.0 * images[:, 1:-1] + images[:, 2:]
    rough = rough[:, :, :-2] - 2.0 * rough[:, :, 1:-1] + rough[:, :, 2:]
    rows, columns = (max(round(_BORDER * size), 1) for size in rough.shape[1:])
    middle = rough[:, rows:-rows]
    parts = [rough[:, :rows], rough[:, -rows:], middle[:, :, :columns], middle[:, :, -columns:]]
    around = ops.concatenate(
        [ops.reshape(part, (-1, math.prod(part.shape[1:]))) for part in parts], axis=1
    )
    # Neighbours tell much the same: of a large image, some thousands of pixels will do.
    around = around[:, :: max(around.shape[1] // _SAMPLES, 1)]
    return _kth_largest(ops.abs(around), around.shape[1] // 2)


def _kth_largest(values, k: int):
    """Of values [N, M], [N]."""
    return ops.min(ops.top_k(values, k, sorted=False)[0], axis=1)  # sorted, it takes twice as long


def _one_channel(images):
    """Features, a list of len(NAMES) arrays [N], of images [N, H, W]."""
    height, width = images.shape[1:]
    flat = ops.reshape(images, (-1, height * width))
    peak = ops.max(flat, axis=1)
    bright = _kth_largest(flat, max(round(_BRIGHT * height * width), 2))
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    binned = 0.25 * (
        even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]
    )
    size = ops.abs(peak)
    size = ops.where(size > 0.0, size, 1.0)
    return [
        *(ops.log(_noise(pixels) + _SMALLEST_NOISE * size) for pixels in (images, binned)),
        ops.log((peak - bright) / size + _SMALLEST_STEP),
    ]


def statistics(images):
    """Features of a tensor of images.

    Args:
      images: float [N, H, W, C], raw flux, sides of at least 16 pixels.

    Returns:
      [N, C × len(NAMES)] of the same dtype, channel by channel.
    """
    return by_channel(_one_channel, images)
