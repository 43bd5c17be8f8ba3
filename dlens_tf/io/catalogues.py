"""Catalogues: tables of one row per image, as .csv, .ecsv or .h5.

.ecsv and .h5 keep units and provenance, and `astropy.table.Table.read` reads them; .csv is for
everything else.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlens_tf.errors import UserError
from dlens_tf.io.files import atomic_write, check_writable

FORMATS = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".h5": "hdf5"}
HDF5_TABLE = "predictions"
"""Name of the table inside an HDF5 file."""


class Column(NamedTuple):
    """A column: its name, N values, and its unit as dlens_tf.parameters writes it."""

    name: str
    values: np.ndarray | list[str]
    unit: str = ""


def check_catalogue_path(path: str | Path) -> Path:
    """Raises a `UserError` unless a catalogue of a known kind can be written at `path`."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: unknown kind of catalogue; valid: {', '.join(FORMATS)}")
    check_writable(path)
    return path


def _astropy_unit(unit: str):
    """ "log10(eV)" is dex(eV) to astropy, and a difference of two such is a dex."""
    from astropy import units

    logarithm = re.fullmatch(r"log10\((.+)\)", unit)
    if logarithm:
        return units.dex(units.Unit(logarithm[1]))
    return units.Unit("dex" if unit == "log10" else unit)


def write_catalogue(
    path: str | Path, columns: Sequence[Column], meta: Mapping[str, Any] | None = None
) -> None:
    """Writes a catalogue under a temporary name and renames it; replaces an earlier one.

    Args:
      path: its suffix, one of `FORMATS`, says the format.
      columns: columns of equal length.
      meta: provenance, kept by .ecsv and .h5.

    Raises:
      UserError: if the suffix is unknown or the file can't be written; nothing is left then.
    """
    from astropy.table import Column as TableColumn
    from astropy.table import Table

    path = check_catalogue_path(path)
    table = Table(
        {
            name: TableColumn(values, unit=_astropy_unit(unit) if unit else None)
            for name, values, unit in columns
        },
        meta=dict(meta or {}),
    )
    file_format = FORMATS[path.suffix.lower()]
    options: dict[str, Any] = {}
    if file_format == "hdf5":
        options = {"path": HDF5_TABLE, "serialize_meta": True}
    elif file_format == "ascii.csv":
        # The shortest text that gives the same float32 again; the fast writer widens to float64.
        formats = {c.name: str for c in table.itercols() if c.dtype.kind == "f"}
        options = {"formats": formats, "fast_writer": False}
    with atomic_write(path) as partial:
        table.write(partial, format=file_format, **options)
