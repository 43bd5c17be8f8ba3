"""Images in PNG files: grey values, 8 or 16 bits."""

import struct
from typing import BinaryIO

import numpy as np
from PIL import Image

from dlens_tf.errors import UserError
from dlens_tf.io.contract import RawImages
from dlens_tf.io.files import one_line

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">8s4x4sIIBB")  # signature, chunk, width, height, bit depth, colour type
_COLOURS = {0: "grey", 2: "colour", 3: "a palette", 4: "grey and transparency", 6: "colour"}


def read_png(stream: BinaryIO, where: str, max_pixels: int) -> RawImages:
    """Reads a grey PNG as it is: neither scaled nor corrected for a gamma.

    A picture's first row is its top, an image's first row has the lowest y: rows are reversed.

    Args:
      stream: the file's bytes.
      where: what messages call the file.
      max_pixels: largest number of pixels, found out before any is unpacked.

    Returns:
      uint8 or uint16 [H, W]; a PNG does not say its pixel scale or its flux unit.

    Raises:
      UserError: if the file is damaged, too large, or not grey of 8 or 16 bits.
    """
    try:
        signature, chunk, width, height, depth, colour = _HEADER.unpack(stream.read(_HEADER.size))
        if signature != SIGNATURE or chunk != b"IHDR":
            raise ValueError("it does not start as one")
        if colour != 0 or depth not in (8, 16):
            raise UserError(
                f"{where}: a PNG of {_COLOURS.get(colour, 'an unknown kind')} with {depth} bits; "
                "only grey ones of 8 or 16 bits, whose values are the flux, can be read"
            )
        if width * height > max_pixels:
            raise UserError(f"{where}: {width}×{height} pixels are too many")
        stream.seek(0)
        with Image.open(stream, formats=["PNG"]) as image:
            array = np.array(image)
    except UserError:
        raise
    except Exception as error:  # damage shows in many ways inside Pillow
        raise UserError(f"{where}: not a whole PNG file: {one_line(error)}") from error
    return RawImages(np.flipud(array))
