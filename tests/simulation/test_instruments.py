import numpy as np
import pytest

from dlens_tf.errors import UserError
from dlens_tf.simulation.instruments import INSTRUMENTS, get_instrument

OBSERVING = [i for i in INSTRUMENTS.values() if i.name != "deeplense_model_i"]


@pytest.mark.parametrize("instrument", OBSERVING, ids=lambda i: i.name)
def test_background_is_sky_and_read_noise(instrument):
    sky_rate = 10 ** (-0.4 * (instrument.sky_brightness - instrument.magnitude_zero_point))
    time = instrument.exposure_time * instrument.num_exposures
    electrons = sky_rate * instrument.pixel_scale**2 * time  # Poisson: variance = mean
    variance = electrons + instrument.num_exposures * instrument.read_noise**2
    np.testing.assert_allclose(instrument.background_rms, np.sqrt(variance) / time, rtol=1e-10)


@pytest.mark.parametrize("instrument", OBSERVING, ids=lambda i: i.name)
def test_shot_noise_is_that_of_the_electrons(instrument):
    rate = np.array([[0.0, 0.01], [1.0, 50.0]])
    time = instrument.exposure_time * instrument.num_exposures
    np.testing.assert_allclose(instrument.shot_noise(rate), np.sqrt(rate * time) / time, rtol=1e-10)


def test_old_euclid_numbers():
    # 105.38 sky electrons and 4 × 4.2² of read noise: 13.264 electrons rms in 2260 s.
    instrument = get_instrument("euclid_vis_2021")
    assert instrument.total_exposure_time == 2260.0
    np.testing.assert_allclose(instrument.background_rms, 13.264 / 2260.0, rtol=1e-4)


def test_unknown_instrument_lists_the_valid_ones():
    with pytest.raises(UserError, match="unknown instrument 'jwst'; valid: deeplense_model_i, "):
        get_instrument("jwst")


def test_three_bands_share_pixels_and_differ_in_colour():
    names = ("hst_acs_f606w_80mas", "hst_acs_f814w_80mas", "hst_wfc3_f160w_native_psf")
    bands = [get_instrument(name) for name in names]
    assert {band.pixel_scale for band in bands} == {0.08}
    assert [band.psf_fwhm for band in bands] == [0.08, 0.09, 0.15]  # diffraction


def test_drizzled_pixels_keep_the_noise_of_the_same_sky_area():
    # Noise power per area is that of the detector, read noise included.
    fine, coarse = get_instrument("hst_acs_f814w"), get_instrument("hst_acs_f814w_80mas")
    np.testing.assert_allclose(
        coarse.background_rms / coarse.pixel_scale, fine.background_rms / fine.pixel_scale
    )
