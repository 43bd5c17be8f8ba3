"""Images on polar coordinates, where a turn of the lens is a shift and a ring is a row."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="dlens_tf")
class PolarResample(keras.layers.Layer):
    """Resamples images about their centre on rings and rays, bilinearly.

    Row i is the ring of radius `min_radius + (i + 1/2) × (max_radius - min_radius) / radii`, in
    units of half the shorter side; column j is the angle 2π (j - overlap) / angles, from +x, the
    second axis, towards +y, the first. Radius 1 is the ring through the centres of the outermost
    pixels. Columns are periodic: with `overlap`, so many of each end stand again beside the other
    end, so that convolutions see across the seam.

    Args:
      radii: rings.
      angles: rays.
      min_radius: inner edge of the innermost ring.
      max_radius: outer edge of the outermost ring; beyond 1, corners are repeated outwards.
      overlap: columns that are repeated at each end.

    Input [N, H, W, C], output [N, radii, angles + 2 overlap, C].
    """

    def __init__(
        self,
        radii: int = 32,
        angles: int = 64,
        min_radius: float = 0.0,
        max_radius: float = 1.0,
        overlap: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0.0 <= min_radius < max_radius:
            raise ValueError(
                f"min_radius {min_radius} must be at least 0 and below max_radius {max_radius}"
            )
        if not 0 <= overlap <= angles:
            raise ValueError(f"overlap {overlap} must lie between 0 and angles {angles}")
        self.radii = radii
        self.angles = angles
        self.min_radius = min_radius
        self.max_radius = max_radius
        self.overlap = overlap

    def positions(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates of the samples, first and second axis, float64 [radii, columns]."""
        step = (self.max_radius - self.min_radius) / self.radii
        half = (min(height, width) - 1) / 2
        radius = half * (self.min_radius + step * (np.arange(self.radii) + 0.5))[:, np.newaxis]
        columns = np.arange(-self.overlap, self.angles + self.overlap) % self.angles
        angle = 2.0 * np.pi / self.angles * columns
        y = (height - 1) / 2 + radius * np.sin(angle)
        x = (width - 1) / 2 + radius * np.cos(angle)
        return np.clip(y, 0.0, height - 1.0), np.clip(x, 0.0, width - 1.0)

    def build(self, input_shape):
        height, width = input_shape[1:3]
        y, x = (values.ravel() for values in self.positions(height, width))
        # The lower corner of the cell that holds a sample, and the sample's place inside the cell.
        row = np.minimum(y.astype(int), max(height - 2, 0))
        column = np.minimum(x.astype(int), max(width - 2, 0))
        down, right = y - row, x - column
        self._corners = []
        for i, weight_i in ((0, 1.0 - down), (1, down)):
            for j, weight_j in ((0, 1.0 - right), (1, right)):
                index = np.minimum(row + i, height - 1) * width
                index += np.minimum(column + j, width - 1)
                weight = (weight_i * weight_j)[:, np.newaxis]
                self._corners.append((index.astype(np.int32), weight.astype(np.float32)))

    def call(self, images):
        shape = ops.shape(images)
        pixels = ops.reshape(images, (-1, shape[1] * shape[2], shape[3]))
        samples = sum(
            ops.take(pixels, index, axis=1) * ops.cast(weight, images.dtype)
            for index, weight in self._corners
        )
        return ops.reshape(samples, (-1, *self.compute_output_shape(images.shape)[1:]))

    def compute_output_shape(self, input_shape):
        columns = self.angles + 2 * self.overlap
        return (input_shape[0], self.radii, columns, input_shape[3])

    def get_config(self):
        names = ("radii", "angles", "min_radius", "max_radius", "overlap")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
