"""Losses against scipy and closed forms; what every head must do; what heads can learn."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from dlens_tf.errors import UserError
from dlens_tf.models import HEADS, GaussianHead, MixtureHead, PointHead, SplineHead
from dlens_tf.parameters import Normal, ParameterSet, Uniform
from dlens_tf.simulation.recipes import RECIPES

TARGETS = ParameterSet.from_priors(
    {"log10_m_axion": Uniform(-24.0, -22.0), "theta_E": Normal(1.5, 0.1)}
)
LOW, HIGH = TARGETS.supports.T
LEVELS = (0.025, 0.16, 0.5, 0.84, 0.975)
TRUTH = np.float32([[-23.4, 1.45], [-22.5, 1.7]])
DENSITY_HEADS = [name for name in HEADS if name != "point"]


def make_head(kind: str, loss: str | None = None, **options):
    loss = loss or ("mae" if kind == "point" else "nll")
    return HEADS[kind].for_targets(TARGETS, loss, name="head", **options)


def outputs_of(head, num: int, scale: float = 1.0):
    """Outputs for random numbers of order `scale`."""
    rng = np.random.default_rng(5)
    numbers = scale * rng.normal(size=(num, head.density.num_numbers))
    head.build((None, head.density.num_numbers))
    head.dense.kernel.assign(np.eye(head.density.num_numbers))
    return head(np.float32(numbers))


def gaussian_law(outputs):
    """SciPy's law for the outputs of a Gaussian head."""
    mode, width = np.split(np.float64(outputs["density"]), 2, axis=-1)
    mode = LOW + (HIGH - LOW) / (1.0 + np.exp(-mode))
    width = (HIGH - LOW) * (3e-4 + (2.0 - 3e-4) / (1.0 + np.exp(-width)))
    return stats.truncnorm((LOW - mode) / width, (HIGH - mode) / width, mode, width)


def test_gaussian_is_a_truncated_normal_in_physical_units():
    outputs = outputs_of(make_head("gaussian"), 7)
    law = gaussian_law(outputs)
    np.testing.assert_allclose(outputs["mean"], law.mean(), rtol=1e-5)
    np.testing.assert_allclose(outputs["stddev"], law.std(), rtol=1e-4)
    expected = np.stack([law.ppf(level) for level in LEVELS], axis=-1)
    np.testing.assert_allclose(outputs["quantiles"], expected, rtol=1e-5)


def test_nll_is_the_density_in_prior_units():
    head = make_head("gaussian")
    outputs = outputs_of(head, 2)
    density = gaussian_law(outputs).logpdf(TRUTH) + np.log(TARGETS.stds)
    np.testing.assert_allclose(head.example_loss(TRUTH, outputs), -density.mean(1), rtol=1e-4)
    np.testing.assert_allclose(head.score(TRUTH, outputs), -density.mean(1), rtol=1e-4)


def test_beta_nll_weighs_by_the_deviation():
    head = make_head("gaussian", "beta_nll")
    outputs = outputs_of(head, 2)
    law = gaussian_law(outputs)
    weighted = law.std() / TARGETS.stds * (law.logpdf(TRUTH) + np.log(TARGETS.stds))
    np.testing.assert_allclose(head.example_loss(TRUTH, outputs), -weighted.mean(1), rtol=1e-4)


@pytest.mark.parametrize("kind", DENSITY_HEADS)
def test_nll_is_minus_the_joint_density_by_the_number_of_parameters(kind):
    head = make_head(kind)
    outputs = outputs_of(head, 2)
    x = tf.constant(np.float32((TRUTH - LOW) / (HIGH - LOW)))
    joint = head.density.joint_log_prob(outputs["density"], x).numpy()
    expected = -(joint + np.log(TARGETS.stds / (HIGH - LOW)).sum()) / 2.0
    np.testing.assert_allclose(head.score(TRUTH, outputs), expected, rtol=1e-4, atol=1e-4)
    assert head.score_name == "nll"


def test_crps_is_an_integral_over_the_distribution_function():
    head = make_head("spline", "crps")
    outputs = outputs_of(head, 2)
    grid = np.linspace(0.0, 1.0, 4001)
    values = np.broadcast_to(grid[:, None, None], (len(grid), 2, 2))
    cdf = head.density.cdf(tf.cast(outputs["density"], tf.float64), tf.constant(values)).numpy()
    above = LOW + (HIGH - LOW) * grid[:, None, None] >= TRUTH
    crps = ((cdf - above) ** 2).mean(axis=0) * (HIGH - LOW) / TARGETS.stds
    np.testing.assert_allclose(head.example_loss(TRUTH, outputs), crps.mean(1), rtol=0.02)
    assert head.score(TRUTH, outputs)[0] != head.example_loss(TRUTH, outputs)[0]


