import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from dlens_tf.errors import UserError
from dlens_tf.inference.posterior import QUANTILE_LEVELS, Posterior
from dlens_tf.parameters import ParameterSet, Uniform

PARAMETERS = ParameterSet.from_priors(
    {"log10_m_axion": Uniform(-24.0, -22.0), "theta_E": Uniform(1.0, 1.8)}
)
MEAN = np.array([[-22.5, 1.2], [-23.25, 1.6], [-22.0, 1.0]])
STDDEV = np.array([[0.1, 0.01], [0.3, 0.02], [0.05, 0.1]])
LAW = stats.norm(MEAN, STDDEV)


@pytest.fixture
def posterior():
    return Posterior(PARAMETERS, MEAN, STDDEV)


def test_quantiles_are_those_of_a_normal_law(posterior):
    quantiles = posterior.quantiles()
    assert quantiles.shape == (3, 2, 5)
    for q, level in enumerate(QUANTILE_LEVELS):
        np.testing.assert_allclose(quantiles[..., q], LAW.ppf(level), rtol=1e-12)
    np.testing.assert_array_equal(posterior.quantiles([0.5])[..., 0], MEAN)


def test_interval(posterior):
    low, high = np.moveaxis(posterior.interval(0.9), -1, 0)
    np.testing.assert_allclose(LAW.cdf(high) - LAW.cdf(low), 0.9, rtol=1e-12)
    np.testing.assert_allclose(0.5 * (low + high), MEAN, rtol=1e-12)


@pytest.mark.parametrize("levels", [[0.0], [1.0], [0.5, 1.2], [np.nan]])
def test_levels_out_of_range(posterior, levels):
    with pytest.raises(UserError, match="quantile levels must lie between 0 and 1"):
        posterior.quantiles(levels)
    with pytest.raises(UserError, match="between 0 and 1"):
        posterior.interval(1.0)


def test_samples(posterior):
    samples = posterior.samples(4000, seed=3)
    assert samples.shape == (4000, 3, 2)
    # 5 standard errors of the mean and of the standard deviation.
    np.testing.assert_allclose((samples.mean(0) - MEAN) / STDDEV, 0.0, atol=5 / np.sqrt(4000))
    np.testing.assert_allclose(samples.std(0) / STDDEV, 1.0, atol=5 / np.sqrt(8000))
    np.testing.assert_array_equal(samples, posterior.samples(4000, seed=3))
    assert (samples != posterior.samples(4000, seed=4)).all()


def test_log_prob(posterior):
    values = np.array([[-22.4, 1.21], [-24.0, 1.5], [-22.0, 1.0]])
    np.testing.assert_allclose(posterior.log_prob(values), LAW.logpdf(values), rtol=1e-12)
    many = np.stack([values, values + 0.1])
    np.testing.assert_allclose(posterior.log_prob(many), LAW.logpdf(many), rtol=1e-12)


def test_point_estimates_have_no_width():
    posterior = Posterior(PARAMETERS, MEAN)
    calls = [
        posterior.quantiles,
        posterior.interval,
        lambda: posterior.samples(1, seed=0),
        lambda: posterior.log_prob(MEAN),
    ]
    for call in calls:
        with pytest.raises(UserError, match="point estimates without an uncertainty"):
            call()
    assert [c.name for c in posterior.columns()] == ["log10_m_axion_mean", "theta_E_mean"]
    assert posterior.describe(0) == "log10_m_axion = -22.500 log10(eV), theta_E = 1.200 arcsec"


def test_columns(posterior):
    columns = {c.name: c for c in posterior.columns()}
    assert list(columns)[:7] == [
        f"log10_m_axion_{what}" for what in ("mean", "stddev", "q025", "q16", "q50", "q84", "q975")
    ]
    assert len(columns) == 14
    np.testing.assert_allclose(columns["theta_E_q84"].values, LAW.ppf(0.84)[:, 1], rtol=1e-6)
    units = {name: column.unit for name, column in columns.items()}
    assert units["log10_m_axion_q025"] == "log10(eV)"
    assert units["log10_m_axion_stddev"] == "log10"
    assert units["theta_E_stddev"] == "arcsec"


def test_describe(posterior):
    assert posterior.describe(1) == (
        "log10_m_axion = -23.250 ± 0.300 log10(eV), theta_E = 1.600 ± 0.020 arcsec"
    )


def test_wrong_shapes_and_widths():
    with pytest.raises(ValueError, match=r"expected \[N, 2\]"):
        Posterior(PARAMETERS, MEAN[:, :1])
    with pytest.raises(ValueError, match="stddev has shape"):
        Posterior(PARAMETERS, MEAN, STDDEV[:2])
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="must be positive"):
            Posterior(PARAMETERS, MEAN, STDDEV * bad)


def test_needs_no_tensorflow():
    code = (
        "import sys, dlens_tf.inference.posterior, dlens_tf.inference.bundle, dlens_tf.io.images\n"
        "assert not {'tensorflow', 'keras', 'lenstronomy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
