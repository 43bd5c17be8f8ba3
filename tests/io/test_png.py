import io
import zlib

import numpy as np
import pytest
from PIL import Image

from dlens_tf.errors import UserError
from dlens_tf.io.png import read_png

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def saved(array, mode=None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, "PNG")
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return len(content).to_bytes(4, "big") + kind + content + checksum.to_bytes(4, "big")


def by_hand(width: int, height: int, depth: int, rows: bytes) -> bytes:
    """A grey PNG as the standard writes it, without Pillow."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = chunk(b"IHDR", size + bytes([depth, 0, 0, 0, 0]))
    packed = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + packed + chunk(b"IEND", b"")


def read(content: bytes, max_pixels: int = 1000) -> np.ndarray:
    return read_png(io.BytesIO(content), "x.png", max_pixels).array


def test_the_first_row_is_the_top():
    rows = b"\x00\x01\x02" + b"\x00\x03\xff"  # a filter byte, then the pixels
    np.testing.assert_array_equal(read(by_hand(2, 2, 8, rows)), [[3, 255], [1, 2]])


def test_sixteen_bits_are_kept():
    rows = b"\x00" + (1).to_bytes(2, "big") + (40000).to_bytes(2, "big")
    array = read(by_hand(2, 1, 16, rows))
    np.testing.assert_array_equal(array, [[1, 40000]])
    assert array.dtype == np.uint16


@pytest.mark.parametrize(
    "content, message",
    [
        (saved(PIXELS, "RGB"), "a PNG of colour with 8 bits; only grey ones"),
        (saved(PIXELS, "P"), "a PNG of a palette"),
        (saved(PIXELS, "LA"), "a PNG of grey and transparency"),
        (by_hand(8, 1, 1, b"\x00\xaa"), "a PNG of grey with 1 bits"),
        (saved(np.zeros((40, 40), np.uint8)), "40×40 pixels are too many"),
        (by_hand(2**31, 2**31, 8, b""), "pixels are too many"),
        (saved(PIXELS)[:20], "not a whole PNG file"),
        (saved(PIXELS)[:50], "not a whole PNG file"),
        (saved(PIXELS).replace(b"IHDR", b"IHDX"), "not a whole PNG file"),
        (by_hand(4, 4, 8, b"\x00"), "not a whole PNG file"),
    ],
)
def test_refused(content, message):
    with pytest.raises(UserError, match=message) as caught:
        read(content)
    assert str(caught.value).startswith("x.png: ") and "\n" not in str(caught.value)
