"""Point-spread functions: kernels from files, and what an image is convolved with.

An `Instrument` has a Gaussian PSF, or a kernel measured or modelled in pixels. Kernels come
with the package (`data/psf/`, see the README.md there) or from a .npy file. `kernel_on_grid`
gives either kind on the pixels of the simulation, as lenstronomy convolves with it.

lenstronomy's two convolutions differ at the border of the image: with a Gaussian the outermost
pixel goes on for ever, with a kernel in pixels there is nothing outside.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlens_tf.errors import UserError, choose
from dlens_tf.io.files import check_readable, one_line

if TYPE_CHECKING:
    from dlens_tf.simulation.instruments import Instrument

KERNELS = Path(__file__).parent / "data" / "psf"

_FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))
_NORMALISATION_TOLERANCE = 1e-3


def check_kernel(kernel: np.ndarray, name: str) -> None:
    """Raises a `UserError` unless `kernel` is a PSF: square, odd, finite, >= 0, of sum 1.

    Args:
      kernel: [k, k].
      name: what the error calls it.
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        shape = "×".join(map(str, kernel.shape))
        raise UserError(f"PSF {name} must be a square picture, not {shape or 'a number'}")
    if kernel.shape[0] % 2 == 0:
        raise UserError(
            f"PSF {name} has {kernel.shape[0]} pixels a side; it must be odd, with the peak in "
            "the middle"
        )
    if kernel.dtype.kind not in "fiu" or not np.isfinite(kernel).all():
        raise UserError(f"PSF {name} has values that are not finite numbers")
    if kernel.min() < 0.0:
        raise UserError(f"PSF {name} has negative pixels; set them to 0 and normalise it again")
    total = kernel.sum(dtype=np.float64)
    if abs(total - 1.0) > _NORMALISATION_TOLERANCE:
        raise UserError(f"PSF {name} is not normalised (sum {total:.4g}); divide it by its sum")


def check_fits(kernel: np.ndarray, num_pix: int) -> None:
    """Raises a `UserError` if a kernel [k, k] is larger than an image of `num_pix` such pixels."""
    if kernel.shape[0] > num_pix:
        raise UserError(
            f"PSF of {kernel.shape[0]} pixels is larger than the image of {num_pix}: crop and "
            "normalise the PSF, or simulate a larger image"
        )


@functools.lru_cache(maxsize=16)
def load_kernel(name: str) -> np.ndarray:
    """A PSF kernel.

    Args:
      name: of a kernel that comes with the package, or the path of a .npy file.

    Returns:
      float64 [k, k], k odd, sum 1; read-only.

    Raises:
      UserError: if there is no such kernel, or it is none. See `check_kernel`.
    """
    path = Path(name)
    if path.suffix != ".npy":
        bundled = sorted(file.stem for file in KERNELS.glob("*.npy"))
        path = KERNELS / f"{choose('PSF', name, bundled)}.npy"
    check_readable(path)
    try:
        with open(path, "rb") as file:
            kernel = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"PSF {name} is not a .npy array: {one_line(error)}") from error
    check_kernel(kernel, name)
    kernel = kernel / kernel.sum(dtype=np.float64)
    kernel.flags.writeable = False
    return kernel


def gaussian_taps(instrument: "Instrument", supersampling: int) -> np.ndarray:
    """The filter by which lenstronomy applies a Gaussian PSF, along each axis in turn.

    Args:
      instrument: one without a PSF kernel.
      supersampling: subpixels per pixel and axis.

    Returns:
      float64 [k], k odd, symmetric, sum 1, on subpixels.
    """
    from scipy import ndimage

    sigma = instrument.psf_fwhm / _FWHM_PER_SIGMA / instrument.pixel_scale * supersampling
    radius = int(instrument.psf_truncation * sigma + 0.5)  # scipy's rounding
    impulse = np.zeros(2 * radius + 1)
    impulse[radius] = 1.0
    return ndimage.gaussian_filter1d(
        impulse, sigma, mode="constant", truncate=instrument.psf_truncation
    )


def gaussian_matrix(instrument: "Instrument", num_pix: int, supersampling: int) -> np.ndarray:
    """A Gaussian PSF and the average over subpixels along one axis.

    Beyond the border the outermost subpixel goes on, as in lenstronomy.

    Returns:
      float64 [num_pix, num_pix × supersampling].
    """
    from scipy import ndimage

    taps = gaussian_taps(instrument, supersampling)
    convolved = ndimage.correlate1d(np.eye(num_pix * supersampling), taps, axis=0, mode="nearest")
    return convolved.reshape(num_pix, supersampling, -1).mean(axis=1)


def kernel_on_grid(instrument: "Instrument", supersampling: int, num_pix: int) -> np.ndarray:
    """The PSF on the subpixels that an image is simulated on, as lenstronomy convolves with it.

    Args:
      instrument: whose PSF.
      supersampling: subpixels per pixel and axis. Kernels that are sampled more finely than
        the instrument's pixels can be used at their own sampling or at 1.
      num_pix: pixels of the image per side.

    Returns:
      float64 [k, k], k odd, sum 1.

    Raises:
      UserError: if the PSF is larger than the image, or can't be had at this supersampling.
    """
    if instrument.psf_kernel is None:
        taps = gaussian_taps(instrument, supersampling)
        kernel = np.outer(taps, taps)
    else:
        from lenstronomy.Data.psf import PSF

        check_supersampling(instrument, supersampling)
        psf = PSF(
            psf_type="PIXEL",
            kernel_point_source=load_kernel(instrument.psf_kernel),
            point_source_supersampling_factor=instrument.psf_supersampling,
        )
        kernel = np.array(psf.kernel_point_source_supersampled(supersampling), np.float64)
    check_fits(kernel, num_pix * supersampling)
    return kernel


def check_supersampling(instrument: "Instrument", supersampling: int) -> None:
    """Raises a `UserError` if the instrument's PSF can't be had at this supersampling."""
    own = instrument.psf_supersampling
    if instrument.psf_kernel is not None and own > 1 and supersampling not in (1, own):
        raise UserError(
            f"PSF {instrument.psf_kernel} has {own}×{own} samples per pixel: simulate with "
            f"supersampling 1 or {own}, not {supersampling}"
        )