@pytest.mark.parametrize("loss", ["nll", "crps"])
def test_proper_losses_are_lowest_at_the_truth(loss):
    """Of laws for truths of a known one, the loss is lowest at that one; beta-NLL's is not."""
    target = ParameterSet.from_priors({"theta_E": Uniform(0.0, 1.0)})
    truth = np.float32(stats.norm(0.5, 0.1).ppf((np.arange(2000) + 0.5) / 2000))[:, np.newaxis]
    spline = SplineHead.for_targets(target, loss, bins=32)
    edges = np.linspace(0.0, 1.0, 33)
    losses = []
    for width in (0.06, 0.08, 0.1, 0.125, 0.17):
        # Equal steps of x, and their probabilities as steps of u.
        steps = np.diff(stats.norm(0.5, width).cdf(edges)) + 1e-7
        numbers = np.concatenate([np.log(steps), np.zeros(32 + 33)])
        outputs = spline.answers(tf.constant(np.tile(numbers, (2000, 1)), tf.float32))
        losses.append(float(np.mean(spline.example_loss(truth, outputs))))
    assert np.argmin(losses) == 2


def test_beta_nll_is_no_score():
    target = ParameterSet.from_priors({"theta_E": Uniform(0.0, 1.0)})
    truth = np.float32(stats.norm(0.5, 0.1).ppf((np.arange(2000) + 0.5) / 2000))[:, np.newaxis]
    head = GaussianHead.for_targets(target, "beta_nll")
    scores, losses = [], []
    for width in (0.05, 0.08, 0.1, 0.125, 0.2):
        raw = [0.0, math.log((width - 3e-4) / (2.0 - width))]
        outputs = head.answers(tf.constant(np.tile(raw, (2000, 1)), tf.float32))
        scores.append(float(np.mean(head.score(truth, outputs))))
        losses.append(float(np.mean(head.example_loss(truth, outputs))))
    assert np.argmin(scores) == 2
    assert np.argmin(losses) != 2


def test_point_losses():
    outputs = {"mean": np.float32([[-23.1, 1.5], [-22.6, 1.4]])}
    error = np.abs(TRUTH - outputs["mean"]) / np.float32(TARGETS.stds)
    mae = make_head("point", "mae").example_loss(TRUTH, outputs)
    np.testing.assert_allclose(mae, error.mean(axis=1), rtol=1e-5)
    head = make_head("point", "huber")
    expected = np.where(error < 0.1, 5 * error**2, error - 0.05)
    np.testing.assert_allclose(head.example_loss(TRUTH, outputs), expected.mean(axis=1), rtol=1e-4)
    np.testing.assert_array_equal(head.score(TRUTH, outputs), head.example_loss(TRUTH, outputs))
    assert head.score_name == "loss"


def test_point_head_has_no_uncertainty():
    outputs = make_head("point")(np.zeros((3, 4), np.float32))
    assert set(outputs) == {"mean"}
    np.testing.assert_allclose(outputs["mean"], np.tile(TARGETS.means, (3, 1)), rtol=1e-6)


@pytest.mark.parametrize("kind", DENSITY_HEADS)
def test_untrained_head_answers_with_the_support(kind):
    outputs = make_head(kind)(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))
    for name, shape in (("mean", (3, 2)), ("stddev", (3, 2)), ("quantiles", (3, 2, 5))):
        assert outputs[name].shape == shape
        assert outputs[name].dtype == tf.float32
    width = HIGH - LOW
    np.testing.assert_allclose((outputs["mean"] - LOW) / width, 0.5, atol=0.03)
    np.testing.assert_allclose(outputs["stddev"] / width, 12**-0.5, rtol=0.03)
    places = (outputs["quantiles"].numpy() - LOW[:, None]) / width[:, None]
    np.testing.assert_allclose(places, np.broadcast_to(LEVELS, places.shape), atol=0.03)


