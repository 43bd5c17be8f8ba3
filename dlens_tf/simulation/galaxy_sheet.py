"""A sheet of a catalogue's galaxies, before and after cleaning, for people to look at.

Example:
    >>> save_galaxy_sheet(None, "galaxies.png")
"""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dlens_tf.errors import UserError
from dlens_tf.io.files import atomic_write, one_line
from dlens_tf.simulation.galaxies import SPLITS, GalaxyCatalogue

COLORS = dict(zip(SPLITS, ("#38bdf8", "#facc15", "#f472b6"), strict=True))

_FLOOR = 3e-3  # of the 99.5th percentile: where the arcsinh scale turns linear
_MAX_SHOWN = 40


def draw_galaxy_sheet(galaxies: GalaxyCatalogue, num: int = 10) -> Figure:
    """Draws the first `num` galaxies, framed in the colour of their split.

    Each has its picture as stored above the cleaned one, at the same scale and brightness; the
    cleaned one is centred on the galaxy.

    Args:
      galaxies: the catalogue.
      num: galaxies to show, 40 at most.

    Returns:
      A matplotlib figure, not attached to any window.

    Raises:
      UserError: if a picture is missing, or no galaxy is in it.
    """
    num = min(num, len(galaxies), _MAX_SHOWN)
    columns = min(num, 5)
    rows = -(-num // columns)
    figure = Figure(figsize=(1.7 * columns, 3.7 * rows + 0.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    split_of = {row: split for split in SPLITS for row in galaxies.split(split).tolist()}
    for axes in grid.flat:
        axes.set_axis_off()
    for row in range(num):
        _draw(grid[2 * (row // columns) :, row % columns][:2], galaxies, row, split_of[row])
    figure.suptitle(f"{galaxies.title}: as stored above, cleaned below", fontsize=9)
    handles = [
        Patch(facecolor=COLORS[split], label=f"{split} ({len(galaxies.split(split))})")
        for split in SPLITS
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _draw(pair, galaxies: GalaxyCatalogue, row: int, split: str) -> None:
    galaxy = galaxies.image(row)
    raw, scale = galaxies.raw(row)
    # Surface brightness in the cleaned picture's unit, whose flux is 1.
    raw = raw / raw.sum() / scale**2
    cleaned = galaxy.pixels / galaxy.scale**2
    top = np.percentile(cleaned[cleaned > 0.0], 99.5)
    half = 0.5 * max(max(raw.shape) * scale, cleaned.shape[0] * galaxy.scale)
    for axes, picture, pixel in ((pair[0], raw, scale), (pair[1], cleaned, galaxy.scale)):
        height, width = 0.5 * pixel * np.array(picture.shape)
        axes.imshow(
            np.arcsinh(picture / (_FLOOR * top)), origin="lower", cmap="magma", vmin=0.0,
            vmax=np.arcsinh(1.0 / _FLOOR), extent=(-width, width, -height, height),
            interpolation="nearest",
        )  # fmt: skip
        axes.set(xlim=(-half, half), ylim=(-half, half), xticks=[], yticks=[], facecolor="black")
        axes.set_axis_on()
        for spine in axes.spines.values():
            spine.set(color=COLORS[split], linewidth=2.0)
    pair[0].set_title(galaxy.name, fontsize=8)
    left = -0.9 * half
    pair[1].plot([left, left + 0.5], [left, left], color="white", linewidth=1.5)
    pair[1].text(left + 0.25, left + 0.04 * half, '0.5"', color="white", fontsize=7, ha="center")


def save_galaxy_sheet(path: str | Path | None, output: str | Path, num: int = 10) -> None:
    """Draws a sheet of a catalogue and writes it to `output`, whose ending sets the format.

    Args:
      path: of the catalogue; None for the bundled galaxies.
      output: file to write, for example "galaxies.png".
      num: galaxies to show, 40 at most.

    Raises:
      UserError: if the catalogue can't be read or the file can't be written.
    """
    output = Path(output)
    figure = draw_galaxy_sheet(GalaxyCatalogue.open(path), num)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't make the folder {output.parent}: {one_line(error)}") from error
    with atomic_write(output) as partial:
        figure.savefig(partial, format=output.suffix.removeprefix("."))
