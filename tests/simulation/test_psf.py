import dataclasses

import numpy as np
import pytest
from lenstronomy.SimulationAPI.sim_api import SimAPI
from lenstronomy.Util.kernel_util import fwhm_kernel

from dlens_tf.errors import UserError
from dlens_tf.simulation import psf
from dlens_tf.simulation.instruments import INSTRUMENTS, get_instrument

KERNELS = [i for i in INSTRUMENTS.values() if i.psf_kernel is not None]
GAUSSIANS = [i for i in INSTRUMENTS.values() if i.psf_kernel is None]


def point_image(instrument, supersampling, num_pix):
    """lenstronomy's image of a source that lights a single subpixel, flux 1, and where it is."""
    subpixel = instrument.pixel_scale / supersampling
    sim = SimAPI(
        num_pix,
        instrument.single_band_kwargs(),
        {"lens_light_model_list": ["INTERPOL"]},
    )
    image_model = sim.image_model_class(
        {
            "supersampling_factor": supersampling,
            "supersampling_convolution": supersampling > 1,
            "supersampling_kernel_size": None,
        }
    )
    row, column = num_pix * supersampling // 2, num_pix * supersampling // 2 + 1
    middle = 0.5 * (num_pix * supersampling - 1)
    light = {
        "image": np.ones((1, 1)) / subpixel**2,
        "amp": 1.0,
        "center_x": (column - middle) * subpixel,
        "center_y": (row - middle) * subpixel,
        "phi_G": 0.0,
        "scale": subpixel,
    }
    return image_model.image(kwargs_lens_light=[light]), row, column


def placed(kernel, row, column, side):
    """The kernel around a pixel of an image; what falls outside is cut off."""
    half = kernel.shape[0] // 2
    image = np.zeros((side + 2 * half, side + 2 * half))
    image[row : row + 2 * half + 1, column : column + 2 * half + 1] = kernel
    return image[half : half + side, half : half + side]


@pytest.mark.parametrize("supersampling", [1, 2, 3])
@pytest.mark.parametrize("name", ["euclid_vis", "deeplense_model_i", "hst_wfc3_f160w_native_psf"])
def test_gaussian_kernel_is_lenstronomys(name, supersampling):
    check_against_lenstronomy(get_instrument(name), supersampling, 25)


@pytest.mark.parametrize("supersampling", [1, 3])
def test_pixel_kernel_is_lenstronomys(supersampling):
    check_against_lenstronomy(get_instrument("hst_wfc3_f160w_psf"), supersampling, 40)


@pytest.mark.parametrize("supersampling", [1, 2, 3])
def test_kernel_at_pixel_resolution_is_refined_as_lenstronomy_does(tmp_path, supersampling):
    y, x = np.mgrid[-7:8, -7:8]
    kernel = 1.0 / (1.0 + 0.4 * (x - 0.2) ** 2 + 0.5 * y**2) ** 2
    np.save(tmp_path / "moffat.npy", kernel / kernel.sum())
    instrument = dataclasses.replace(
        get_instrument("euclid_vis"), psf_kernel=str(tmp_path / "moffat.npy")
    )
    check_against_lenstronomy(instrument, supersampling, 24)


def check_against_lenstronomy(instrument, supersampling, num_pix):
    image, row, column = point_image(instrument, supersampling, num_pix)
    kernel = psf.kernel_on_grid(instrument, supersampling, num_pix)
    assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
    assert kernel.sum() == pytest.approx(1.0, abs=1e-12)
    fine = placed(kernel, row, column, num_pix * supersampling)
    shape = (num_pix, supersampling, num_pix, supersampling)
    expected = fine.reshape(shape).sum(axis=(1, 3))
    np.testing.assert_allclose(image, expected, atol=1e-12 * expected.max())


def test_gaussian_taps_are_a_cut_gaussian():
    # FWHM 0.16" on 0.101" pixels: sigma 0.67273 pixels, 5 sigma are 3.36, rounded to 3.
    taps = psf.gaussian_taps(get_instrument("euclid_vis"), 1)
    expected = np.exp(-0.5 * (np.arange(-3, 4) / (0.16 / 2.3548200450309493 / 0.101)) ** 2)
    np.testing.assert_allclose(taps, expected / expected.sum(), rtol=1e-12)


