"""Images in HDF5 files."""

import math
from pathlib import Path

import h5py
import numpy as np

from dlens_tf.errors import UserError
from dlens_tf.io.contract import ImageContract, RawImages
from dlens_tf.io.files import one_line

IMAGE_DATASETS = ("image", "images", "image_data")
"""Names under which images are looked for, in this order."""


def read_hdf5(
    path: Path, dataset: str | None = None, contract: ImageContract | None = None
) -> RawImages:
    """Reads an image data set of numbers.

    The pixel scale is the attribute `pixel_scale` (arcsec) of the data set or the file, or
    else a data set of that name, or that of `transform_pix2angle`, lenstronomy's matrix.

    Args:
      path: the file.
      dataset: name of the data set; None looks for `IMAGE_DATASETS`.
      contract: what the shape is held to before anything is read; None takes any.

    Raises:
      UserError: if the file is damaged, or has no such data set, or not of such a shape.
    """
    try:
        with h5py.File(path, "r") as file:
            data = _find(file, dataset, path)
            if data.dtype.kind not in "fiu":  # objects and strings are not even read
                return RawImages(np.zeros((0,), data.dtype))
            if contract is not None:
                contract.batch_shape(data.shape or (), str(path))
            _check_stored(data, path)
            return RawImages(np.asarray(data[()]), _pixel_scale(file, data, path))
    except UserError:
        raise
    except Exception as error:  # damage shows in many ways inside HDF5
        raise UserError(f"{path}: not a whole HDF5 file: {one_line(error)}") from error


def _find(file: h5py.File, name: str | None, path: Path) -> h5py.Dataset:
    for candidate in IMAGE_DATASETS if name is None else (name,):
        if isinstance(file.get(candidate), h5py.Dataset):
            return file[candidate]
    found: list[str] = []
    file.visititems(lambda key, item: found.append(key) if hasattr(item, "dtype") else None)
    if not found:
        raise UserError(f"{path}: there is no data set in this HDF5 file")
    wanted = f"'{name}'" if name else " or ".join(f"'{n}'" for n in IMAGE_DATASETS)
    raise UserError(
        f"{path}: no data set {wanted}; --hdf5_dataset names another of: {', '.join(found)}"
    )


def _check_stored(data: h5py.Dataset, path: Path) -> None:
    """Refuses values that are declared but not stored: HDF5 would make them up as zeros."""
    if data.chunks:
        expected = math.prod(-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True))
        stored = data.id.get_num_chunks() >= expected
    else:
        elsewhere = data.is_virtual or data.external
        stored = elsewhere or data.id.get_storage_size() >= data.nbytes
    if not stored:
        raise UserError(
            f"{path}: data set '{data.name}' declares {data.size} values, but they are not all "
            "stored in the file; write it again"
        )


def _value(file: h5py.File, name: str):
    """The content of a data set at the top of the file, or None if there is none."""
    item = file.get(name)
    return item[()] if isinstance(item, h5py.Dataset) else None


def _pixel_scale(file: h5py.File, data: h5py.Dataset, path: Path) -> float | None:
    for value in (
        data.attrs.get("pixel_scale"),
        file.attrs.get("pixel_scale"),
        _value(file, "pixel_scale"),
    ):
        if value is not None:
            if np.size(value) != 1 or np.asarray(value).dtype.kind not in "fiu":
                raise UserError(f"{path}: its pixel_scale is not a number: {value}")
            return float(np.reshape(value, ()))
    matrix = _value(file, "transform_pix2angle")
    if matrix is None:
        return None
    if np.shape(matrix) != (2, 2) or np.asarray(matrix).dtype.kind not in "fiu":
        raise UserError(f"{path}: its transform_pix2angle is not a 2×2 matrix of numbers")
    return math.sqrt(abs(np.linalg.det(np.asarray(matrix, dtype=float))))
