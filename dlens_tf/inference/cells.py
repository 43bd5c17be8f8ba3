"""Integrates a function of two numbers that is only known where it is costly to ask.

`integrate` divides a rectangle into cells, asks for the logarithm of a density at their middles,
and splits into three, along the axis in which the density changes more, the cells that hold or
may hold most of what is still uncertain. In a cell the density is taken as exponential along each
axis. The trisection, which keeps the middle, is that of Jones et al. 1993 (DIRECT), J. Optim.
Theory Appl. 79, 157.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

ACCURACY = 0.1
"""What the doubts of an integral's cells are to sum to."""

_LARGEST_GAIN = 500.0
_STEEPEST = 1.0
_DEEPEST = 40
_ROUNDS = 4  # after which the cells are compared with those beside them
_IRRELEVANT = 12.0  # of the logarithm of a cell's part in the integral


class Cells:
    """Cells of a rectangle, each with the logarithm of the density at its middle.

    Attributes:
      middle: float64 [N, 2].
      width: float64 [N, 2].
      value: logarithm of the density at the middle, [N].
      slope: its derivative along each axis, [N, 2].
      gain: by how much it may be larger somewhere in the cell, along each axis, [N, 2].
      payload: whatever the density's function keeps of a point, [N, …].
    """

    def __init__(self, middle, width, value, slope, gain, payload):
        self.middle, self.width, self.value = middle, width, value
        self.slope, self.gain, self.payload = slope, gain, payload

    def __len__(self) -> int:
        return len(self.value)

    def rise(self) -> np.ndarray:
        """What the logarithm of the density is taken to rise by across each cell, [N, 2].

        No more than its neighbours show; little in coarse cells, whose values tell nothing yet.
        """
        most = 2.0 * np.minimum(self.gain, _STEEPEST)
        return np.clip(self.slope * self.width, -most, most)

    def log_mass(self) -> np.ndarray:
        """Logarithm of the integral over each cell, [N]."""
        half = 0.5 * np.abs(self.rise())
        # sinh(h) / h, the mean of an exponential over the cell.
        safe = np.maximum(half, 1e-6)
        mean = safe + np.log1p(-np.exp(-2.0 * safe)) - np.log(2.0 * safe)
        return self.value + np.log(self.width).sum(axis=1) + mean.sum(axis=1)

    def log_total(self) -> float:
        """Logarithm of the integral over all cells."""
        return np.logaddexp.reduce(self.log_mass())

    def doubt(self, total: float) -> np.ndarray:
        """What may be wrong with each cell's part in an integral of this logarithm, [N].

        It is an upper estimate of the part, times the square of the gain if that is below 1: of
        an exponential, the next term is what is neglected. The estimate goes up along the steeper
        axis only: gains are those of falling flanks, too, and a cell far below the peak would
        count as if it had one in a corner, where none of its neighbours shows any.
        """
        largest = self.value + np.log(self.width).sum(axis=1) + self.gain.max(axis=1)
        coarse = np.minimum(self.gain.max(axis=1), 1.0)
        return np.exp(np.minimum(largest - total, 0.0)) * coarse**2


Density = Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]]
"""(points [N, 2], payloads of the nearest known points, lowest value of interest) -> (values [N],
payloads)."""


def _rows(
    density: Density, edges: np.ndarray, columns: Sequence[int], span, payload: np.ndarray
) -> Cells:
    """The first cells: row i, between edges i and i + 1 of axis 0, has so many columns."""
    middles, widths, owner = [], [], []
    for row, number in enumerate(columns):
        borders = np.linspace(*span, number + 1)
        middles += [(0.5 * (edges[row] + edges[row + 1]), m) for m in _middles(borders)]
        widths += [(edges[row + 1] - edges[row], borders[1] - borders[0])] * number
        owner += [row] * number
    middle, width, owner = np.array(middles), np.array(widths), np.array(owner)
    value, payloads = density(middle, np.repeat(payload[None], len(middle), axis=0), -np.inf)
    slope, gain = np.zeros_like(middle), np.zeros_like(middle)
    for i, (point, row) in enumerate(zip(middle, owner, strict=True)):
        beside = [i + step for step in (-1, 1) if 0 <= i + step < len(owner)]
        beside = [j for j in beside if owner[j] == row]
        above = []
        for step in (-1, 1):
            others = np.flatnonzero(owner == row + step)
            if len(others):
                above.append(others[np.argmin(np.abs(middle[others, 1] - point[1]))])
        for axis, neighbours in ((0, above), (1, beside)):
            if neighbours:
                rises = value[neighbours] - value[i]
                steps = middle[neighbours, axis] - point[axis]
                slope[i, axis] = np.mean(rises / steps)
                gain[i, axis] = 0.5 * np.abs(rises).max()
    return Cells(middle, width, value, slope, np.minimum(gain, _LARGEST_GAIN), payloads)


def _middles(borders: np.ndarray) -> np.ndarray:
    return 0.5 * (borders[1:] + borders[:-1])


