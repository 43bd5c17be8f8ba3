"""Images in FITS files, plain or compressed."""

import math
import re
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from astropy import units, wcs
from astropy.io import fits
from astropy.io.fits.verify import VerifyWarning
from astropy.utils.exceptions import AstropyUserWarning

from dlens_tf.errors import UserError
from dlens_tf.io.contract import PIXEL_SCALE_TOLERANCE, RawImages
from dlens_tf.io.files import one_line, open_binary

_LINEAR_KEYWORD = re.compile(r"(CTYPE|CUNIT|CDELT|CROTA)[12]|(CD|PC)[12]_[12]")
_LISTED = 12
_CELESTIAL = re.compile(r"((?:RA--|DEC-|.LON|.LAT|..LN|..LT)-).*")


def read_fits(
    source: Path | BinaryIO,
    hdu: str | None = None,
    channels: int = 1,
    *,
    where: str | None = None,
    max_bytes: int | None = None,
) -> RawImages:
    """Reads an image HDU.

    Integer pixels marked by BLANK become NaN, which the image contract refuses. Planes of a
    cube are images where the model takes one channel, channels where it takes several.

    The pixel scale comes from the world coordinates (CD, PC or CDELT) of the image, or else
    from the keyword PIXSCALE (arcsec) of the image or of the primary header.

    Args:
      source: the file, .gz included; or a stream of its bytes, not compressed.
      hdu: name or number of the HDU; None takes the first with an image.
      channels: channels of the model.
      where: what messages call the file; None takes its path.
      max_bytes: of the image as float64, for files of strangers; tile-compressed images, whose
        tiles may unpack to any size, are then refused too.

    Raises:
      UserError: if the file is damaged, or has no such image.
    """
    where = str(source) if where is None else where
    try:
        with warnings.catch_warnings():
            # Loosely written headers are common and harmless; a file cut short is neither.
            warnings.simplefilter("ignore", VerifyWarning)
            warnings.simplefilter("ignore", wcs.FITSFixedWarning)
            warnings.filterwarnings("error", "File may have been truncated", AstropyUserWarning)
            tiles = {"disable_image_compression": max_bytes is not None}
            with open_binary(source) as stream, fits.open(stream, memmap=False, **tiles) as hdus:
                image, note = _find(hdus, hdu, where)
                if max_bytes is not None and 8 * math.prod(image.shape) > max_bytes:
                    raise UserError(f"{where}: an image of shape {image.shape} is too large here")
                array = np.asarray(image.data)
                scale = _pixel_scale(image.header, hdus[0].header, where)
    except UserError:
        raise
    except Exception as error:  # damage shows in many ways inside astropy and CFITSIO
        raise UserError(f"{where}: not a whole FITS file: {one_line(error)}") from error
    if array.ndim == 3 and channels > 1:
        array = np.moveaxis(array, 0, -1)
    return RawImages(array, scale, note)


def _find(hdus: fits.HDUList, name: str | None, where: str):
    """The HDU with the image, and a note if there was a choice."""
    images = {
        index: hdu
        for index, hdu in enumerate(hdus)
        if hdu.is_image and len(getattr(hdu, "shape", ())) in (2, 3)  # packed tiles have none
    }
    names = [f"{index} {hdu.name}".strip() for index, hdu in images.items()]
    listing = ", ".join(names[:_LISTED] + ["…"] * (len(names) > _LISTED))
    if not images:
        packed = any(hdu.header.get("ZIMAGE") for hdu in hdus)
        what = "no image that is not tile-compressed; unpack it (funpack)" if packed else "no image"
        raise UserError(f"{where}: there is {what} in this FITS file")
    if name is not None:
        for index, hdu in images.items():
            if name == str(index) or name.upper() == hdu.name.upper():
                return hdu, None
        raise UserError(f"{where}: no image '{name}' in this FITS file; valid: {listing}")
    first = next(iter(images.values()))
    if len(images) == 1:
        return first, None
    return (
        first,
        f"{where}: of several images in a file ({listing}) the first is read",
    )


def _linear_coordinates(header: fits.Header) -> wcs.WCS:
    """The linear part of an image's first two world coordinates.

    The pixel scale is that of the reference point. Distortions (SIP, lookup tables, D2IM) and
    projections leave it as it is, but may refer to tables that are not in the file.
    """
    linear = fits.Header()
    for card in header.cards:
        if _LINEAR_KEYWORD.fullmatch(card.keyword):
            value = card.value
            if card.keyword.startswith(("CTYPE", "CUNIT")):
                value = _CELESTIAL.sub(r"\1TAN", str(value))
            elif isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{card.keyword} is not a number: {value!r}")
            linear[card.keyword] = value
    return wcs.WCS(linear, naxis=2)


def _pixel_scale(header: fits.Header, primary: fits.Header, where: str) -> float | None:
    """Arcsec per pixel, or None."""
    try:
        coordinates = _linear_coordinates(header)
        matrix = coordinates.pixel_scale_matrix
        cunit = [units.Unit(unit) for unit in coordinates.wcs.cunit]
    except Exception as error:  # wcslib and the unit parser have many
        raise UserError(
            f"{where}: its world coordinates are unusable: {one_line(error)}"
        ) from error
    if all(unit.is_equivalent(units.arcsec) for unit in cunit):  # else not on the sky
        matrix = np.array([unit.to(units.arcsec) for unit in cunit])[:, np.newaxis] * matrix
        x, y = np.hypot(*matrix)
        if not abs(np.linalg.det(matrix)) > 1e-6 * x * y:  # NaN fails too
            raise UserError(
                f"{where}: its world coordinates are unusable: pixels without an area, "
                f"{x:.4g}×{y:.4g} arcsec"
            )
        if abs(x / y - 1.0) > PIXEL_SCALE_TOLERANCE:
            raise UserError(f"{where}: pixels are not square, {x:.4g}×{y:.4g} arcsec")
        return float(np.sqrt(x * y))
    value = header.get("PIXSCALE", primary.get("PIXSCALE"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: its keyword PIXSCALE is not a number: {value!r}")
    return float(value)
