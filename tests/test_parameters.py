import json
import math

import numpy as np
import pytest
from scipy import stats

from dlens_tf.errors import UserError
from dlens_tf.parameters import (
    CATALOGUE,
    Choice,
    Constant,
    Derived,
    Normal,
    ParameterSet,
    Uniform,
    prior_from_dict,
    prior_to_dict,
)
from dlens_tf.simulation.recipes import RECIPES

PRIORS = [
    Constant(0.3), Uniform(-24.0, -22.0), Normal(0.1, 0.2), Normal(0.0, 1.0, cut=1.0),
    Choice(6.0, 9.0, 7), Choice(2.0, 2.0, 1),
]  # fmt: skip
DERIVED = Derived(-2.5, 0.4, -5.0, 0.0)


@pytest.fixture
def parameters():
    return ParameterSet.from_priors(
        {"log10_m_axion": Uniform(-24.0, -22.0), "theta_E": Constant(1.3), "e1": Normal(0.1, 0.2)}
    )


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_samples_follow_the_prior(prior):
    rng = np.random.default_rng(0)
    values = np.array([prior.sample(rng) for _ in range(20_000)])
    low, high = prior.support
    assert low <= values.min() and values.max() <= high
    np.testing.assert_allclose(values.mean(), prior.mean, atol=4 * prior.std / math.sqrt(20_000))
    if isinstance(prior, Normal):
        # Variance of a standard normal cut at ±c: 1 - 2cφ(c) / erf(c/√2).
        c = prior.cut
        phi = math.exp(-0.5 * c * c) / math.sqrt(2 * math.pi)
        expected = prior.std * math.sqrt(1 - 2 * c * phi / math.erf(c / math.sqrt(2)))
    else:
        expected = prior.std
    np.testing.assert_allclose(values.std(), expected, rtol=0.03)


def test_uniform_moments_are_those_of_the_law():
    np.testing.assert_allclose(Uniform(-24.0, -22.0).mean, -23.0)
    np.testing.assert_allclose(Uniform(-24.0, -22.0).std, 2 / math.sqrt(12))


def test_choice_takes_each_value_equally_often():
    prior = Choice(6.0, 9.0, 7)
    assert prior.values == (6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.0)
    np.testing.assert_allclose(prior.mean, 7.5)
    # Seven values half a unit apart: variance 0.5² (7² - 1) / 12.
    np.testing.assert_allclose(prior.std, 1.0)
    rng = np.random.default_rng(1)
    draws = [prior.sample(rng) for _ in range(7000)]
    values, counts = np.unique(draws, return_counts=True)
    assert tuple(values) == prior.values  # exactly, so that a value is a class
    assert stats.chisquare(counts).pvalue > 0.01


def test_derived_labels_are_never_sampled():
    parameters = ParameterSet.from_priors(
        {"sigma_sub": Uniform(0.0, 0.1), "log10_f_sub": DERIVED, "theta_E": Constant(1.3)}
    )
    assert parameters.derived == ["log10_f_sub"]
    assert list(parameters.sample(np.random.default_rng(0))) == ["sigma_sub", "theta_E"]
    # The draws of the others are as if the label were not there.
    without = ParameterSet.from_priors({"sigma_sub": Uniform(0.0, 0.1), "theta_E": Constant(1.3)})
    rngs = (np.random.default_rng(5) for _ in range(2))
    assert parameters.sample(next(rngs)) == without.sample(next(rngs))
    # Yet it can be a target.
    targets = parameters.select(["log10_f_sub"])
    np.testing.assert_allclose(targets.means, [-2.5])
    np.testing.assert_allclose(targets.stds, [0.4])
    np.testing.assert_allclose(targets.supports, [[-5.0, 0.0]])


@pytest.mark.parametrize("prior", [*PRIORS, DERIVED], ids=str)
def test_prior_survives_json(prior):
    assert prior_from_dict(json.loads(json.dumps(prior_to_dict(prior)))) == prior


def test_unknown_prior_lists_the_valid_ones():
    with pytest.raises(
        UserError, match="unknown prior 'beta'; valid: constant, uniform, normal, choice, derived"
    ):
        prior_from_dict({"kind": "beta"})


def test_set_survives_json(parameters):
    assert ParameterSet.from_dicts(json.loads(json.dumps(parameters.to_dicts()))) == parameters


def test_arrays_are_in_order(parameters):
    assert parameters.names == ["log10_m_axion", "theta_E", "e1"]
    np.testing.assert_allclose(parameters.means, [-23.0, 1.3, 0.1])
    np.testing.assert_allclose(parameters.supports, [[-24, -22], [1.3, 1.3], [-0.5, 0.7]])
    assert parameters.free.names == ["log10_m_axion", "e1"]
    assert list(parameters.sample(np.random.default_rng(0))) == parameters.names


def test_select_keeps_the_order_asked_for(parameters):
    assert parameters.select(["e1", "log10_m_axion"]).names == ["e1", "log10_m_axion"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["theta_E"], "'theta_E' is fixed in this recipe; valid: log10_m_axion, e1"),
        (["gamma1"], "'gamma1' is not in this data set; valid: log10_m_axion, e1"),
        (["mass"], "'mass' is not in this data set"),
        ([], "no target parameter chosen; valid: log10_m_axion, e1"),
        (["e1", "e1"], "named twice"),
    ],
)
def test_select_says_what_is_wrong(parameters, names, message):
    with pytest.raises(UserError, match=message):
        parameters.select(names)


def test_unknown_parameter_lists_the_catalogue():
    with pytest.raises(UserError, match="unknown parameter 'mass'; valid: log10_m_axion, "):
        ParameterSet.from_priors({"mass": Constant(1.0)})


@pytest.mark.parametrize("name", CATALOGUE)
def test_partners_are_pairs(name):
    parameter = CATALOGUE[name]
    if parameter.spin == 0:
        assert parameter.partner is None
        return
    partner = CATALOGUE[parameter.partner]
    assert partner.partner == name
    assert (partner.spin, partner.unit) == (parameter.spin, parameter.unit)
    assert {parameter.component, partner.component} == {0, 1}


def test_spins_are_those_of_positions_and_shapes():
    spins = {name: p.spin for name, p in CATALOGUE.items() if p.component == 0 and p.spin}
    assert spins == {
        "e1": 2, "gamma1": 2, "center_x": 1, "source_x": 1, "source_e1": 2,
    }  # fmt: skip
    periods = {name: p.period for name, p in CATALOGUE.items() if p.period is not None}
    assert periods == {"phi_vortex": math.pi, "source_phi": 2 * math.pi}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipes_use_catalogue_parameters(recipe):
    for dm_class in recipe.classes:
        parameters = recipe.class_parameters(dm_class)
        assert set(parameters.names) <= set(CATALOGUE)
        for parameter in parameters:
            if parameter.partner is not None:
                assert parameter.partner in parameters
        assert ("phi_vortex" in parameters) == (
            dm_class == "axion" and recipe.dataset == "deeplense"
        )


def test_label_has_symbol_and_unit(parameters):
    assert parameters["theta_E"].label == r"$\theta_\mathrm{E}$ [arcsec]"
    assert parameters["e1"].label == "$e_1$"