@pytest.mark.parametrize("kind", DENSITY_HEADS)
@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_any_features_and_truths_at_the_ends(kind, scale):
    """Answers inside the support, finite losses and gradients, whatever comes."""
    head = make_head(kind)
    features = tf.constant(np.full((3, 4), scale, np.float32))
    truth = np.float32([LOW, HIGH, LOW + 0.3 * (HIGH - LOW)])
    head.build((None, 4))
    head.dense.kernel.assign(keras.random.normal(head.dense.kernel.shape, seed=3))
    with tf.GradientTape() as tape:
        outputs = head(features)
        loss = tf.reduce_mean(head.example_loss(truth, outputs))
    assert np.isfinite(loss)
    for gradient in tape.gradient(loss, [v.value for v in head.trainable_variables]):
        assert np.isfinite(gradient).all()
    assert (outputs["stddev"].numpy() > 0.0).all()
    for name in ("mean", "quantiles"):
        values = np.moveaxis(np.float64(outputs[name]), 1, -1)
        assert (values >= LOW).all()
        assert (values <= HIGH).all()


def test_no_recipe_has_a_support_that_rounding_leaves():
    """Ends of supports, in float32, may lie beyond those in float64 that a posterior has."""
    sets = [r.class_parameters(name) for r in RECIPES.values() for name in r.classes]
    support = np.array(sorted({p.prior.support for parameters in sets for p in parameters.free}))
    assert (np.float32(support[:, 1]) > support[:, 1]).any()
    number = len(support)
    head = GaussianHead(support.mean(1), np.ptp(support, axis=1) / 4.0, support, "nll")
    numbers = np.zeros((2, 2 * number), np.float32)
    numbers[:, :number] = [[-1e4], [1e4]]  # modes at the ends
    numbers[:, number:] = -1e4  # narrow
    outputs = head.answers(tf.constant(numbers))
    for name in ("mean", "quantiles"):
        values = np.float64(outputs[name]).reshape(2, number, -1)
        assert (values >= support[:, :1]).all() and (values <= support[:, 1:]).all(), name
        near = np.take_along_axis(support, np.array([[0] * number, [1] * number]).T, axis=1).T
        width = np.ptp(support, axis=1)[:, np.newaxis]
        assert (np.abs(values - near[..., np.newaxis]) / width < 2e-3).all(), name


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("point", {}),
        ("gaussian", {}),
        ("covariance", {}),
        ("mixture", {"components": 3}),
        ("spline", {"bins": 7}),
        ("flow", {"bins": 6, "hidden": 3}),
    ],
)
def test_serialises(kind, options, assert_serialises):
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 1), name="image")
    features = keras.layers.Dense(5)(keras.layers.Flatten()(image))
    model = keras.Model(image, make_head(kind, **options)(features))
    head = model.get_layer("head")
    head.dense.kernel.assign(0.3 * keras.random.normal(head.dense.kernel.shape, seed=1))
    assert head.density_config == {"kind": kind, **options}
    shapes = head.compute_output_shape((None, 5))
    assert {name: value.shape for name, value in model.output.items()} == shapes
    assert_serialises(model, np.random.default_rng(0).normal(size=(3, 6, 6, 1)).astype(np.float32))


def test_mixed_precision_leaves_heads_in_float32():
    policy = keras.mixed_precision.DTypePolicy("mixed_bfloat16")
    for kind in HEADS:
        loss = "mae" if kind == "point" else "nll"
        head = HEADS[kind].for_targets(TARGETS, loss, dtype=policy)
        for value in head(tf.zeros((2, 4), tf.bfloat16)).values():
            assert value.dtype == tf.float32


def test_error_is_that_of_the_median_and_of_angles_the_shorter_way_round():
    parameters = ParameterSet.from_priors(
        {"phi_vortex": Uniform(0.0, math.pi), "theta_E": Uniform(0.0, 9.0)}
    )
    truth = np.float32([[0.05, 8.0]])
    median = np.float32([[math.pi - 0.05, 4.0]])
    quantiles = median[..., np.newaxis] + np.float32([-0.02, -0.01, 0.0, 0.01, 0.02])
    outputs = {"mean": np.float32([[1.0, 1.0]]), "quantiles": quantiles}
    head = SplineHead.for_targets(parameters, "nll")
    np.testing.assert_allclose(head.error(truth, outputs), [[0.1, 4.0]], atol=1e-6)
    point = PointHead.for_targets(parameters, "mae")
    np.testing.assert_allclose(point.error(truth, {"mean": median}), [[0.1, 4.0]], atol=1e-6)
    # Through the border the gradient points the short way: a larger mean is better.
    with tf.GradientTape() as tape:
        mean = tf.constant(median)
        tape.watch(mean)
        loss = tf.reduce_sum(point.example_loss(truth, {"mean": mean}))
    assert tape.gradient(loss, mean)[0, 0] < 0


