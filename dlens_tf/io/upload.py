"""One image out of the bytes of a file that somebody sent.

The bytes are parsed in memory: the name is for messages alone, and is never opened. What a file is
shows in its first bytes. Nothing is unpickled, and nothing unpacks to more than `max_bytes`.

Example:
    >>> read_upload("lens.fits", content, contract).image        # float32 [H, W, C]
"""

import dataclasses
import io
import math
import zlib

import numpy as np

from dlens_tf.errors import UserError
from dlens_tf.io.contract import ImageContract, RawImages
from dlens_tf.io.fits import read_fits
from dlens_tf.io.npy import read_npy
from dlens_tf.io.png import SIGNATURE as _PNG
from dlens_tf.io.png import read_png

KINDS = "FITS (.gz too), .npy or grey PNG"

_NPY, _FITS, _GZIP, _HDF5 = b"\x93NUMPY", b"SIMPLE  =", b"\x1f\x8b", b"\x89HDF"
_GZIP_WINDOW = 31  # zlib's way to say: with gzip's header and checksum
_HEADERS = 2**20  # bytes that a file may have besides pixels
_PLANES = 16  # images of float64 that a file may have: errors, masks, PSFs
_NAME_LENGTH = 80


@dataclasses.dataclass(frozen=True)
class Upload:
    """An image that passed the contract.

    Attributes:
      image: float32 [H, W, C].
      pixel_scale: arcsec per pixel, None if the file does not say.
      notes: lines that the user should see.
    """

    image: np.ndarray
    pixel_scale: float | None
    notes: tuple[str, ...]


def max_bytes(contract: ImageContract) -> int:
    """The largest file of one image, unpacked too."""
    return _HEADERS + _PLANES * 8 * math.prod(contract.shape)


def display_name(name: str) -> str:
    """A file's name for messages: printable, on one line, not too long."""
    name = "".join(c for c in name if c.isprintable()).strip() or "the file"
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"


def read_upload(name: str, content: bytes, contract: ImageContract) -> Upload:
    """Reads and checks the one image of a file.

    Not to be called by several threads at once: astropy's warnings are turned to errors by
    `warnings.catch_warnings`, which works on the whole process.

    Args:
      name: what the sender calls the file.
      content: its bytes.
      contract: what the model asks of an image.

    Raises:
      UserError: if it is damaged, of an unknown kind, or does not fit the contract.
    """
    where = display_name(name)
    limit = max_bytes(contract)
    if len(content) > limit:
        raise UserError(f"{where}: {len(content):,} bytes; one image is at most {limit:,}")
    if content.startswith(_GZIP):
        content = _gunzip(content, where, limit)
    raw = _parse(where, content, contract, limit)
    images = contract.arrange(raw.array, where)
    if len(images) != 1:
        raise UserError(f"{where}: holds {len(images)} images; send one at a time")
    notes = [raw.note] if raw.note else []
    if content.startswith(_PNG):
        notes.append(
            f"{where}: a PNG states no flux unit and no pixel scale; the answer holds only if its "
            f"grey values are the flux itself, at {contract.pixel_scale:g} arcsec per pixel"
        )
    elif raw.pixel_scale is None:
        notes.append(
            f"{where} states no pixel scale; it is taken to be the model's "
            f"{contract.pixel_scale:g} arcsec"
        )
    else:
        contract.check_pixel_scale(raw.pixel_scale, where)
    return Upload(images[0], raw.pixel_scale, tuple(notes))


def _parse(where: str, content: bytes, contract: ImageContract, limit: int) -> RawImages:
    stream = io.BytesIO(content)
    if content.startswith(_NPY):
        return read_npy(stream, where=where, pickled=False)
    if content.startswith(_FITS):
        return read_fits(stream, None, contract.shape[-1], where=where, max_bytes=limit)
    if content.startswith(_PNG):
        return read_png(stream, where, limit // 8)
    if content.startswith(_HDF5):
        raise UserError(f"{where}: HDF5 is not read here; tools/predict.py reads it")
    state = "not a kind of file that is read here" if content else "the file is empty"
    raise UserError(f"{where}: {state}; valid: {KINDS}")


def _gunzip(content: bytes, where: str, limit: int) -> bytes:
    """Unpacks at most `limit` bytes."""
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    try:
        unpacked = unpacker.decompress(content, limit + 1)
    except zlib.error as error:
        raise UserError(f"{where}: not a whole gzip file: {error}") from error
    if len(unpacked) > limit:
        raise UserError(f"{where}: unpacks to more than {limit:,} bytes, the most for one image")
    if not unpacker.eof:
        raise UserError(f"{where}: not a whole gzip file: its end is missing")
    return unpacked