def _split(cells: Cells, chosen: np.ndarray, density: Density, lowest: float) -> Cells:
    """Replaces each chosen cell by three."""
    # Where nothing is known of either axis, the wider one.
    axis = np.argmax(cells.gain[chosen] + 1e-3 * cells.width[chosen], axis=1)
    number = np.arange(len(chosen))
    width = cells.width[chosen].copy()
    width[number, axis] /= 3.0
    step = np.zeros_like(width)
    step[number, axis] = width[number, axis]
    points = np.concatenate([cells.middle[chosen] - step, cells.middle[chosen] + step])
    known = np.concatenate([cells.payload[chosen]] * 2)
    values, payloads = density(points, known, lowest)
    low, high = np.split(values, 2)
    middle = cells.value[chosen]
    # Along the axis of the split; along the other one what was known goes on.
    slopes = np.stack([middle - low, 0.5 * (high - low), high - middle])
    rises = np.abs(np.stack([middle - low, middle - low, high - middle]))
    rises[1] = np.maximum(rises[1], np.abs(high - middle))
    slope = np.repeat(cells.slope[chosen][None], 3, axis=0)
    gain = np.repeat(cells.gain[chosen][None], 3, axis=0)
    slope[:, number, axis] = slopes / width[number, axis]
    gain[:, number, axis] = np.minimum(0.5 * rises, _LARGEST_GAIN)
    kept = np.setdiff1d(np.arange(len(cells)), chosen)

    def joined(old: np.ndarray, *new: np.ndarray) -> np.ndarray:
        return np.concatenate([old[kept], *new])

    low_payload, high_payload = np.split(payloads, 2)
    return Cells(
        joined(cells.middle, points[: len(chosen)], cells.middle[chosen], points[len(chosen) :]),
        joined(cells.width, width, width, width),
        joined(cells.value, low, middle, high),
        joined(cells.slope, *slope),
        joined(cells.gain, *gain),
        joined(cells.payload, low_payload, cells.payload[chosen], high_payload),
    )


def _gain_beside(cells: Cells, total: float) -> np.ndarray:
    """Gains [N, 2] of cells beside one that holds a part of the integral.

    At their common edge the density is between those at the two middles. Where the other middle
    is off to a side, that may be the axis along which the density rises.
    """
    gain = np.zeros_like(cells.middle)
    for j in np.flatnonzero(cells.log_mass() > total - _IRRELEVANT):
        distance = np.abs(cells.middle - cells.middle[j])
        reach = 0.5 * (cells.width + cells.width[j])
        touching = np.abs(distance - reach) < 1e-9
        overlapping = distance < reach - 1e-9
        beside = touching & overlapping[:, ::-1]
        rise = (cells.value[j] - cells.value)[:, None]
        across = rise * cells.width / (2.0 * reach)
        aside = rise * np.minimum(2.0 * distance / cells.width, 1.0)
        new = np.where(beside, across, np.where(beside[:, ::-1], aside, 0.0))
        gain = np.maximum(gain, new)
    return np.minimum(gain, _LARGEST_GAIN)


def _towards(cells: Cells, point: np.ndarray, value: float, density: Density) -> Cells:
    """Divides the cell that holds a point until the density there is known from its middle."""
    for _ in range(_DEEPEST):
        inside = np.all(np.abs(cells.middle - point) <= 0.5 * cells.width * (1.0 + 1e-9), axis=1)
        [chosen] = np.flatnonzero(inside)[:1]
        if cells.value[chosen] > value - 2.0 and cells.gain[chosen].max() < 1.0:
            break
        cells = _split(cells, np.array([chosen]), density, value - _LARGEST_GAIN)
    return cells


def integrate(
    density: Density,
    edges: np.ndarray,
    columns: Sequence[int],
    span: tuple[float, float],
    payload: np.ndarray,
    *,
    hint: tuple[np.ndarray, float] | None = None,
    accuracy: float = ACCURACY,
    batch: int = 64,
    max_points: int = 1500,
) -> Cells:
    """Divides the rectangle until the integral is known.

    Args:
      density: gives values and payloads at points; it is asked for `batch` points at a time.
      edges: of the first rows along axis 0, [R + 1].
      columns: number of first cells in each row, [R].
      span: range of axis 1.
      payload: handed to `density` with the first points.
      hint: a point near which the density is large, and its logarithm there: the cells that hold
        it are divided first. No other way leads to a peak that is narrower than the first cells.
      accuracy: what the cells' doubts (see `Cells.doubt`) are to sum to.
      batch: points asked for at a time.
      max_points: after which it stops in any case.

    Returns:
      The cells, as many as points were asked for. If they were too few, the sum of their doubts is
      above `accuracy`.
    """
    cells = _rows(density, np.asarray(edges), columns, span, payload)
    if hint is not None:
        cells = _towards(cells, *hint, density)
    points = len(cells)
    for rounds in itertools.count():
        total = cells.log_total()
        doubt = cells.doubt(total)
        is_last = points >= max_points
        if doubt.sum() < accuracy or is_last or rounds % _ROUNDS == 0:
            cells.gain = np.maximum(cells.gain, _gain_beside(cells, total))
            doubt = cells.doubt(total)
        if doubt.sum() < accuracy or is_last:
            return cells
        order = np.argsort(doubt)[::-1][: batch // 2]
        chosen = np.sort(order[doubt[order] > 0.003 * accuracy / len(cells)])
        area = np.log(cells.width[chosen]).sum(axis=1).max()
        lowest = total - area - _IRRELEVANT
        cells = _split(cells, chosen, density, lowest)
        points += 2 * len(chosen)
