"""Images and targets that the model tests share."""

import functools

import numpy as np
import pytest

from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.simulator import Simulator


@pytest.fixture(scope="session")
def make_lenses():
    """make_lenses(recipe's name): images [12, H, W, 1], targets [12, 2], their ParameterSet."""

    @functools.cache
    def make(name: str):
        recipe = get_recipe(name)
        targets = recipe.class_parameters("axion").select(["log10_m_axion", "source_x"])
        simulated = Simulator(recipe).simulate_many("axion", 3, range(12))
        truth = [[lens.parameters[name] for name in targets.names] for lens in simulated]
        return np.stack([lens.image for lens in simulated]), np.float32(truth), targets

    return make


@pytest.fixture(scope="session")
def lenses(make_lenses):
    """`make_lenses` of model_ii_instrument."""
    return make_lenses("model_ii_instrument")
