import gzip

import numpy as np
import pytest
from astropy.io import fits

from dlens_tf.errors import UserError
from dlens_tf.io.fits import read_fits

IMAGE = np.arange(12.0).reshape(3, 4)
SKY = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 60.0}


@pytest.fixture
def write(tmp_path):
    def write(*hdus, name="x.fits"):
        path = tmp_path / name
        fits.HDUList(list(hdus)).writeto(path, overwrite=True)
        return path

    return write


def image_hdu(data=IMAGE, **keywords):
    return fits.PrimaryHDU(data, fits.Header(keywords))


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", ">i4", "u1"])
def test_pixels_and_byte_order(write, dtype):
    path = write(image_hdu(IMAGE.astype(dtype)))
    # FITS is big-endian: the first pixel row, read by hand from the data block.
    by_hand = np.frombuffer(path.read_bytes()[2880:], dtype, count=4)
    raw = read_fits(path)
    np.testing.assert_array_equal(raw.array, IMAGE)
    np.testing.assert_array_equal(raw.array[0], by_hand)
    assert (raw.pixel_scale, raw.note) == (None, None)


def test_unsigned_and_scaled_pixels(write):
    values = np.array([[0, 40000], [65535, 1]], np.uint16)  # kept as int16 with BZERO
    np.testing.assert_array_equal(read_fits(write(image_hdu(values))).array, values)


def test_blank_pixels_are_not_numbers(write):
    hdu = image_hdu(np.array([[1, -99], [2, 3]], np.int16), BLANK=-99, BSCALE=0.5)
    hdu.header["BLANK"] = -99
    path = write(hdu)
    with fits.open(path, mode="update", do_not_scale_image_data=True) as hdus:
        hdus[0].header["BSCALE"] = 0.5
    assert np.isnan(read_fits(path).array[0, 1])


@pytest.mark.parametrize("suffix", [".gz"])
def test_compressed(write, tmp_path, suffix):
    plain = write(image_hdu(PIXSCALE=0.05))
    path = tmp_path / f"x.fits{suffix}"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    raw = read_fits(path)
    np.testing.assert_array_equal(raw.array, IMAGE)
    assert raw.pixel_scale == 0.05


def test_tile_compressed(write):
    image = np.arange(400, dtype=np.int16).reshape(20, 20)
    path = write(fits.PrimaryHDU(), fits.CompImageHDU(image))
    np.testing.assert_array_equal(read_fits(path).array, image)


def test_choice_of_hdu(write):
    table = fits.BinTableHDU(np.zeros(3, dtype=[("a", "f4")]), name="TABLE")
    path = write(
        fits.PrimaryHDU(),
        table,
        fits.ImageHDU(IMAGE, name="SCI"),
        fits.ImageHDU(IMAGE + 1, name="RMS"),
    )
    first = read_fits(path)
    np.testing.assert_array_equal(first.array, IMAGE)
    assert "of several images in a file (2 SCI, 3 RMS) the first is read" in first.note
    for name in ("RMS", "rms", "3"):
        named = read_fits(path, name)
        np.testing.assert_array_equal(named.array, IMAGE + 1)
        assert named.note is None
    for name in ("PSF", "0", "TABLE"):
        with pytest.raises(UserError, match=f"no image '{name}' .* valid: 2 SCI, 3 RMS$"):
            read_fits(path, name)
    with pytest.raises(UserError, match="there is no image in this FITS file"):
        read_fits(write(fits.PrimaryHDU(), table))


def test_cube_is_images_or_channels(write):
    cube = np.arange(24.0).reshape(2, 3, 4)
    path = write(image_hdu(cube))
    np.testing.assert_array_equal(read_fits(path, channels=1).array, cube)
    np.testing.assert_array_equal(read_fits(path, channels=2).array[..., 1], cube[1])


A, C, S = 0.1 / 3600.0, np.cos(0.5), np.sin(0.5)


@pytest.mark.parametrize(
    "keywords",
    [
        {**SKY, "CD1_1": -A * C, "CD1_2": A * S, "CD2_1": A * S, "CD2_2": A * C},
        {**SKY, "CDELT1": -A, "CDELT2": A},
        {**SKY, "CDELT1": -A, "CDELT2": A, "CROTA2": 30.0},
        {**SKY, "CDELT1": A, "CDELT2": A, "PC1_1": -C, "PC1_2": S, "PC2_1": S, "PC2_2": C},
        {**SKY, "PC1_1": -A, "PC2_2": A},
        {**SKY, "CD1_1": -A, "CD2_2": A, "CDELT1": 9.0, "CDELT2": 9.0},
        {"CDELT1": 0.1, "CDELT2": 0.1, "CUNIT1": "arcsec", "CUNIT2": "arcsec"},
        {"PIXSCALE": 0.1},
        {"PIXSCALE": 0.1, "CDELT1": 1.0, "CDELT2": 1.0},
    ],
)
def test_pixel_scale(write, keywords):
    assert read_fits(write(image_hdu(**keywords))).pixel_scale == pytest.approx(0.1, rel=1e-9)


