import subprocess
import sys

import numpy as np
import pytest
from scipy import integrate, special, stats

from dlens_tf.errors import UserError
from dlens_tf.inference.posterior import Posterior
from dlens_tf.parameters import ParameterSet, Uniform
from dlens_tf.quantiles import QUANTILE_LEVELS

PARAMETERS = ParameterSet.from_priors(
    {"log10_m_axion": Uniform(-24.0, -22.0), "theta_E": Uniform(1.0, 1.8)}
)
LOW, HIGH = PARAMETERS.supports.T
MODE = np.array([[-22.5, 1.2], [-23.25, 1.6], [-22.1, 1.05]])
WIDTH = np.array([[0.1, 0.01], [0.3, 0.02], [0.05, 0.1]])
LAW = stats.truncnorm((LOW - MODE) / WIDTH, (HIGH - MODE) / WIDTH, MODE, WIDTH)
GAUSSIAN = {"kind": "gaussian"}


def gaussian_outputs():
    place, relative = (MODE - LOW) / (HIGH - LOW), WIDTH / (HIGH - LOW)
    numbers = np.concatenate(
        [special.logit(place), special.logit((relative - 3e-4) / (2.0 - 3e-4))], -1
    )
    return {"mean": LAW.mean(), "stddev": LAW.std(), "density": numbers}


@pytest.fixture
def posterior():
    """Truncated normal laws, which SciPy knows too."""
    return Posterior.from_outputs(PARAMETERS, GAUSSIAN, gaussian_outputs())


def test_quantiles(posterior):
    quantiles = posterior.quantiles()
    assert quantiles.shape == (3, 2, 5)
    for q, level in enumerate(QUANTILE_LEVELS):
        np.testing.assert_allclose(quantiles[..., q], LAW.ppf(level), rtol=1e-9)
    np.testing.assert_array_equal(posterior.median, quantiles[..., 2])


def test_interval(posterior):
    low, high = np.moveaxis(posterior.interval(0.9), -1, 0)
    np.testing.assert_allclose(LAW.cdf(low), 0.05, rtol=1e-6)
    np.testing.assert_allclose(LAW.cdf(high), 0.95, rtol=1e-6)


def test_cdf_broadcasts(posterior):
    values = np.array([[-22.4, 1.21], [-24.0, 1.5], [-22.0, 1.8]])
    np.testing.assert_allclose(posterior.cdf(values), LAW.cdf(values), atol=1e-12)
    many = np.stack([values, values - 0.1, values + 9.0])
    np.testing.assert_allclose(posterior.cdf(many), LAW.cdf(many), atol=1e-12)
    np.testing.assert_allclose(posterior.cdf([-22.4, 1.21]), LAW.cdf([[-22.4, 1.21]]), atol=1e-12)


@pytest.mark.parametrize("levels", [[0.0], [1.0], [0.5, 1.2], [np.nan]])
def test_levels_out_of_range(posterior, levels):
    with pytest.raises(UserError, match="quantile levels must lie between 0 and 1"):
        posterior.quantiles(levels)
    with pytest.raises(UserError, match="between 0 and 1"):
        posterior.interval(1.0)


def test_levels_that_are_no_list(posterior):
    for levels in (0.5, [[0.5]]):
        with pytest.raises(UserError, match=r"must be a list, for example \[0\.5\], not .*0\.5"):
            posterior.quantiles(levels)


def test_number_of_samples(posterior):
    assert posterior.samples(0, seed=0).shape == (0, 3, 2)
    with pytest.raises(UserError, match="the number of samples is -1, must not be negative"):
        posterior.samples(-1, 0)


def test_samples(posterior):
    samples = posterior.samples(4000, seed=3)
    assert samples.shape == (4000, 3, 2)
    assert ((samples >= LOW) & (samples <= HIGH)).all()
    for n, p in np.ndindex(3, 2):
        probability = LAW.cdf(samples)[:, n, p]
        assert stats.kstest(probability, "uniform").pvalue > 1e-4
    np.testing.assert_array_equal(samples, posterior.samples(4000, seed=3))
    assert (samples != posterior.samples(4000, seed=4)).all()


def test_log_prob(posterior):
    values = np.array([[-22.4, 1.21], [-24.0, 1.5], [-22.0, 1.0]])
    np.testing.assert_allclose(posterior.log_prob(values), LAW.logpdf(values), rtol=1e-9)
    joint = LAW.logpdf(values).sum(axis=-1)
    np.testing.assert_allclose(posterior.joint_log_prob(values), joint, rtol=1e-9)
    many = np.stack([values, values - 0.001])
    expected = LAW.logpdf(many)  # SciPy too: -inf below the support
    assert (expected == -np.inf).sum() == 2
    np.testing.assert_allclose(posterior.log_prob(many), expected, rtol=1e-9)
    np.testing.assert_allclose(posterior.joint_log_prob(many), expected.sum(-1), rtol=1e-9)


def test_select(posterior):
    for rows in ([2, 0], slice(1, 3), np.array([True, False, True])):
        part = posterior.select(rows)
        assert len(part) == 2
        np.testing.assert_array_equal(part.quantiles(), posterior.quantiles()[rows])
        np.testing.assert_array_equal(part.mean, posterior.mean[rows])


