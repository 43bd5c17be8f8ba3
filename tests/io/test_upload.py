import gzip
import io
import os

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from dlens_tf.errors import UserError
from dlens_tf.io.contract import ImageContract
from dlens_tf.io.upload import display_name, max_bytes, read_upload

CONTRACT = ImageContract((4, 5, 1), pixel_scale=0.1)
IMAGE = np.arange(20.0).reshape(4, 5)


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def fits_file(*hdus) -> bytes:
    stream = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(stream)
    return stream.getvalue()


def primary(array=IMAGE, **keywords):
    return fits.PrimaryHDU(array, fits.Header(keywords))


def png(array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def refusal(content: bytes, name="x") -> str:
    with pytest.raises(UserError) as caught:
        read_upload(name, content, CONTRACT)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "content, scale, note",
    [
        (npy(IMAGE), None, "x states no pixel scale"),
        (npy(IMAGE[np.newaxis, ..., np.newaxis]), None, "x states no pixel scale"),
        (fits_file(primary(PIXSCALE=0.1005)), 0.1005, None),
        (gzip.compress(fits_file(primary(PIXSCALE=0.1))), 0.1, None),
        (
            fits_file(primary(PIXSCALE=0.1), fits.ImageHDU(IMAGE + 1, name="RMS")),
            0.1,
            "several images in a file (0 PRIMARY, 1 RMS) the first is read",
        ),
        (png(np.flipud(IMAGE).astype(np.uint8)), None, "a PNG states no flux unit"),
        (png(np.flipud(IMAGE).astype(np.uint16)), None, "at 0.1 arcsec per pixel"),
    ],
)
def test_kinds(content, scale, note):
    upload = read_upload("x", content, CONTRACT)
    np.testing.assert_array_equal(upload.image[..., 0], IMAGE)
    assert upload.image.dtype == np.float32 and upload.image.shape == CONTRACT.shape
    assert upload.pixel_scale == scale
    assert len(upload.notes) == (note is not None)
    assert all(note in text for text in upload.notes)


def test_contract_is_kept():
    assert "shape [4, 6], but the model takes [4, 5, 1]" in refusal(npy(np.zeros((4, 6))))
    holed = IMAGE.copy()
    holed[1, 2] = np.nan
    assert "1 of 20 values are NaN" in refusal(npy(holed))
    wrong = fits_file(primary(PIXSCALE=0.2))
    assert "0.2 arcsec per pixel, but the model was trained at 0.1" in refusal(wrong)
    assert "holds 2 images; send one" in refusal(npy(np.stack([IMAGE, IMAGE])))


def test_what_is_not_read():
    assert refusal(b"") == "x: the file is empty; valid: FITS (.gz too), .npy or grey PNG"
    assert "not a kind of file that is read here" in refusal(b"GIF89a")
    assert "HDF5 is not read here" in refusal(b"\x89HDF\r\n\x1a\n")
    tiles = fits_file(fits.PrimaryHDU(), fits.CompImageHDU(IMAGE.astype(np.int16)))
    assert "tile-compressed; unpack it (funpack)" in refusal(tiles)
    assert "not a whole FITS file" in refusal(fits_file(primary())[:2900])
    assert "not a whole gzip file" in refusal(gzip.compress(npy(IMAGE))[:-9])
    assert "not a whole gzip file" in refusal(b"\x1f\x8b rubbish")


def test_nothing_is_unpickled(tmp_path):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    for array in ([IMAGE, Payload()], [IMAGE, 1e-23]):
        content = npy(np.array(array, dtype=object))
        assert "values are Python objects" in refusal(content)
    assert not marker.exists()


def test_bombs_do_not_go_off():
    limit = max_bytes(CONTRACT)
    assert "one image is at most" in refusal(bytes(limit + 1))
    packed = gzip.compress(npy(np.zeros(limit)))
    assert len(packed) < limit / 50
    assert "unpacks to more than" in refusal(packed)
    # Headers that promise more than there is.
    stream = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (640000, 640000)}
    np.lib.format.write_array_header_1_0(stream, header)
    assert "3276799999992 bytes are missing" in refusal(stream.getvalue() + bytes(8))
    content = fits_file(primary()).replace(
        b"NAXIS1  =                    5", b"NAXIS1  =            500000000"
    )
    assert "not a whole FITS file" in refusal(content)
    # One byte a pixel in the file, eight in memory.
    assert "is too large here" in refusal(fits_file(primary(np.zeros((500, 500), np.uint8))))


def test_the_name_is_only_a_name(tmp_path):
    path = tmp_path / "secret.npy"
    np.save(path, IMAGE)
    assert refusal(b"", str(path)).endswith("grey PNG")
    assert display_name("a\n\x1b[31mb\u202e.npy") == "a[31mb.npy"
    assert display_name("") == "the file"
    assert len(display_name("x" * 5000)) == 80


def test_fuzzed_files_give_one_line():
    rng = np.random.default_rng(0)
    wholes = [npy(IMAGE), fits_file(primary(PIXSCALE=0.1)), png(IMAGE.astype(np.uint8))]
    for whole in (*wholes, gzip.compress(wholes[1])):
        for _ in range(30):
            content = bytearray(whole)
            for position in rng.integers(0, min(len(content), 800), size=rng.integers(1, 6)):
                content[position] = rng.integers(256)
            try:
                read_upload("x", bytes(content), CONTRACT)  # a change may be harmless
            except UserError as error:
                assert "\n" not in str(error)
