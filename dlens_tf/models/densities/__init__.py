"""Families of probability densities on the unit cube, told by the numbers that a network gives.

One home of the mathematics: heads call it in the graph, `inference.posterior` in Python.
"""

from collections.abc import Mapping
from typing import Any

from dlens_tf.errors import choose
from dlens_tf.models.densities.base import Density
from dlens_tf.models.densities.covariance import CovarianceDensity
from dlens_tf.models.densities.ensemble import EnsembleDensity
from dlens_tf.models.densities.flow import FlowDensity
from dlens_tf.models.densities.gaussian import GaussianDensity
from dlens_tf.models.densities.mixture import MixtureDensity
from dlens_tf.models.densities.spline import SplineDensity

DENSITIES: dict[str, type[Density]] = {
    "gaussian": GaussianDensity,
    "covariance": CovarianceDensity,
    "mixture": MixtureDensity,
    "spline": SplineDensity,
    "flow": FlowDensity,
    "ensemble": EnsembleDensity,
}

__all__ = [
    "DENSITIES",
    "CovarianceDensity",
    "Density",
    "EnsembleDensity",
    "FlowDensity",
    "GaussianDensity",
    "MixtureDensity",
    "SplineDensity",
    "make_density",
]


def make_density(config: Mapping[str, Any], num_parameters: int) -> Density:
    """The family that a head's description names.

    Args:
      config: {"kind": one of `DENSITIES`, **its options}.
      num_parameters: P.

    Raises:
      UserError: if the kind is unknown or an option out of range.
    """
    options = {name: value for name, value in config.items() if name != "kind"}
    return DENSITIES[choose("density", config["kind"], DENSITIES)](num_parameters, **options)
