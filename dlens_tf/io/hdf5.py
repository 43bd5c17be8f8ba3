"""Images in HDF5 files."""

import math
from pathlib import Path

import h5py
import numpy as np

from dlens_tf.errors import UserError
from dlens_tf.io.contract import RawImages
from dlens_tf.io.files import one_line

IMAGE_DATASETS = ("image", "images", "image_data")
"""Names under which images are looked for, in this order."""


def read_hdf5(path: Path, dataset: str | None = None) -> RawImages:
    """Reads an image data set of numbers.

    The pixel scale is the attribute `pixel_scale` (arcsec) of the data set or the file, or
    else a data set of that name, or that of `transform_pix2angle`, lenstronomy's matrix.

    Args:
      path: the file.
      dataset: name of the data set; None looks for `IMAGE_DATASETS`.

    Raises:
      UserError: if the file is damaged or has no such data set.
    """
    try:
        with h5py.File(path, "r") as file:
            data = _find(file, dataset, path)
            if data.dtype.kind not in "fiu":  # objects and strings are not even read
                return RawImages(np.zeros((0,), data.dtype))
            return RawImages(np.asarray(data[()]), _pixel_scale(file, data, path))
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a whole HDF5 file: {one_line(error)}") from error


def _find(file: h5py.File, name: str | None, path: Path) -> h5py.Dataset:
    for candidate in IMAGE_DATASETS if name is None else (name,):
        if isinstance(file.get(candidate), h5py.Dataset):
            return file[candidate]
    found: list[str] = []
    file.visititems(lambda key, item: found.append(key) if hasattr(item, "dtype") else None)
    wanted = f"'{name}'" if name else " or ".join(f"'{n}'" for n in IMAGE_DATASETS)
    raise UserError(
        f"{path}: no data set {wanted}; --hdf5_dataset names another of: {', '.join(found)}"
    )


def _pixel_scale(file: h5py.File, data: h5py.Dataset, path: Path) -> float | None:
    for value in (
        data.attrs.get("pixel_scale"),
        file.attrs.get("pixel_scale"),
        file["pixel_scale"][()] if "pixel_scale" in file else None,
    ):
        if value is not None:
            if np.size(value) != 1 or np.asarray(value).dtype.kind not in "fiu":
                raise UserError(f"{path}: its pixel_scale is not a number: {value}")
            return float(np.reshape(value, ()))
    if "transform_pix2angle" in file:
        matrix = np.asarray(file["transform_pix2angle"][()], dtype=float)
        return math.sqrt(abs(np.linalg.det(matrix)))
    return None
