"""Reading images of any supported format into one checked array.

Example:
    >>> contract = ImageContract((64, 64, 1), pixel_scale=0.101)
    >>> read_images([Path("lens.fits")], contract).images        # float32 [1, 64, 64, 1]
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging
from tqdm import tqdm

from dlens_tf.errors import UserError
from dlens_tf.io.contract import ImageContract, RawImages
from dlens_tf.io.files import check_readable

_SUFFIXES = {
    "npy": (".npy",),
    "hdf5": (".h5", ".hdf5"),
    "fits": (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fts.gz", ".fits.fz"),
}
_FORMATS = {suffix: name for name, suffixes in _SUFFIXES.items() for suffix in suffixes}


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images that passed the contract, and where each came from.

    Attributes:
      images: float32 [N, H, W, C].
      files: name of each image's file, N of them.
      indices: position of each image in its file, int64 [N].
      pixel_scales: arcsec per pixel, NaN where neither file nor user says, float64 [N].
    """

    images: np.ndarray
    files: list[str]
    indices: np.ndarray
    pixel_scales: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def _format_of(path: Path) -> str:
    name = path.name.lower()
    # The longest suffix first: .fits.gz before .gz could ever be one.
    for suffix in sorted(_FORMATS, key=len, reverse=True):
        if name.endswith(suffix):
            return _FORMATS[suffix]
    raise UserError(f"{path}: unknown kind of image file; valid: {', '.join(_FORMATS)}")


def _read(
    path: Path, contract: ImageContract, hdf5_dataset: str | None, fits_hdu: str | None
) -> RawImages:
    check_readable(path)
    match _format_of(path):
        case "npy":
            from dlens_tf.io.npy import read_npy

            return read_npy(path)
        case "hdf5":
            from dlens_tf.io.hdf5 import read_hdf5

            return read_hdf5(path, hdf5_dataset, contract)
        case _:
            from dlens_tf.io.fits import read_fits

            return read_fits(path, fits_hdu, contract.shape[-1])


def read_images(
    paths: Sequence[str | Path],
    contract: ImageContract,
    *,
    pixel_scale: float | None = None,
    hdf5_dataset: str | None = None,
    fits_hdu: str | None = None,
    progress: bool = False,
) -> ImageSet:
    """Reads and checks the images of some files, in order.

    Args:
      paths: .npy, HDF5 and FITS files.
      contract: what the model asks of an image.
      pixel_scale: arcsec per pixel of files that do not say; those that do are held to what
        they say.
      hdf5_dataset: data set to read in HDF5 files; None takes the usual names.
      fits_hdu: name or number of the HDU to read in FITS files; None takes the first image.
      progress: whether to show a bar on a terminal.

    Raises:
      UserError: at the first file that is missing, damaged or does not fit the contract.
    """
    if not paths:
        raise UserError("no image file given")
    if pixel_scale is not None:
        contract.check_pixel_scale(pixel_scale, "--pixel_scale")
    images, files, indices, scales, unknown = [], [], [], [], []
    noted = False  # one note stands for all files
    hide = None if progress else True  # None hides it where there is no terminal
    for path in tqdm([Path(p) for p in paths], "read", unit="file", disable=hide):
        raw = _read(path, contract, hdf5_dataset, fits_hdu)
        if raw.note and not noted:
            logging.warning("%s; --fits_hdu takes another", raw.note)
            noted = True
        batch = contract.arrange(raw.array, str(path))
        scale = pixel_scale if raw.pixel_scale is None else raw.pixel_scale
        if scale is None:
            unknown.append(path)
        else:
            contract.check_pixel_scale(scale, str(path))
        images.append(batch)
        files += [str(path)] * len(batch)
        indices.append(np.arange(len(batch)))
        scales.append(np.full(len(batch), np.nan if scale is None else scale))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        logging.warning(
            "%s%s: pixel scale unknown, taken to be the model's %g arcsec; --pixel_scale states it",
            unknown[0],
            more,
            contract.pixel_scale,
        )
    return ImageSet(np.concatenate(images), files, np.concatenate(indices), np.concatenate(scales))