def test_point_estimates_have_no_width():
    posterior = Posterior.from_outputs(PARAMETERS, {"kind": "point"}, {"mean": MODE})
    calls = [
        posterior.quantiles,
        posterior.interval,
        lambda: posterior.samples(1, seed=0),
        lambda: posterior.log_prob(MODE),
        lambda: posterior.joint_log_prob(MODE),
        lambda: posterior.cdf(MODE),
        lambda: posterior.median,
    ]
    for call in calls:
        with pytest.raises(UserError, match="point estimates without an uncertainty"):
            call()
    assert [c.name for c in posterior.columns()] == ["log10_m_axion_mean", "theta_E_mean"]
    assert posterior.describe(0) == "log10_m_axion = -22.500 log10(eV), theta_E = 1.200 arcsec"
    np.testing.assert_array_equal(posterior.select([1]).mean, MODE[1:2])


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
    low, median, high = (LAW.ppf(level)[1] for level in (0.16, 0.5, 0.84))
    up, down = high - median, median - low
    assert posterior.describe(1) == (
        f"log10_m_axion = {median[0]:.3f} (+{up[0]:.3f} -{down[0]:.3f}) log10(eV), "
        f"theta_E = {median[1]:.3f} (+{up[1]:.3f} -{down[1]:.3f}) arcsec"
    )
    posterior.ood_score = np.array([0.5, 1.5, 0.5])
    assert posterior.describe(1).endswith(", unlike the training images (ood_score 1.5)")
    assert "unlike" not in posterior.describe(2)


def test_wrong_outputs():
    outputs = gaussian_outputs()
    for name in ("mean", "stddev", "density"):
        with pytest.raises(ValueError, match=rf"{name} has shape .*, expected"):
            Posterior.from_outputs(PARAMETERS, GAUSSIAN, {**outputs, name: outputs[name][..., :1]})
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="must be positive"):
            Posterior.from_outputs(PARAMETERS, GAUSSIAN, {**outputs, "stddev": bad * WIDTH})
    with pytest.raises(UserError, match="outputs of a gaussian head lack 'density'"):
        Posterior.from_outputs(PARAMETERS, GAUSSIAN, {"mean": MODE, "stddev": WIDTH})
    with pytest.raises(UserError, match="unknown density 'histogram'"):
        Posterior.from_outputs(PARAMETERS, {"kind": "histogram"}, outputs)


@pytest.mark.parametrize("kind", ["gaussian", "covariance", "mixture", "spline", "flow"])
def test_python_agrees_with_the_graph(kind):
    """What the head answers in float32 is what Python makes of its density, and of integrals."""
    import tensorflow as tf

    from dlens_tf.models import HEADS

    head = HEADS[kind].for_targets(PARAMETERS, "nll")
    noise = np.random.default_rng(0).normal(size=(4, head.density.num_numbers))
    numbers = tf.constant(head.density.initial_numbers() + 0.5 * noise, tf.float32)
    outputs = {name: value.numpy() for name, value in tf.function(head.answers)(numbers).items()}
    posterior = Posterior.from_outputs(PARAMETERS, head.density_config, outputs)
    width = (HIGH - LOW)[:, np.newaxis]
    quantiles = (posterior.quantiles() - outputs["quantiles"]) / width
    np.testing.assert_allclose(quantiles, 0.0, atol=3e-5)
    truth = np.float32(LOW + (HIGH - LOW) * np.random.default_rng(1).random((4, 2)))
    score = -posterior.joint_log_prob(truth) / 2.0 - np.log(PARAMETERS.stds).mean()
    np.testing.assert_allclose(head.score(truth, outputs), score, rtol=1e-3, atol=1e-3)
    grid = np.linspace(LOW, HIGH, 501)[:, np.newaxis] * np.ones((4, 1))
    mean = HIGH - integrate.trapezoid(posterior.cdf(grid), grid, axis=0)
    np.testing.assert_allclose(outputs["mean"], mean, atol=2e-3)


def test_many_images_go_through_in_parts(posterior, monkeypatch):
    from dlens_tf.inference import posterior as module

    def answers():
        return posterior.quantiles(), posterior.log_prob(MODE), posterior.samples(5, seed=0)

    expected = answers()
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", 1)
    for value, other in zip(answers(), expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-12)


def test_needs_no_tensorflow():
    code = (
        "import sys, dlens_tf.inference.posterior, dlens_tf.inference.bundle, dlens_tf.io.images\n"
        "assert not {'tensorflow', 'keras', 'lenstronomy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_columns_stay_inside_the_support_in_float32():
    priors = {"gamma1": Uniform(-0.1, 0.1), "theta_E": Uniform(0.7, 1.7)}
    parameters = ParameterSet.from_priors(priors)
    low, high = parameters.supports.T
    assert (np.float32(low) < low).any() and (np.float32(high) > high).any()
    ends = np.array([low, high])
    numbers = np.repeat([[-60.0], [60.0]], 2, axis=1)  # modes at the ends, narrow
    outputs = {"mean": ends, "stddev": np.full((2, 2), 1e-4)}
    outputs["density"] = np.concatenate([numbers, np.full((2, 2), -60.0)], axis=1)
    posterior = Posterior.from_outputs(parameters, GAUSSIAN, outputs)
    for column in posterior.columns():
        if not column.name.endswith("stddev"):
            p = 0 if column.name.startswith("gamma1") else 1
            values = np.float64(column.values)
            assert ((values >= low[p]) & (values <= high[p])).all(), column.name
