"""Fast bilinear interpolation on even grids."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Grid2D:
    """Values on an even grid, interpolated bilinearly and held at the edges outside.

    Attributes:
      x_low, x_high: first and last coordinate along the first axis.
      y_low, y_high: the same along the second axis.
      values: [X, Y], or [X, Y, C] to interpolate C values at once.
    """

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    values: np.ndarray

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Interpolates at N points: [N], or [N, C] for C values a node."""
        nx, ny = self.values.shape[:2]
        u = np.clip((x - self.x_low) * ((nx - 1) / (self.x_high - self.x_low)), 0.0, nx - 1)
        v = np.clip((y - self.y_low) * ((ny - 1) / (self.y_high - self.y_low)), 0.0, ny - 1)
        i = np.minimum(u.astype(np.intp), nx - 2)
        j = np.minimum(v.astype(np.intp), ny - 2)
        u, v = u - i, v - j
        flat = self.values.reshape(nx * ny, -1) if self.values.ndim == 3 else self.values.ravel()
        corner = i * ny + j
        if self.values.ndim == 3:
            u, v = u[..., None], v[..., None]
        low = flat[corner] + v * (flat[corner + 1] - flat[corner])
        high = flat[corner + ny] + v * (flat[corner + ny + 1] - flat[corner + ny])
        return low + u * (high - low)
