"""What every family must do, by brute force: integrals on grids, inversion, samples."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import integrate, stats

from dlens_tf.errors import UserError
from dlens_tf.models.densities import DENSITIES, make_density

CONFIGS = {
    "gaussian": {},
    "covariance": {},
    "mixture": {"components": 3},
    "spline": {"bins": 6},
    "flow": {"bins": 5, "hidden": 3},
    "ensemble": {"members": [{"kind": "spline", "bins": 4}, {"kind": "gaussian"}]},
}
# Marginals of a flow are means over 256 points; those of the others are exact.
ROUGH = {"flow": 0.012}
POINTS = 2001  # of grids in one dimension
SIDE = 200  # of grids in two
NUM = 3


def test_every_family_is_here():
    assert set(CONFIGS) == set(DENSITIES)


@pytest.fixture(params=CONFIGS)
def kind(request):
    return request.param


@pytest.fixture
def density(kind):
    """Of two parameters."""
    return make_density({"kind": kind, **CONFIGS[kind]}, 2)


@pytest.fixture
def numbers(density):
    rng = np.random.default_rng(1)
    return density.initial_numbers() + 0.7 * rng.normal(size=(NUM, density.num_numbers))


def on_grid(function, numbers, grid):
    """A marginal function on a grid [G] for all parameters: [G, N, 2]."""
    values = np.broadcast_to(grid[:, None, None], (len(grid), len(numbers), 2))
    return function(tf.constant(numbers), tf.constant(values)).numpy()


def on_the_square(density, numbers):
    """Joint log-density at the centres of cells of the unit square: [SIDE, SIDE, N]."""
    centres = (np.arange(SIDE) + 0.5) / SIDE
    places = np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    values = np.broadcast_to(places, (SIDE**2, len(numbers), 2))
    log_prob = density.joint_log_prob(tf.constant(numbers), tf.constant(values)).numpy()
    return log_prob.reshape(SIDE, SIDE, len(numbers))


def test_density_is_the_derivative_of_the_distribution_function(density, numbers, kind):
    grid = np.linspace(1e-3, 1.0 - 1e-3, POINTS)
    cdf, pdf = on_grid(density.cdf, numbers, grid), np.exp(on_grid(density.log_prob, numbers, grid))
    below = integrate.cumulative_trapezoid(pdf, grid, axis=0, initial=0.0)
    np.testing.assert_allclose(below, cdf - cdf[0], atol=ROUGH.get(kind, 5e-4))
    assert (np.diff(cdf, axis=0) >= 0.0).all()
    ends = on_grid(density.cdf, numbers, np.array([0.0, 1.0]))
    np.testing.assert_allclose(ends[0], 0.0, atol=1e-3)  # covariance: steep at the ends
    np.testing.assert_allclose(ends[1], 1.0, atol=1e-3)


def test_joint_density_integrates_to_the_marginals(density, numbers, kind):
    joint = np.exp(on_the_square(density, numbers)) / SIDE**2
    np.testing.assert_allclose(joint.sum((0, 1)), 1.0, atol=0.02)
    edges = np.linspace(0.0, 1.0, 11)
    probability = np.diff(on_grid(density.cdf, numbers, edges), axis=0)
    for p in (0, 1):
        tenths = joint.sum(1 - p).reshape(10, SIDE // 10, NUM).sum(1)
        np.testing.assert_allclose(tenths, probability[..., p], atol=0.01)


def test_quantiles_invert_the_distribution_function(density, numbers, kind):
    levels = np.linspace(0.005, 0.995, 67)
    quantiles = density.quantiles(tf.constant(numbers), levels).numpy()
    assert quantiles.shape == (NUM, 2, 67)
    assert ((quantiles >= 0.0) & (quantiles <= 1.0)).all()
    found = density.cdf(tf.constant(numbers), tf.constant(np.moveaxis(quantiles, -1, 0))).numpy()
    expected = np.broadcast_to(levels[:, None, None], found.shape)
    np.testing.assert_allclose(found, expected, atol=ROUGH.get(kind, 2e-6))


def test_moments_are_integrals(density, numbers, kind):
    # By parts of the distribution function, whose ends are never steep beyond 0 and 1.
    grid = np.linspace(0.0, 1.0, POINTS)[:, None, None]
    cdf = on_grid(density.cdf, numbers, grid.ravel())
    mean = 1.0 - integrate.trapezoid(cdf, grid, axis=0)
    square = 1.0 - integrate.trapezoid(2.0 * grid * cdf, grid, axis=0)
    found_mean, found_stddev = (v.numpy() for v in density.moments(tf.constant(numbers)))
    np.testing.assert_allclose(found_mean, mean, atol=1e-3)
    np.testing.assert_allclose(found_stddev, np.sqrt(square - mean**2), rtol=4e-3)


def test_samples_follow_the_law(density, numbers, kind):
    rng = np.random.default_rng(2)
    uniforms = tf.constant(rng.random((3000, NUM, density.num_uniforms)))
    samples = density.sample(tf.constant(numbers), uniforms)
    probability = density.cdf(tf.constant(numbers), samples).numpy()
    for n, p in np.ndindex(NUM, 2):
        assert stats.kstest(probability[:, n, p], "uniform").pvalue > 1e-4
    # Jointly: the entropy.
    log_prob = on_the_square(density, numbers)
    expected = (np.exp(log_prob) * log_prob).mean((0, 1))
    found = density.joint_log_prob(tf.constant(numbers), samples).numpy()
    error = found.std(0) / np.sqrt(len(found))
    np.testing.assert_array_less(np.abs(found.mean(0) - expected), 5.0 * error + 0.02)


def test_float32_is_enough(density, numbers, kind):
    rng = np.random.default_rng(3)
    x = rng.random((50, NUM, 2)).astype(np.float32)
    for name in ("cdf", "log_prob", "joint_log_prob"):
        exact = getattr(density, name)(tf.constant(numbers), tf.constant(x, tf.float64)).numpy()
        single = getattr(density, name)(tf.constant(numbers, tf.float32), tf.constant(x))
        assert single.dtype == tf.float32
        np.testing.assert_allclose(single, exact, rtol=2e-3, atol=2e-3)
    for single, exact in zip(
        density.moments(tf.constant(numbers, tf.float32)),
        density.moments(tf.constant(numbers)),
        strict=True,
    ):
        np.testing.assert_allclose(single, exact, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [5.0, 1e4])
def test_finite_at_extremes(density, kind, scale):
    """Any numbers, and truths at the very ends: finite densities and gradients in float32."""
    rng = np.random.default_rng(4)
    numbers = tf.constant(scale * rng.normal(size=(40, density.num_numbers)), tf.float32)
    values = np.zeros((4, 40, 2), np.float32)
    values[1], values[2], values[3] = 1.0, 0.5, rng.random((40, 2))
    with tf.GradientTape() as tape:
        tape.watch(numbers)
        log_prob = density.joint_log_prob(numbers, tf.constant(values))
        total = tf.reduce_sum(log_prob)
    assert np.isfinite(log_prob).all()
    assert np.isfinite(tape.gradient(total, numbers)).all()
    mean, stddev = density.moments(numbers)
    quantiles = density.quantiles(numbers, [0.025, 0.5, 0.975]).numpy()
    assert np.isfinite(mean).all()
    assert (stddev.numpy() > 0.0).all()
    assert ((quantiles >= 0.0) & (quantiles <= 1.0)).all()
    assert (np.diff(quantiles, axis=-1) >= 0.0).all()


def test_untrained_is_nearly_uniform(density):
    numbers = density.initial_numbers()[np.newaxis]
    grid = np.linspace(0.01, 0.99, 33)
    np.testing.assert_allclose(on_grid(density.log_prob, numbers, grid), 0.0, atol=0.15)


def test_configuration_makes_the_same_family(density, kind):
    again = make_density({"kind": kind, **density.get_config()}, 2)
    assert type(again) is type(density)
    assert again.num_numbers == density.num_numbers
    assert again.get_config() == density.get_config()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "histogram"}, "unknown density 'histogram'"),
        ({"kind": "spline", "bins": 1}, "2 to 64 bins, not 1; 16 to 32 will do"),
        ({"kind": "spline", "bins": 65}, "2 to 64 bins, not 65"),
        ({"kind": "flow", "bins": 500}, "2 to 64 bins, not 500"),
        ({"kind": "flow", "hidden": 0}, "1 to 100 hidden units, not 0"),
        ({"kind": "mixture", "components": 0}, "1 to 500 components, not 0"),
    ],
)
def test_bad_configurations(config, message):
    with pytest.raises(UserError, match=message):
        make_density(config, 2)