def test_pixel_scale_of_a_cube_and_of_the_primary_header(write):
    cube = image_hdu(np.zeros((2, 3, 4)), **SKY, CDELT1=-A, CDELT2=A, CTYPE3="WAVE", CDELT3=7.0)
    assert read_fits(write(cube)).pixel_scale == pytest.approx(0.1)
    path = write(image_hdu(None, PIXSCALE=0.05), fits.ImageHDU(IMAGE))
    assert read_fits(path).pixel_scale == 0.05


def test_pixel_scale_unusable(write):
    assert read_fits(write(image_hdu(CDELT1=0.1, CDELT2=0.1))).pixel_scale is None
    with pytest.raises(UserError, match=r"pixels are not square, 0\.1×0\.2 arcsec"):
        read_fits(write(image_hdu(**SKY, CDELT1=-A, CDELT2=2 * A)))
    with pytest.raises(UserError, match="PIXSCALE is not a number: 'wide'"):
        read_fits(write(image_hdu(PIXSCALE="wide")))


def test_damaged_files(write):
    path = write(image_hdu(np.random.default_rng(0).normal(size=(64, 64)), PIXSCALE=0.1))
    whole = path.read_bytes()
    for content in (
        b"",
        b"not FITS",
        whole[:1000],
        whole[:2880],
        whole[:20000],
        whole[: len(whole) // 2],
        gzip.compress(whole)[:-2000],
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.fits: not a whole FITS file: ") as caught:
            read_fits(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "distortion",
    [
        {"CPDIS1": "LOOKUP", "CPDIS2": "LOOKUP", "DP1": "EXTVER: 1", "DP2": "EXTVER: 2"},
        {"D2IMDIS1": "LOOKUP", "D2IM1": "EXTVER: 1", "D2IMERR1": 0.002, "AXISCORR": 1},
        {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "A_2_0": 1e-5},
        {"CTYPE1": "RA---TNX", "CTYPE2": "DEC--TNX", "WAT1_001": "wtype=tnx"},
        {"LATPOLE": 400.0, "PV2_1": "x"},
    ],
)
def test_distortions_do_not_matter(write, distortion):
    """Headers of HST exposures refer to tables that a cut-out has lost."""
    keywords = {**SKY, "CD1_1": -A * C, "CD1_2": A * S, "CD2_1": A * S, "CD2_2": A * C}
    path = write(image_hdu(**{**keywords, **distortion}))
    assert read_fits(path).pixel_scale == pytest.approx(0.1, rel=1e-9)


@pytest.mark.parametrize(
    "keywords",
    [
        {**SKY, "CDELT1": 0.0, "CDELT2": 0.1},
        {**SKY, "CD1_1": 1.0, "CD1_2": 1.0, "CD2_1": 1.0, "CD2_2": 1.0},
        {**SKY, "CDELT1": -A, "CDELT2": A, "CUNIT1": "parsnip"},
        {**SKY, "CDELT1": "wide"},
        {"CTYPE1": "RA---TAN", "CTYPE2": "RA---TAN"},
    ],
)
def test_unusable_world_coordinates(write, keywords):
    message = r"x\.fits: its world coordinates are unusable: "
    with pytest.raises(UserError, match=message) as caught:
        read_fits(write(image_hdu(**keywords)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keyword", ["SIMPLE", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2"])
def test_missing_keywords(write, keyword):
    path = write(image_hdu())
    card = keyword.ljust(8).encode() + b"="
    content = path.read_bytes()
    assert content.count(card) == 1
    path.write_bytes(content.replace(card, b"COMMENT  "))
    with pytest.raises(UserError, match=r"x\.fits: ") as caught:
        read_fits(path)
    assert "\n" not in str(caught.value)


def test_damaged_tiles_give_one_line(write):
    image = np.random.default_rng(0).integers(0, 99, size=(64, 64)).astype(np.int16)
    path = write(fits.PrimaryHDU(), fits.CompImageHDU(image))
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        for position in rng.integers(2880, len(whole), size=20):
            content[position] = rng.integers(256)
        path.write_bytes(bytes(content))
        try:
            read_fits(path)
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused
