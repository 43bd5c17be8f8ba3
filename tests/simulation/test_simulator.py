import numpy as np
import pytest
from scipy import stats

from dlens_tf.errors import UserError
from dlens_tf.simulation.noise import observe
from dlens_tf.simulation.recipes import CLASSES, RECIPES, get_recipe
from dlens_tf.simulation.simulator import simulate


@pytest.fixture
def no_rendering(monkeypatch):
    """For tests of the draws alone."""
    monkeypatch.setattr(
        "dlens_tf.simulation.lenstronomy_engine.render",
        lambda recipe, parameters, points: np.zeros((recipe.num_pix, recipe.num_pix)),
    )


@pytest.mark.parametrize("dm_class", CLASSES)
@pytest.mark.parametrize("name", ["model_i_legacy", "model_ii", "model_iii_legacy"])
def test_pure_function_of_recipe_class_seed_index(name, dm_class):
    recipe = get_recipe(name)
    lens = simulate(recipe, dm_class, seed=7, index=1_000_000_003)
    simulate(recipe, dm_class, seed=8, index=0)  # what happens in between doesn't matter
    again = simulate(recipe, dm_class, seed=7, index=1_000_000_003)
    assert lens.image.tobytes() == again.image.tobytes()
    assert lens.parameters == again.parameters and lens.metadata == again.metadata
    assert lens.image.shape == recipe.image_shape and lens.image.dtype == np.float32
    assert np.all(np.isfinite(lens.image))


def test_every_part_of_the_key_matters(no_rendering):
    def draw(name="model_ii", dm_class="axion", seed=0, index=0):
        return simulate(get_recipe(name), dm_class, seed, index).parameters["source_x"]

    draws = [
        draw(), draw(name="model_iii"), draw(dm_class="cdm"), draw(seed=1), draw(index=1),
        draw(seed=1, index=1), draw(seed=2**32),
    ]  # fmt: skip
    assert len(set(draws)) == len(draws)


def test_noise_does_not_depend_on_the_draws_before_it(no_rendering):
    """Noise has a generator of its own: a blank lens of either model gets white noise."""
    recipe = get_recipe("model_ii")
    first, second = (simulate(recipe, "axion", 0, index).image for index in (0, 1))
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert abs(correlation) < 4 / recipe.num_pix


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_parameters_follow_their_priors(no_rendering, recipe):
    draws = [simulate(recipe, "axion", 0, index).parameters for index in range(150)]
    for parameter in recipe.class_parameters("axion"):
        values = np.array([draw[parameter.name] for draw in draws])
        low, high = parameter.prior.support
        assert low <= values.min() and values.max() <= high
        if not parameter.is_free:
            continue
        if hasattr(parameter.prior, "std") and hasattr(parameter.prior, "cut"):
            law = stats.truncnorm(-3, 3, parameter.prior.mean, parameter.prior.std)
        else:
            law = stats.uniform(low, high - low)
        assert stats.kstest(values, law.cdf).pvalue > 1e-4, parameter.name


def test_image_is_the_noise_law_applied_to_the_model():
    recipe = get_recipe("model_ii_instrument")
    lens = simulate(recipe, "axion", 0, 0)
    residual = (lens.image[..., 0] - lens.model) / np.sqrt(
        lens.metadata["background_rms"] ** 2 + recipe.instrument.shot_noise(lens.model) ** 2
    )
    assert stats.kstest(residual.ravel(), stats.norm.cdf).pvalue > 0.01
    other = observe(lens.model, recipe, np.random.default_rng(0))
    assert lens.metadata["snr"] == other.snr


def test_legacy_images_are_twice_the_model():
    lens = simulate(get_recipe("model_ii_legacy"), "cdm", 0, 0)
    np.testing.assert_array_equal(lens.image[..., 0], np.float32(2 * lens.model))
    assert "snr" not in lens.metadata


def test_metadata():
    lens = simulate(get_recipe("model_ii"), "no_sub", seed=3, index=4)
    expected = {
        "pixel_scale": 0.101, "exposure_time": 2264.0, "z_lens": 0.5, "z_source": 1.0,
        "seed": 3, "index": 4,
    }  # fmt: skip
    assert expected.items() <= lens.metadata.items()
    assert set(lens.metadata) == set(expected) | {"background_rms", "snr"}


def test_classes_have_their_substructure(no_rendering):
    recipe = get_recipe("model_ii")
    assert len(simulate(recipe, "no_sub", 0, 0).points) == 0
    assert len(simulate(recipe, "axion", 0, 0).points) == 100
    assert len({len(simulate(recipe, "cdm", 0, index).points) for index in range(10)}) > 1


def test_vortex_goes_through_the_lens_centre(no_rendering):
    lens = simulate(get_recipe("model_ii"), "axion", 0, 0)
    centre = [lens.points.x.mean(), lens.points.y.mean()]
    expected = [lens.parameters["center_x"], lens.parameters["center_y"]]
    np.testing.assert_allclose(centre, expected)
    angle = np.arctan2(np.ptp(lens.points.y), np.ptp(lens.points.x))
    folded = min(lens.parameters["phi_vortex"], np.pi - lens.parameters["phi_vortex"])
    np.testing.assert_allclose(angle, folded)


def test_unknown_class_lists_the_valid_ones():
    with pytest.raises(UserError, match="unknown class 'wimp'; valid: no_sub, axion, cdm"):
        simulate(get_recipe("model_ii"), "wimp", 0, 0)
