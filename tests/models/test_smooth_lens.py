"""The smooth-lens front end against lenstronomy."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlens_tf.errors import UserError
from dlens_tf.models import SmoothLensResidual, fitting, smooth_lens
from dlens_tf.parameters import Constant, Uniform
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.simulator import Simulator

CASES = [("model_i_legacy", 112, 2), ("model_ii_instrument", 64, 1)]


def _smooth(name: str, number: int = 10):
    recipe = get_recipe(name)
    lenses = Simulator(recipe).simulate_many("no_sub", 11, range(number))
    positions = np.float32(
        [[lens.parameters["source_x"], lens.parameters["source_y"]] for lens in lenses]
    )
    return recipe, lenses, positions


def _centre(images: np.ndarray, crop: int) -> np.ndarray:
    edge = (images.shape[1] - crop) // 2
    return images[:, edge : edge + crop, edge : edge + crop]


@pytest.mark.parametrize(("name", "crop", "binning"), CASES)
def test_smooth_model_equals_lenstronomy(name, crop, binning):
    recipe, lenses, positions = _smooth(name)
    layer = SmoothLensResidual.for_recipe(recipe, crop=crop, binning=binning)
    model = layer._convolve(layer._sersic(positions)[0]).numpy()
    truth = _centre(np.stack([lens.model[..., 0] for lens in lenses]), crop)
    inner = slice(4, -4)
    np.testing.assert_allclose(
        model[:, inner, inner], truth[:, inner, inner], atol=1e-6 * truth.max()
    )


@pytest.mark.parametrize(("name", "crop", "binning"), CASES)
def test_fit_finds_the_source_and_the_residual_is_white(name, crop, binning):
    recipe, lenses, positions = _smooth(name)
    layer = SmoothLensResidual.for_recipe(recipe, crop=crop, binning=binning)
    images = np.stack([lens.image for lens in lenses])
    fitted, scale = layer.fit(_centre(images[..., 0], crop))
    np.testing.assert_allclose(fitted, positions, atol=0.008)
    expected = 1.0
    if recipe.noise == "deeplense_counts":
        expected = np.array([lens.metadata["exposure_time"] for lens in lenses])
    np.testing.assert_allclose(scale / expected, 1.0, atol=0.05)
    residual = layer(images)[..., 2].numpy()
    assert residual.std() == pytest.approx(1.0, abs=0.03)
    assert residual.mean() == pytest.approx(0.0, abs=0.03)


def test_derivatives_equal_finite_differences():
    layer = SmoothLensResidual.for_recipe(get_recipe("model_ii_instrument"), crop=64)
    position = np.float32([[0.11, -0.07]])
    brightness, by_x, by_y = (x.numpy() for x in layer._sersic(position))
    for axis, derivative in ((0, by_x), (1, by_y)):
        step = np.zeros((1, 2), np.float32)
        step[0, axis] = 2e-3
        high, low = (layer._sersic(position + s * step)[0].numpy() for s in (1, -1))
        numeric = (high - low) / 4e-3
        np.testing.assert_allclose(derivative, numeric, atol=0.02 * np.abs(numeric).max())
    assert brightness.max() > 0


def test_a_vortex_stands_out_of_the_residual():
    recipe = get_recipe("model_ii_instrument")
    lenses = Simulator(recipe).simulate_many("axion", 2, range(6))
    layer = SmoothLensResidual.for_recipe(recipe, crop=64)
    residual = layer(np.stack([lens.image for lens in lenses]))[..., 2].numpy()
    assert (residual.std(axis=(1, 2)) > 1.05).all()


def test_round_trip_keeps_the_weights(tmp_path):
    recipe, lenses, _ = _smooth("model_ii_instrument", 2)
    layer = SmoothLensResidual.for_recipe(recipe, crop=48, binning=2)
    image = keras.Input(recipe.image_shape)
    model = keras.Model(image, layer(image))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = np.stack([lens.image for lens in lenses])
    assert loaded(images).shape == (2, 24, 24, 3)
    np.testing.assert_array_equal(loaded(images), model(images))


def test_half_turn_of_the_image_turns_the_output():
    recipe, lenses, _ = _smooth("model_ii_instrument", 3)
    layer = SmoothLensResidual.for_recipe(recipe, crop=64)
    images = np.stack([lens.image for lens in lenses])
    turned = layer(images[:, ::-1, ::-1]).numpy()
    np.testing.assert_allclose(turned, layer(images).numpy()[:, ::-1, ::-1], atol=0.02)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("name", "crop", "binning"), CASES)
def test_bad_images_spoil_no_other(name, crop, binning, jit):
    recipe, lenses, _ = _smooth(name, 1)
    layer = SmoothLensResidual.for_recipe(recipe, crop=crop, binning=binning)
    call = tf.function(lambda images: layer(images), jit_compile=jit)
    good = lenses[0].image
    images = np.stack([good] * 4)
    images[0, 20, 20] = np.nan
    images[1, 30, 30] = np.inf
    images[3] = 1e38
    # Beside good images, so that both batches are computed alike.
    alone = call(np.stack([good] * 4)).numpy()
    beside = call(images).numpy()
    np.testing.assert_allclose(beside[2], alone[2], atol=1e-5)
    assert np.isfinite(beside[2]).all()
    assert not np.isfinite(beside[0]).all() and not np.isfinite(beside[1]).all()


@pytest.mark.parametrize(("name", "crop", "binning"), CASES)
def test_images_without_a_lens_stay_finite(name, crop, binning):
    recipe, lenses, _ = _smooth(name, 1)
    layer = SmoothLensResidual.for_recipe(recipe, crop=crop, binning=binning)
    image = lenses[0].image
    images = np.stack([0.0 * image, 0.0 * image - 5.0, -image, 0.0 * image + 1e4, 1e3 * image])
    assert np.isfinite(layer(np.float32(images))).all()


def test_solver_equals_numpy():
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(50, 3, 40)) * np.array([1e4, 1e-3, 1.0])[:, None]
    matrix = columns @ columns.transpose(0, 2, 1)
    vector = rng.normal(size=(50, 3)) * np.array([1e4, 1e-3, 1.0])
    solution = fitting.solve_positive(np.float32(matrix), np.float32(vector[..., None]))[..., 0]
    expected = np.linalg.solve(matrix, vector[..., None])[..., 0]
    scale = np.array([1e4, 1e-3, 1.0])
    np.testing.assert_allclose(solution * scale, expected * scale, atol=1e-5)


@pytest.mark.parametrize(("name", "crop", "binning"), CASES)
def test_templates_reach_just_beyond_the_prior(name, crop, binning):
    layer = SmoothLensResidual.for_recipe(get_recipe(name), crop=crop, binning=binning)
    assert layer.position_range == 0.36


def _with_prior(recipe, **priors):
    return dataclasses.replace(recipe, priors={**recipe.priors, **priors})


def test_wider_prior_has_wider_templates():
    recipe = get_recipe("model_ii_instrument")
    layer = SmoothLensResidual.for_recipe(_with_prior(recipe, source_x=Uniform(-0.5, 0.2)))
    assert layer.position_range == 0.51


def test_other_sersic_index_is_refused():
    recipe = _with_prior(get_recipe("model_ii_instrument"), source_n_sersic=Constant(4.0))
    with pytest.raises(UserError, match=r"needs a source of Sersic index 1, that of .* is 4; use"):
        SmoothLensResidual.for_recipe(recipe)


def _instrument(recipe, **changes):
    return {"instrument": dataclasses.replace(recipe.instrument, **changes)}


@pytest.mark.parametrize(
    "changes",
    [
        lambda recipe: {"noise": "none_doubled"},
        lambda recipe: {"supersampling": 2},
        lambda recipe: {"further_bands": (recipe.instrument,)},
        lambda recipe: _instrument(recipe, psf_kernel="kernel.npy"),
        lambda recipe: {"priors": {**recipe.priors, "lens_magnitude": Constant(19.0)}},
        lambda recipe: {"priors": {**recipe.priors, "source_phi": Constant(0.0)}},
        lambda recipe: {"priors": {**recipe.priors, "theta_E": Uniform(1.0, 1.5)}},
    ],
    ids=["noise-free", "supersampled", "colour", "PSF kernel", "lens light", "galaxy", "theta_E"],
)
def test_recipes_that_it_does_not_model_are_refused(changes):
    recipe = get_recipe("model_ii_instrument")
    smooth_lens.check_recipe(recipe)
    with pytest.raises(UserError, match="'model_ii_instrument' is not; use --front_end=flux"):
        smooth_lens.check_recipe(dataclasses.replace(recipe, **changes(recipe)))


@pytest.mark.parametrize("augmentation", ["d4", "rotate"])
def test_augmentation_that_turns_the_lens_is_refused(augmentation):
    with pytest.raises(UserError, match=f"--augmentation={augmentation}"):
        fitting.check_augmentation(
            "smooth_residual", get_recipe("model_ii_instrument"), augmentation
        )