def test_wrong_losses_and_options():
    with pytest.raises(UserError, match="unknown loss of MixtureHead 'crps'; valid: nll"):
        MixtureHead.for_targets(TARGETS, "crps")
    with pytest.raises(UserError, match="2 to 64 bins, not 1"):
        SplineHead.for_targets(TARGETS, "nll", bins=1)


def train(head, draw, steps: int = 300, rate: float = 0.03) -> dict[str, np.ndarray]:
    """Trains a head on two classes of examples; returns its outputs for both.

    Args:
      head: of TARGETS or of fewer parameters.
      draw: makes truths [n, P] of a class.
      steps: of Adam, on 256 fresh examples each.
      rate: learning rate.
    """
    rng = np.random.default_rng(7)
    features = np.eye(2, dtype=np.float32)
    truths = np.stack([draw(rng, 128 * steps, c) for c in (0, 1)]).astype(np.float32)
    truths = truths.reshape(2, steps, 128, -1).transpose(1, 0, 2, 3).reshape(steps, 256, -1)
    batch = np.repeat(features, 128, axis=0)
    head.build((None, 2))
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
    optimizer.build(head.trainable_variables)

    @tf.function
    def step(truth):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(head.example_loss(truth, head(batch)))
        variables = head.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    for truth in truths:
        step(tf.constant(truth))
    return {name: value.numpy() for name, value in head(features).items()}


def half_or_skewed(rng, number, which):
    """theta_E on [0, 2]: uniform on the lower half, or with a long tail upwards."""
    law = stats.uniform(0.0, 1.0) if which == 0 else stats.skewnorm(6.0, 0.5, 0.4)
    return law.rvs(number, random_state=rng)[:, np.newaxis].clip(0.0, 2.0)


@pytest.mark.parametrize(
    ("kind", "loss"), [("spline", "nll"), ("spline", "crps"), ("mixture", "nll")]
)
def test_learns_a_flat_and_a_skewed_law(kind, loss):
    target = ParameterSet.from_priors({"theta_E": Uniform(0.0, 2.0)})
    keras.utils.set_random_seed(0)
    outputs = train(HEADS[kind].for_targets(target, loss), half_or_skewed)
    for row, law in enumerate((stats.uniform(0.0, 1.0), stats.skewnorm(6.0, 0.5, 0.4))):
        # The CRPS hardly feels the tails, and learns them late.
        shown = slice(1, 4) if loss == "crps" else slice(None)
        expected = law.ppf(LEVELS)[shown]
        np.testing.assert_allclose(outputs["quantiles"][row, 0, shown], expected, atol=0.05)
        np.testing.assert_allclose(outputs["mean"][row, 0], law.mean(), atol=0.05)
        if loss == "nll":
            np.testing.assert_allclose(outputs["stddev"][row, 0], law.std(), rtol=0.08)


def correlated(rng, number, which):
    """Two parameters on [0, 1] that depend on each other, one way or the other."""
    sign = 1.0 if which == 0 else -1.0
    covariance = 0.08**2 * np.array([[1.0, 0.9 * sign], [0.9 * sign, 1.0]])
    return rng.multivariate_normal([0.4, 0.5], covariance, size=number).clip(0.0, 1.0)


@pytest.mark.parametrize("kind", ["covariance", "mixture", "flow"])
def test_learns_how_parameters_depend_on_each_other(kind):
    targets = ParameterSet.from_priors({"theta_E": Uniform(0.0, 1.0), "gamma1": Uniform(0.0, 1.0)})
    keras.utils.set_random_seed(0)
    head = HEADS[kind].for_targets(targets, "nll")
    outputs = train(head, correlated, steps=400)
    uniforms = np.random.default_rng(1).random((4000, 2, head.density.num_uniforms))
    samples = head.density.sample(outputs["density"], tf.constant(uniforms, tf.float32)).numpy()
    # A mixture builds a ridge of eight round hills; a flow has the most to learn.
    least = 0.87 if kind == "covariance" else 0.8
    for row, sign in enumerate((1.0, -1.0)):
        assert sign * np.corrcoef(samples[:, row].T)[0, 1] > least
        np.testing.assert_allclose(samples[:, row].mean(0), [0.4, 0.5], atol=0.015)
        np.testing.assert_allclose(samples[:, row].std(0), 0.08, rtol=0.15)
        np.testing.assert_allclose(outputs["stddev"][row], 0.08, rtol=0.15)
