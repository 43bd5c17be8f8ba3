"""Losses against scipy and closed forms."""

import numpy as np
import pytest
from scipy import stats

from dlens_tf.models import GaussianHead, PointHead

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
