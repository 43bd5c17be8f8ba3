"""The image contract: what a model asks of an image, and the one place where it is checked.

Images are float32 [N, H, W, C] in the instrument's flux unit, as they come: nothing is resized,
cropped, stretched, clipped or filled in here. Row 0 is the lowest y, as in lenstronomy and FITS.
"""

import dataclasses
import math

import numpy as np

from dlens_tf.errors import UserError

PIXEL_SCALE_TOLERANCE = 0.02
"""Largest relative difference between an image's pixel scale and the model's."""


@dataclasses.dataclass(frozen=True)
class RawImages:
    """What a file holds, before any check.

    Attributes:
      array: real numbers, [H, W], [H, W, C], [N, H, W] or [N, H, W, C].
      pixel_scale: arcsec per pixel, or None if the file does not say.
      note: one line that the user should see, about a choice made while reading.
    """

    array: np.ndarray
    pixel_scale: float | None = None
    note: str | None = None


def _brackets(shape) -> str:
    return f"[{', '.join(str(int(n)) for n in shape)}]"


@dataclasses.dataclass(frozen=True)
class ImageContract:
    """What a model asks of its images.

    Attributes:
      shape: height, width, channels.
      pixel_scale: arcsec per pixel.
    """

    shape: tuple[int, int, int]
    pixel_scale: float

    def arrange(self, array: np.ndarray, where: str) -> np.ndarray:
        """Checks an array and returns it as float32 [N, H, W, C].

        Accepted are [H, W, C], [N, H, W, C] and, for one channel, [H, W] and [N, H, W]. The
        model's shape tells them apart; should several fit (a model of width 1), the first of
        this list is meant.

        Args:
          array: real numbers.
          where: the file's name, for messages.

        Raises:
          UserError: if type, shape or values do not fit.
        """
        if array.dtype.kind not in "fiu":
            raise UserError(
                f"{where}: values are of type {array.dtype}; an image needs float or integer values"
            )
        images = array.reshape(self.batch_shape(array.shape, where))
        with np.errstate(over="ignore"):
            converted = np.array(images, dtype=np.float32, order="C")
        finite = np.isfinite(converted)
        if not finite.all():
            first = np.unravel_index(np.argmin(finite), finite.shape)
            image, row, column, channel = (int(i) for i in first)
            raise UserError(
                f"{where}: {finite.size - np.count_nonzero(finite)} of {finite.size} values are "
                f"NaN, infinite or too large for float32, the first ({images[first]}) in image "
                f"{image} at row {row}, column {column}, channel {channel}; mend or leave out "
                "such images"
            )
        return converted

    def batch_shape(self, shape: tuple[int, ...], where: str) -> tuple[int, ...]:
        """The [N, H, W, C] that an array's shape means; a `UserError` if it does not fit."""
        one_channel = self.shape[-1] == 1
        if shape == self.shape or (one_channel and shape == self.shape[:2]):
            return (1, *self.shape)
        is_batch = (len(shape) == 4 and shape[1:] == self.shape) or (
            one_channel and len(shape) == 3 and shape[1:] == self.shape[:2]
        )
        if is_batch and shape[0] > 0:
            return (shape[0], *self.shape)
        height, width, channels = self.shape
        wants = f"the model takes {_brackets(self.shape)}"
        if is_batch:
            raise UserError(f"{where}: there is no image in it (shape {_brackets(shape)})")
        if len(shape) not in (2, 3, 4):
            raise UserError(
                f"{where}: an array of shape {_brackets(shape)} is not an image; {wants} "
                "(height, width, channels)"
            )
        if shape[:2] == (height, width) or (len(shape) == 4 and shape[1:3] == (height, width)):
            found = shape[-1] if len(shape) > 2 else 1
            raise UserError(
                f"{where}: {found} channel{'s' if found != 1 else ''} (shape {_brackets(shape)}), "
                f"but {wants}, {channels} channel{'s' if channels != 1 else ''}"
            )
        raise UserError(
            f"{where}: shape {_brackets(shape)}, but {wants} at {self.pixel_scale:g} arcsec per "
            f"pixel; cut out or rebin to {height}×{width} pixels"
        )

    def check_pixel_scale(self, pixel_scale: float, where: str) -> None:
        """Raises a `UserError` if a pixel scale in arcsec differs by more than 2 %."""
        if not (math.isfinite(pixel_scale) and pixel_scale > 0.0):
            raise UserError(f"{where}: {pixel_scale:g} arcsec per pixel is not a pixel scale")
        if abs(pixel_scale / self.pixel_scale - 1.0) > PIXEL_SCALE_TOLERANCE:
            raise UserError(
                f"{where}: {pixel_scale:.4g} arcsec per pixel, but the model was trained at "
                f"{self.pixel_scale:.4g}; resample the image or use a model of its pixel scale"
            )
