"""Images of the fast engine against lenstronomy's, and what makes them repeatable."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from dlens_tf.errors import UserError
from dlens_tf.parameters import Normal, Uniform
from dlens_tf.simulation import fast_engine
from dlens_tf.simulation.engines import make_engine
from dlens_tf.simulation.fast_engine import FastEngine
from dlens_tf.simulation.instruments import INSTRUMENTS
from dlens_tf.simulation.lenstronomy_engine import LenstronomyEngine
from dlens_tf.simulation.noise import moments
from dlens_tf.simulation.recipes import RECIPES, get_recipe
from dlens_tf.simulation.scene import draw
from dlens_tf.simulation.simulator import Simulator
from dlens_tf.simulation.substructure import Halos, PointMasses, PointSubhalos, Vortex

LARGEST = 1e-4
TYPICAL = {"deeplense": 1e-5, "dark_matter": 2e-5}
"""By data set: halos are interpolated between nodes."""


def scenes_of(recipe, number, seed=17):
    return [draw(recipe, c, seed, i) for c in recipe.classes for i in range(number)]


def peak_errors(recipe, number):
    scenes = scenes_of(recipe, number)
    reference = LenstronomyEngine(recipe).render(scenes)
    images = FastEngine(recipe).render(scenes)
    assert images.dtype == np.float32 and images.shape == reference.shape
    peak = reference.max(axis=(1, 2, 3))
    return np.abs(images - reference).max(axis=(1, 2, 3)) / peak


# One for each component: vortices and point masses; a population; cores; galaxies as sources,
# light of the lens and several bands.
@pytest.mark.parametrize("name", ["model_ii_instrument", "cdm", "sidm", "model_iv"])
def test_images_agree_with_lenstronomy(name):
    recipe = get_recipe(name)
    if recipe.supersampling > 1:
        recipe = dataclasses.replace(recipe, num_pix=32)  # lenstronomy is slow
    errors = peak_errors(recipe, 1)
    assert errors.max() < LARGEST
    assert np.median(errors) < TYPICAL[recipe.dataset]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_images_of_every_recipe_agree_with_lenstronomy(name):
    recipe = get_recipe(name)
    errors = peak_errors(recipe, 3 if recipe.dataset == "dark_matter" else 12)
    assert errors.max() < LARGEST
    assert np.median(errors) < 1.5 * TYPICAL[recipe.dataset]  # of few images


@pytest.mark.slow
def test_many_halos_with_small_cores_agree_with_lenstronomy():
    # The hardest population: as many halos as cold dark matter has, each with a core.
    recipe = get_recipe("uldm")
    priors = {**recipe.class_priors["uldm"], "log10_m_axion": Uniform(-19.5, -19.0)}
    recipe = dataclasses.replace(recipe, class_priors={"uldm": priors})
    errors = peak_errors(recipe, 12)
    assert errors.max() < LARGEST
    assert np.median(errors) < TYPICAL["dark_matter"]


@pytest.mark.parametrize("supersampling", [1, 3])
def test_psf_in_pixels_agrees_with_lenstronomy(supersampling):
    recipe = dataclasses.replace(
        get_recipe("model_iii"),
        instrument=INSTRUMENTS["hst_wfc3_f160w_psf"],
        supersampling=supersampling,
        num_pix=40,
    )
    assert peak_errors(recipe, 1).max() < LARGEST


@pytest.fixture(scope="module")
def small():
    """An engine that compiles quickly, and its scenes: all three classes of DeepLense."""
    recipe = dataclasses.replace(get_recipe("model_ii_instrument"), num_pix=32)
    return FastEngine(recipe), scenes_of(recipe, 4)


def test_a_batch_of_several_classes_is_each_of_its_images(small):
    engine, scenes = small
    together = engine.render(scenes)
    reversed_batch = engine.render(scenes[::-1])[::-1]
    np.testing.assert_array_equal(together, reversed_batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model_ii_instrument", "cdm"])
def test_a_batch_at_once_is_the_same_as_one_by_one(name):
    recipe = dataclasses.replace(get_recipe(name), num_pix=16)
    scenes = scenes_of(recipe, 2)
    images = FastEngine(recipe, at_once=False).render(scenes)
    at_once = FastEngine(recipe, at_once=True).render(scenes)
    np.testing.assert_allclose(at_once, images, atol=1e-5 * images.max())


def test_substructure_changes_the_image(small):
    engine, scenes = small
    smooth = engine.render([scene.without_substructure() for scene in scenes])
    change = np.abs(engine.render(scenes) - smooth).max(axis=(1, 2, 3))
    assert np.all((change > 0.0) == [scene.dm_class != "no_sub" for scene in scenes])


THREADS = """
import os, sys
import numpy as np
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.simulator import Simulator
lenses = Simulator(get_recipe("cdm"), "fast").simulate_many("cdm", 3, range(4))
sys.stdout.buffer.write(np.stack([lens.image for lens in lenses]).tobytes())
"""


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_number_of_threads():
    images = [
        subprocess.run(
            [sys.executable, "-c", THREADS, threads], capture_output=True, check=True
        ).stdout
        for threads in ("1", "2")
    ]
    assert len(images[0]) == 4 * 64 * 64 * 4
    assert images[0] == images[1]


def test_the_simulator_draws_the_same_lens_for_both_engines():
    recipe = dataclasses.replace(get_recipe("model_ii_instrument"), num_pix=32)
    fast = Simulator(recipe, "fast").simulate("axion", 1, 5)
    slow = Simulator(recipe).simulate("axion", 1, 5)
    assert fast.parameters == slow.parameters
    assert fast.metadata["snr"] == pytest.approx(slow.metadata["snr"], rel=1e-4)
    # The same draw of noise, too.
    assert np.abs(fast.image - slow.image).max() < LARGEST * slow.model.max()


class TestNoise:
    def observed(self, engine, model, number):
        models = np.repeat(np.float32(model)[np.newaxis], number, axis=0)
        seeds = np.stack([np.arange(number), np.full(number, 7)], axis=-1).astype(np.int32)
        return engine.observe(models, seeds).numpy()

    def test_instrument_noise_has_the_formula_s_moments(self, small):
        engine, scenes = small
        model = engine.render(scenes[4:5])[0]
        images = self.observed(engine, model, 4000)
        mean, variance = moments(model.astype(np.float64), engine.recipe, 0.0)
        pull = (images.mean(axis=0) - mean) / np.sqrt(variance / len(images))
        assert stats.kstest(pull.ravel(), "norm").pvalue > 1e-3
        ratio = images.var(axis=0, ddof=1) / variance
        assert abs(ratio.mean() - 1.0) < 5.0 * np.sqrt(2.0 / len(images) / ratio.size)
        assert ratio.std() == pytest.approx(np.sqrt(2.0 / len(images)), rel=0.1)

    def test_counts_of_model_i_have_the_formula_s_moments(self):
        # At one exposure time, so that the moments are those of one law.
        recipe = dataclasses.replace(
            get_recipe("model_i_legacy"), num_pix=16, exposure_log10=(3.2, 3.2)
        )
        engine = FastEngine(recipe)
        model = np.geomspace(1e-5, 0.3, 256).reshape(16, 16, 1)
        images = self.observed(engine, model, 4000)
        assert np.array_equal(images, np.round(images)) and images.min() == 0.0
        mean, variance = moments(model, recipe, 10.0**3.2)
        pull = (images.mean(axis=0) - mean) / np.sqrt(variance / len(images))
        assert np.abs(pull).max() < 4.5 and abs(pull.mean()) < 0.3
        ratio = images.var(axis=0, ddof=1) / variance
        assert ratio.mean() == pytest.approx(1.0, abs=0.02)

    def test_exposure_times_of_model_i_are_the_prior_s(self):
        engine = FastEngine(dataclasses.replace(get_recipe("model_i_legacy"), num_pix=16))
        images = self.observed(engine, np.full((16, 16, 1), 0.2), 800)
        times = np.log10(images.mean(axis=(1, 2, 3)) / 0.2)
        assert stats.kstest(times, stats.uniform(3.0, 0.5).cdf).pvalue > 1e-3

    def test_published_models_ii_and_iii_are_doubled(self):
        engine = FastEngine(dataclasses.replace(get_recipe("model_ii_legacy"), num_pix=16))
        model = np.random.default_rng(0).uniform(size=(16, 16, 1))
        np.testing.assert_array_equal(
            self.observed(engine, model, 2)[1], 2.0 * model.astype(np.float32)
        )

    def test_noise_is_a_function_of_the_seed(self, small):
        engine, scenes = small
        models = engine.render(scenes)
        seeds = np.arange(2 * len(scenes), dtype=np.int32).reshape(-1, 2)
        images = engine.observe(models, seeds).numpy()
        np.testing.assert_array_equal(images, engine.observe(models, seeds).numpy())
        turned = engine.observe(models[::-1], seeds[::-1]).numpy()[::-1]
        np.testing.assert_array_equal(images, turned)
        assert np.all(engine.observe(models, seeds + 100).numpy() != images)


class TestRefusals:
    def test_very_flat_lenses(self):
        recipe = get_recipe("model_ii")
        flat = dataclasses.replace(recipe, priors={**recipe.priors, "e1": Normal(0.0, 0.3)})
        with pytest.raises(UserError, match=r"ellipticities up to 0\.9.*--engine=lenstronomy"):
            FastEngine(flat)

    def test_vortices_of_different_numbers_of_beads(self):
        recipe = get_recipe("model_ii")
        laws = {"axion": Vortex(), "uldm": Vortex(num_beads=50)}
        with pytest.raises(UserError, match="different numbers of beads"):
            FastEngine(dataclasses.replace(recipe, substructure=laws))

    def test_too_many_halos(self, monkeypatch):
        monkeypatch.setattr(fast_engine, "MAX_HALOS", 3)
        recipe = get_recipe("model_ii_instrument")
        scene = draw(recipe, "cdm", 0, 0)
        with pytest.raises(UserError, match="has 25 halos, more than the fast engine's 3"):
            FastEngine(recipe).pack([scene])

    def test_unknown_engine(self):
        with pytest.raises(UserError, match="unknown engine 'slow'; valid: lenstronomy, fast"):
            make_engine("slow", get_recipe("model_ii"))

    @pytest.mark.parametrize("engine", ["lenstronomy", "fast"])
    def test_psf_larger_than_the_image(self, engine):
        recipe = dataclasses.replace(
            get_recipe("model_iii"),
            instrument=INSTRUMENTS["hst_wfc3_f160w_psf"],
            num_pix=15,
            supersampling=1,
        )
        with pytest.raises(UserError, match=r"PSF of \d+ pixels is larger than the image of 15"):
            make_engine(engine, recipe)


def test_packed_shapes_are_few(small):
    engine, scenes = small
    shapes = {engine.pack(scenes[first:])["exact"].shape[1] for first in range(0, 12, 3)}
    assert shapes == {64}
    many = dataclasses.replace(
        scenes[-1], points=PointMasses(*np.ones((3, 100))), halos=Halos.none()
    )
    assert engine.pack([many])["exact"].shape == (1, 128, 13)
    assert isinstance(engine.recipe.substructure["cdm"], PointSubhalos)