@pytest.mark.parametrize("instrument", KERNELS, ids=lambda i: i.name)
def test_bundled_kernels(instrument):
    kernel = psf.load_kernel(instrument.psf_kernel)
    assert kernel.dtype == np.float64 and not kernel.flags.writeable
    assert kernel.sum() == pytest.approx(1.0, abs=1e-12)
    assert np.unravel_index(kernel.argmax(), kernel.shape) == (len(kernel) // 2,) * 2
    sample = instrument.pixel_scale / instrument.psf_supersampling
    assert fwhm_kernel(kernel) * sample == pytest.approx(instrument.psf_fwhm, rel=1e-3)
    assert (psf.KERNELS / f"{instrument.psf_kernel}.npy").stat().st_size < 150_000


@pytest.mark.parametrize("instrument", GAUSSIANS, ids=lambda i: i.name)
def test_gaussian_instruments_stay_gaussian(instrument):
    kwargs = instrument.single_band_kwargs()
    assert (kwargs["psf_type"], kwargs["seeing"]) == ("GAUSSIAN", instrument.psf_fwhm)
    assert "kernel_point_source" not in kwargs


def flat(side):
    return np.full((side, side), 1.0 / side**2)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (2.0 * flat(5), r"is not normalised \(sum 2\); divide it by its sum"),
        (1.002 * flat(5), r"is not normalised \(sum 1\.002\)"),
        (np.full((3, 3), np.nan), "not finite"),
        (np.full((3, 3), "a"), "not finite"),
        (flat(4), "has 4 pixels a side; it must be odd"),
        (np.ones((3, 5)) / 15, "must be a square picture, not 3×5"),
        (np.float64(1.0), "must be a square picture, not a number"),
        (flat(3) + np.diag([-0.2, 0.0, 0.2]), "has negative pixels"),
    ],
)
def test_bad_kernels(tmp_path, kernel, message):
    path = tmp_path / "psf.npy"
    np.save(path, kernel)
    with pytest.raises(UserError, match=message) as error:
        psf.load_kernel(str(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_small_errors_of_the_norm_are_taken_out(tmp_path):
    path = tmp_path / "psf.npy"
    np.save(path, 1.0005 * flat(5))
    assert psf.load_kernel(str(path)).sum() == pytest.approx(1.0, abs=1e-12)


def test_files_that_are_no_kernels(tmp_path):
    with pytest.raises(UserError, match="unknown PSF 'jwst'; valid: hst_wfc3_f160w_x3"):
        psf.load_kernel("jwst")
    with pytest.raises(UserError, match="no such file"):
        psf.load_kernel(str(tmp_path / "missing.npy"))
    text, pickled, archive = (tmp_path / name for name in ("text.npy", "obj.npy", "two.npy"))
    text.write_text("1 2 3")
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    with open(archive, "wb") as file:
        np.savez(file, a=flat(3), b=flat(3))
    for path in (text, pickled, archive):
        with pytest.raises(UserError, match=r"is not a \.npy array"):
            psf.load_kernel(str(path))


def test_psf_larger_than_the_image():
    with pytest.raises(UserError, match="PSF of 91 pixels is larger than the image of 64: "):
        psf.check_fits(flat(91), 64)
    psf.check_fits(flat(63), 64)
    instrument = get_instrument("hst_wfc3_f160w_psf")
    psf.kernel_on_grid(instrument, 3, 33)
    with pytest.raises(UserError, match="PSF of 99 pixels is larger than the image of 96"):
        psf.kernel_on_grid(instrument, 3, 32)


def test_supersampling_that_the_kernel_has_not():
    with pytest.raises(UserError, match=r"has 3×3 samples per pixel: .* 1 or 3, not 4"):
        psf.kernel_on_grid(get_instrument("hst_wfc3_f160w_psf"), 4, 64)
