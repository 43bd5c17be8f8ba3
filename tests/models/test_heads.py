"""Losses against scipy and closed forms."""

import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from dlens_tf.models import GaussianHead, PointHead
from dlens_tf.parameters import ParameterSet, Uniform

MEAN, STD = [-23.0, 0.1], [0.5, 0.2]
TRUTH = np.float32([[-23.4, 0.0], [-22.5, 0.3]])
OUTPUTS = {
    "mean": np.float32([[-23.1, 0.1], [-22.6, 0.2]]),
    "stddev": np.float32([[0.3, 0.05], [0.2, 0.1]]),
}


def test_nll_is_the_gaussian_density_in_prior_units():
    head = GaussianHead(MEAN, STD, "nll")
    density = stats.norm.logpdf(TRUTH, OUTPUTS["mean"], OUTPUTS["stddev"]) + np.log(STD)
    np.testing.assert_allclose(head.example_loss(TRUTH, OUTPUTS), -density.mean(axis=1), rtol=1e-5)


def test_beta_nll_weighs_by_the_deviation():
    head = GaussianHead(MEAN, STD, "beta_nll")
    density = stats.norm.logpdf(TRUTH, OUTPUTS["mean"], OUTPUTS["stddev"]) + np.log(STD)
    weight = OUTPUTS["stddev"] / np.float32(STD)
    np.testing.assert_allclose(
        head.example_loss(TRUTH, OUTPUTS), -(weight * density).mean(axis=1), rtol=1e-5
    )


def test_point_losses():
    error = np.abs(TRUTH - OUTPUTS["mean"]) / np.float32(STD)
    mae = PointHead(MEAN, STD, "mae").example_loss(TRUTH, OUTPUTS)
    np.testing.assert_allclose(mae, error.mean(axis=1), rtol=1e-5)
    huber = PointHead(MEAN, STD, "huber").example_loss(TRUTH, OUTPUTS)
    expected = np.where(error < 0.1, 5 * error**2, error - 0.05)
    np.testing.assert_allclose(huber, expected.mean(axis=1), rtol=1e-4)


def test_point_head_has_no_uncertainty():
    outputs = PointHead(MEAN, STD, "mae")(np.zeros((3, 4), np.float32))
    assert set(outputs) == {"mean"}
    np.testing.assert_allclose(outputs["mean"], np.tile(MEAN, (3, 1)), rtol=1e-6)


@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_deviation_is_positive_and_finite_for_any_features(scale):
    head = GaussianHead(MEAN, STD, "nll")
    outputs = head(np.full((2, 4), scale, np.float32))
    assert (outputs["stddev"].numpy() > 0).all()
    assert np.isfinite(outputs["stddev"]).all()


@pytest.mark.parametrize("loss", ["nll", "beta_nll"])
def test_gaussian_score_is_the_likelihood_whatever_the_loss(loss):
    head = GaussianHead(MEAN, STD, loss)
    density = stats.norm.logpdf(TRUTH, OUTPUTS["mean"], OUTPUTS["stddev"]) + np.log(STD)
    np.testing.assert_allclose(head.score(TRUTH, OUTPUTS), -density.mean(axis=1), rtol=1e-5)
    assert head.score_name == "nll"


def test_score_is_proper():
    """Of forecasts of a standard normal, the score is lowest at a deviation of 1."""
    truth = np.float32(np.random.default_rng(0).standard_normal((20_000, 1)))
    head = GaussianHead([0.0], [1.0], "beta_nll")
    widths = [0.1, 0.5, 0.8, 1.0, 1.25, 2.0]

    def mean(score, width):
        return float(np.mean(score(truth, {"mean": 0 * truth, "stddev": 0 * truth + width})))

    scores = [mean(head.score, width) for width in widths]
    assert widths[int(np.argmin(scores))] == 1.0
    losses = [mean(head.example_loss, width) for width in widths]
    assert widths[int(np.argmin(losses))] != 1.0


@pytest.mark.parametrize("loss", ["mae", "huber"])
def test_point_score_is_the_loss(loss):
    head = PointHead(MEAN, STD, loss)
    np.testing.assert_array_equal(head.score(TRUTH, OUTPUTS), head.example_loss(TRUTH, OUTPUTS))
    assert head.score_name == "loss"


def test_angles_differ_by_the_shorter_way_round():
    parameters = ParameterSet.from_priors(
        {"phi_vortex": Uniform(0.0, math.pi), "theta_E": Uniform(0.0, 9.0)}
    )
    head = GaussianHead.for_targets(parameters, "nll")
    truth = np.float32([[0.05, 8.0]])
    near = {"mean": np.float32([[math.pi - 0.05, 4.0]]), "stddev": np.float32([[0.3, 2.0]])}
    np.testing.assert_allclose(head.error(truth, near), [[0.1, 4.0]], atol=1e-6)
    density = stats.norm.logpdf([0.1, 4.0], 0.0, near["stddev"]) + np.log(parameters.stds)
    np.testing.assert_allclose(head.example_loss(truth, near), -density.mean(axis=1), rtol=1e-5)
    # Through the border the gradient points the short way: a larger mean is better.
    with tf.GradientTape() as tape:
        mean = tf.constant(near["mean"])
        tape.watch(mean)
        loss = tf.reduce_sum(head.example_loss(truth, {**near, "mean": mean}))
    assert tape.gradient(loss, mean)[0, 0] < 0


def test_configuration_without_period_loads():
    head = GaussianHead([0.0], [1.0], "nll", [math.pi])
    config = head.get_config()
    assert GaussianHead.from_config(config).period == [math.pi]
    del config["period"]
    assert GaussianHead.from_config(config).period is None
