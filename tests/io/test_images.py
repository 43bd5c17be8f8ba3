import h5py
import numpy as np
import pytest
from absl import logging
from astropy.io import fits

from dlens_tf.errors import UserError
from dlens_tf.io.contract import ImageContract
from dlens_tf.io.images import read_images

CONTRACT = ImageContract((6, 4, 1), pixel_scale=0.1)
IMAGES = np.random.default_rng(0).normal(size=(5, 6, 4)).astype(np.float32)


@pytest.fixture
def files(tmp_path):
    """The five images over three files, each of which states its pixel scale but a.npy."""
    np.save(tmp_path / "a.npy", IMAGES[0])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["images"] = IMAGES[1:4]
        file.attrs["pixel_scale"] = 0.1
    fits.PrimaryHDU(IMAGES[4], fits.Header({"PIXSCALE": 0.101})).writeto(tmp_path / "c.FITS")
    return [tmp_path / name for name in ("a.npy", "b.h5", "c.FITS")]


@pytest.fixture
def warnings_of(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


def test_all_formats_in_order(files, warnings_of):
    lenses = read_images(files, CONTRACT, pixel_scale=0.099)
    assert len(lenses) == 5
    assert lenses.images.dtype == np.float32
    np.testing.assert_array_equal(lenses.images[..., 0], IMAGES)
    assert lenses.files == [str(files[i]) for i in (0, 1, 1, 1, 2)]
    assert lenses.indices.tolist() == [0, 0, 1, 2, 0]
    assert lenses.pixel_scales.tolist() == [0.099, 0.1, 0.1, 0.1, 0.101]
    assert warnings_of == []


def test_unknown_pixel_scale_is_told(files, warnings_of):
    lenses = read_images([files[0], files[0]], CONTRACT)
    assert np.isnan(lenses.pixel_scales).all()
    assert warnings_of == [
        f"{files[0]} and 1 more: pixel scale unknown, taken to be the model's 0.1 arcsec; "
        "--pixel_scale states it"
    ]


def test_wrong_pixel_scale(files, tmp_path):
    with pytest.raises(UserError, match=r"--pixel_scale: 0\.05 arcsec per pixel, but the model"):
        read_images(files, CONTRACT, pixel_scale=0.05)
    path = tmp_path / "d.fits"
    fits.PrimaryHDU(IMAGES[4], fits.Header({"PIXSCALE": 0.05})).writeto(path)
    # What a file says can't be overruled.
    with pytest.raises(UserError, match=r"d\.fits: 0\.05 arcsec per pixel, but the model was"):
        read_images([path], CONTRACT, pixel_scale=0.1)


def test_choices_reach_the_formats(tmp_path, warnings_of):
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["flux"] = IMAGES[1]
    hdus = [fits.PrimaryHDU(IMAGES[2] + 1), fits.ImageHDU(IMAGES[2], name="SCI")]
    fits.HDUList(hdus).writeto(tmp_path / "c.fits")
    lenses = read_images(
        [tmp_path / "b.h5", tmp_path / "c.fits"],
        CONTRACT,
        pixel_scale=0.1,
        hdf5_dataset="flux",
        fits_hdu="SCI",
    )
    np.testing.assert_array_equal(lenses.images[..., 0], IMAGES[1:3])
    read_images([tmp_path / "c.fits"], CONTRACT, pixel_scale=0.1)
    assert len(warnings_of) == 1 and "several images" in warnings_of[0]


def test_files_that_can_not_be_read(files, tmp_path):
    with pytest.raises(UserError, match="no image file given"):
        read_images([], CONTRACT)
    with pytest.raises(UserError, match=r"z\.npy: no such file"):
        read_images([*files, tmp_path / "z.npy"], CONTRACT)
    with pytest.raises(UserError, match="is a folder"):
        read_images([tmp_path], CONTRACT)
    other = tmp_path / "image.png"
    other.write_bytes(b"x")
    with pytest.raises(UserError, match=r"image\.png: unknown kind of image file; valid: \.npy, "):
        read_images([other], CONTRACT)


def test_contract_names_the_file(files, tmp_path):
    path = tmp_path / "d.npy"
    np.save(path, np.full((6, 4), np.nan))
    with pytest.raises(UserError, match=r"d\.npy: 24 of 24 values are NaN"):
        read_images([*files, path], CONTRACT)
    np.save(path, np.zeros((7, 4)))
    with pytest.raises(UserError, match=r"d\.npy: shape \[7, 4\]"):
        read_images([*files, path], CONTRACT)
    np.save(path, np.zeros((6, 4), complex))
    with pytest.raises(UserError, match=r"d\.npy: values are of type complex128"):
        read_images([*files, path], CONTRACT)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["image"] = ["text"]
    with pytest.raises(UserError, match=r"s\.h5: values are of type object"):
        read_images([tmp_path / "s.h5"], CONTRACT)
