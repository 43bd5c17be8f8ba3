import numpy as np
import pytest
from scipy import stats

from dlens_tf.errors import UserError
from dlens_tf.simulation.noise import observe
from dlens_tf.simulation.recipes import Recipe, get_recipe
from dlens_tf.simulation.simulator import Lens, Simulator


@pytest.fixture
def no_rendering(monkeypatch):
    """For tests of the draws alone."""
    monkeypatch.setattr(
        "dlens_tf.simulation.lenstronomy_engine.LenstronomyEngine.render",
        lambda self, scenes: np.zeros((len(scenes), *self._recipe.image_shape)),
    )


def simulate(recipe: Recipe, dm_class: str, seed: int, index: int) -> Lens:
    return Simulator(recipe).simulate(dm_class, seed, index)


# Sum, largest and two pixels of seed 3, index 11, as version 1.0.0 of the simulator makes them.
GOLDEN = {
    ("model_i_legacy", "no_sub"): (223386, 273, 35, 0),
    ("model_i_legacy", "axion"): (564459, 519, 151, 0),
    ("model_i_legacy", "cdm"): (362132, 462, 0, 11),
    ("model_i", "no_sub"): (2664.71251, 2.08771181, 0.324021727, 0.602257669),
    ("model_i", "axion"): (2426.00732, 2.19597483, 1.74833798, 0.149099052),
    ("model_i", "cdm"): (363.613486, 0.807538509, 0.29378137, 0.0122654345),
    ("model_ii_legacy", "no_sub"): (319.337961, 3.82364154, 0.0281870868, 0.911065578),
    ("model_ii_legacy", "axion"): (378.623153, 4.04177618, 0.0232222658, 0.0561877824),
    ("model_ii_legacy", "cdm"): (606.372681, 4.03163242, 0.141824931, 0.157792404),
    ("model_ii_instrument", "no_sub"): (203.996868, 2.0393219, 0.538164616, 0.0129730823),
    ("model_ii_instrument", "axion"): (173.410486, 2.02497005, 1.14885807, 0.0033743158),
    ("model_ii_instrument", "cdm"): (197.065657, 1.90804398, 0.0393090509, 0.209856719),
    ("model_ii", "no_sub"): (1499.03208, 7.71952248, 0.551587224, 1.87887836),
    ("model_ii", "axion"): (1308.52464, 4.53902912, 1.49561477, 2.04225564),
    ("model_ii", "cdm"): (488.971906, 2.41047311, 0.5888924, 0.888600647),
    ("model_iii_legacy", "no_sub"): (3570.04352, 18.1921635, 1.43899608, 1.93211865),
    ("model_iii_legacy", "axion"): (4568.44308, 19.7306519, 6.8952179, 2.22213697),
    ("model_iii_legacy", "cdm"): (2509.00304, 18.3253231, 3.51353478, 0.13320072),
    ("model_iii_instrument", "no_sub"): (1340.24734, 8.79601574, 0.808529973, 0.118823327),
    ("model_iii_instrument", "axion"): (1184.1453, 9.06708241, 0.34553802, 0.417089909),
    ("model_iii_instrument", "cdm"): (1710.20081, 9.65916538, 0.905136585, 4.23337555),
    ("model_iii", "no_sub"): (539.924783, 1.12786555, 0.0207348485, 0.0361593477),
    ("model_iii", "axion"): (1647.67751, 12.3223953, 4.92095613, 0.228091478),
    ("model_iii", "cdm"): (819.318349, 1.69522583, 0.307268918, 0.0743431449),
}


@pytest.mark.parametrize(("name", "dm_class"), GOLDEN)
def test_images_are_those_of_version_1(name, dm_class):
    """If this fails on purpose, SIMULATOR_VERSION must change too."""
    image = simulate(get_recipe(name), dm_class, seed=3, index=11).image
    half = image.shape[0] // 2
    first = image[half - image.shape[0] // 8, image.shape[0] // 3, 0]
    second = image[image.shape[0] // 3, half + image.shape[0] // 6, 0]
    values = [image.sum(dtype=np.float64), image.max(), first, second]
    np.testing.assert_allclose(values, GOLDEN[name, dm_class], rtol=1e-6)


@pytest.mark.parametrize("dm_class", ["no_sub", "axion", "cdm"])
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


def test_many_are_the_same_as_one_by_one():
    recipe = get_recipe("model_iii_instrument")
    indices = [4, 2, 1_000_000_007]
    together = Simulator(recipe).simulate_many("axion", 5, iter(indices))
    for index, lens in zip(indices, together, strict=True):
        alone = simulate(recipe, "axion", 5, index)
        assert lens.image.tobytes() == alone.image.tobytes()
        assert (lens.parameters, lens.metadata) == (alone.parameters, alone.metadata)
        assert lens.dm_class == "axion" and lens.metadata["index"] == index


def test_several_bands(colour_recipe):
    lens = simulate(colour_recipe, "cdm", 0, 0)
    assert lens.image.shape == lens.model.shape == colour_recipe.image_shape == (32, 32, 3)
    np.testing.assert_allclose(
        lens.metadata["snr"], observe(lens.model, colour_recipe, np.random.default_rng(0)).snr
    )
    noise = (lens.image - lens.model) / np.stack(
        [
            np.hypot(band.background_rms, band.shot_noise(lens.model[..., i]))
            for i, band in enumerate(colour_recipe.bands)
        ],
        axis=-1,
    )
    for band in range(3):
        assert stats.kstest(noise[..., band].ravel(), stats.norm.cdf).pvalue > 0.01
        other = noise[..., (band + 1) % 3]
        assert abs(np.mean(noise[..., band] * other)) < 4 / 32  # noise of its own
    # The wavelength order of the bands is that of their colours.
    assert np.ptp(lens.model.sum(axis=(0, 1))) > 0.1 * lens.model.sum() / 3


def test_image_is_the_noise_law_applied_to_the_model():
    recipe = get_recipe("model_ii_instrument")
    lens = simulate(recipe, "axion", 0, 0)
    residual = (lens.image - lens.model) / np.sqrt(
        lens.metadata["background_rms"] ** 2 + recipe.instrument.shot_noise(lens.model) ** 2
    )
    assert stats.kstest(residual.ravel(), stats.norm.cdf).pvalue > 0.01
    other = observe(lens.model, recipe, np.random.default_rng(0))
    assert lens.metadata["snr"] == other.snr


def test_legacy_images_are_twice_the_model():
    lens = simulate(get_recipe("model_ii_legacy"), "cdm", 0, 0)
    np.testing.assert_array_equal(lens.image, np.float32(2 * lens.model))
    assert "snr" not in lens.metadata


def test_metadata():
    lens = simulate(get_recipe("model_ii"), "no_sub", seed=3, index=4)
    expected = {
        "pixel_scale": 0.101, "exposure_time": 2264.0, "z_lens": 0.5, "z_source": 1.0,
        "seed": 3, "index": 4,
    }  # fmt: skip
    assert expected.items() <= lens.metadata.items()
    assert set(lens.metadata) == set(expected) | {"background_rms", "snr"}


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(UserError, match="unknown class 'wimp'; valid: no_sub, axion, cdm"):
        simulate(get_recipe("model_ii"), "wimp", 0, 0)
    with pytest.raises(UserError, match="unknown engine 'slow'; valid: lenstronomy, fast"):
        Simulator(get_recipe("model_ii"), engine="slow")
