"""Instruments as data: pixels, point-spread function, zero point, sky, exposure, noise.

Fluxes are electrons per second. The noise numbers follow lenstronomy's `SingleBand`, which
turns them into a background rms and a shot noise; the values are written out here because
lenstronomy's own presets change between releases.
"""

import dataclasses
import functools

import numpy as np

from dlens_tf.errors import choose
from dlens_tf.simulation.psf import load_kernel


@dataclasses.dataclass(frozen=True)
class Instrument:
    """An imaging instrument and its observing mode.

    Attributes:
      name: registry key.
      pixel_scale: arcsec per pixel.
      psf_fwhm: full width at half maximum of the Gaussian PSF, arcsec.
      psf_truncation: half-width of the Gaussian PSF in units of its sigma.
      psf_kernel: None for the Gaussian PSF; else the name of a bundled kernel, or the path of a
        .npy file, see `psf.load_kernel`. `psf_fwhm` is then for the record.
      psf_supersampling: samples of the kernel per pixel and axis.
      magnitude_zero_point: AB magnitude of 1 e-/s.
      sky_brightness: AB magnitude per square arcsec.
      exposure_time: seconds per exposure.
      num_exposures: exposures that are added.
      read_noise: electrons rms per exposure and pixel.
      gain: electrons per ADU (data stay in electrons, it is kept for the record).
      source: where the numbers come from.
    """

    name: str
    pixel_scale: float
    psf_fwhm: float
    magnitude_zero_point: float
    sky_brightness: float
    exposure_time: float
    num_exposures: int
    read_noise: float
    gain: float
    source: str
    psf_truncation: float = 5.0
    psf_kernel: str | None = None
    psf_supersampling: int = 1

    @property
    def total_exposure_time(self) -> float:
        """Seconds, summed over exposures."""
        return self.exposure_time * self.num_exposures

    def single_band_kwargs(self) -> dict:
        """Keyword arguments of `lenstronomy.SimulationAPI.observation_api.SingleBand`.

        Raises:
          UserError: if the PSF kernel can't be loaded.
        """
        return {
            "pixel_scale": self.pixel_scale,
            **self._psf_kwargs(),
            "magnitude_zero_point": self.magnitude_zero_point,
            "sky_brightness": self.sky_brightness,
            "exposure_time": self.exposure_time,
            "num_exposures": self.num_exposures,
            "read_noise": self.read_noise,
            "ccd_gain": self.gain,
        }

    def _psf_kwargs(self) -> dict:
        if self.psf_kernel is None:
            return {
                "seeing": self.psf_fwhm,
                "psf_type": "GAUSSIAN",
                "truncation": self.psf_truncation,
            }
        return {
            "psf_type": "PIXEL",
            "kernel_point_source": load_kernel(self.psf_kernel),
            "point_source_supersampling_factor": self.psf_supersampling,
        }

    @functools.cached_property
    def background_rms(self) -> float:
        """Standard deviation of sky and read noise in a pixel, e-/s."""
        return float(self._single_band().background_noise)

    def shot_noise(self, model: np.ndarray) -> np.ndarray:
        """Standard deviation of the source's photon noise per pixel, e-/s."""
        return self._single_band().flux_noise(model)

    def _single_band(self):
        from lenstronomy.SimulationAPI.observation_api import SingleBand

        return SingleBand(**self.single_band_kwargs())


_F160W = Instrument(
    name="hst_wfc3_f160w",
    pixel_scale=0.08,
    psf_fwhm=0.08,
    magnitude_zero_point=25.96,
    sky_brightness=22.3,
    exposure_time=5400.0,
    num_exposures=1,
    read_noise=4.0,
    gain=2.5,
    source="lenstronomy 1.14.2 HST WFC3 F160W preset; its PSF is narrower than HST's",
)
_F814W = Instrument(
    name="hst_acs_f814w",
    pixel_scale=0.05,
    psf_fwhm=0.087,
    magnitude_zero_point=25.94,
    sky_brightness=22.0,
    exposure_time=500.0,
    num_exposures=4,
    read_noise=5.0,
    gain=2.0,
    source="ACS/WFC F814W, one orbit in four dithers (COSMOS-like; Koekemoer et al. 2007)",
)
# A drizzled pixel has the read noise of (0.08 / 0.05)² pixels of the detector. Drizzling also
# correlates neighbouring pixels, which is left out.
_ACS_80MAS = {"pixel_scale": 0.08, "read_noise": 8.0}

INSTRUMENTS: dict[str, Instrument] = {
    instrument.name: instrument
    for instrument in [
        Instrument(
            name="deeplense_model_i",
            pixel_scale=0.05,
            psf_fwhm=0.087,
            psf_truncation=3.0,
            magnitude_zero_point=25.0,
            sky_brightness=22.0,
            exposure_time=1.0,
            num_exposures=1,
            read_noise=0.0,
            gain=1.0,
            source="DeepLenseSim simple_sim: pixels and PSF only; its noise is the recipe's own",
        ),
        Instrument(
            name="euclid_vis_2021",
            pixel_scale=0.101,
            psf_fwhm=0.16,
            magnitude_zero_point=24.0,
            sky_brightness=22.35,
            exposure_time=565.0,
            num_exposures=4,
            read_noise=4.2,
            gain=3.1,
            source="lenstronomy 1.9.2 Euclid VIS preset, as DeepLenseSim used it",
        ),
        Instrument(
            name="euclid_vis",
            pixel_scale=0.101,
            psf_fwhm=0.16,
            magnitude_zero_point=25.72,
            sky_brightness=22.3,
            exposure_time=566.0,
            num_exposures=4,
            read_noise=4.2,
            gain=3.1,
            source="lenstronomy 1.14.2 Euclid VIS preset (arXiv:2405.13496, 2405.13493)",
        ),
        _F160W,
        dataclasses.replace(
            _F160W,
            name="hst_wfc3_f160w_native_psf",
            psf_fwhm=0.15,
            source="the same with the PSF of undrizzled frames (Windhorst et al. 2011)",
        ),
        dataclasses.replace(
            _F160W,
            name="hst_wfc3_f160w_psf",
            psf_fwhm=0.1507,
            psf_kernel="hst_wfc3_f160w_x3",
            psf_supersampling=3,
            source="the same with an F160W PSF in pixels (data/psf/README.md)",
        ),
        _F814W,
        dataclasses.replace(
            _F814W,
            name="hst_acs_f814w_80mas",
            psf_fwhm=0.09,
            **_ACS_80MAS,
            source='hst_acs_f814w drizzled to 0.08", PSF of the CANDELS mosaics (Guo et al. 2013)',
        ),
        dataclasses.replace(
            _F814W,
            name="hst_acs_f606w_80mas",
            psf_fwhm=0.08,
            magnitude_zero_point=26.49,
            sky_brightness=22.4,
            **_ACS_80MAS,
            source=(
                "the same through F606W: zero point of Sirianni et al. 2005; sky of F814W and the "
                "colour of zodiacal light"
            ),
        ),
    ]
}


def get_instrument(name: str) -> Instrument:
    """The instrument of this name; raises a `UserError` that lists the valid ones."""
    return INSTRUMENTS[choose("instrument", name, INSTRUMENTS)]
