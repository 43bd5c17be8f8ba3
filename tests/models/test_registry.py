"""What every model must do, for each backbone, head and front end."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlens_tf.errors import UserError
from dlens_tf.models import ModelSpec, build_model
from dlens_tf.models.registry import FRONT_ENDS, given_to
from dlens_tf.simulation.recipes import get_recipe

RECIPE = get_recipe("model_ii_instrument")
SMALL = {
    "resnet": {"width": 8, "depth": 1, "stages": 2, "stem_stride": 4},
    "vit": {"patch_size": 12, "width": 16, "depth": 1, "heads": 2},  # 12 does not divide 64
}
SPECS = [
    ModelSpec("resnet", SMALL["resnet"], "gaussian", "nll"),
    ModelSpec("resnet", SMALL["resnet"], "point", "huber"),
    ModelSpec("resnet", SMALL["resnet"], "gaussian", "beta_nll", "smooth_residual"),
    ModelSpec("vit", SMALL["vit"], "spline", "crps", head_options={"bins": 8}),
    ModelSpec("vit", SMALL["vit"], "point", "mae"),
]
# The front end of photon counts has a noise law of its own.
COUNTS = ModelSpec(
    "resnet",
    SMALL["resnet"],
    "gaussian",
    "nll",
    "smooth_residual",
    {"crop": 112, "binning": 4},
)


@pytest.fixture(
    params=[*((spec, RECIPE) for spec in SPECS), (COUNTS, get_recipe("model_i_legacy"))],
    ids=lambda case: "-".join(
        [case[0].backbone, case[0].head, case[0].loss, case[0].front_end, case[1].name]
    ),
)
def case(request):
    """(spec, recipe)."""
    return request.param


@pytest.fixture
def spec(case):
    return case[0]


@pytest.fixture
def sample(case, make_lenses):
    """Images, targets and their ParameterSet of the case's recipe."""
    return make_lenses(case[1].name)


@pytest.fixture
def model(case, sample):
    images, _, targets = sample
    keras.utils.set_random_seed(0)
    return build_model(*case, targets, images)


def test_outputs_are_float32_in_physical_units_near_the_prior(model, spec, sample):
    images, _, targets = sample
    outputs = model(images)
    names = {"mean", "stddev", "quantiles", "density"} if spec.head != "point" else {"mean"}
    assert set(outputs) == names
    for name, value in outputs.items():
        assert value.shape[:2] == (12, 2) or name == "density"
        assert value.dtype == tf.float32
    np.testing.assert_allclose(outputs["mean"] - targets.means, 0.0, atol=0.1)
    if spec.head != "point":
        np.testing.assert_allclose(outputs["stddev"] / targets.stds, 1.0, atol=0.1)


@pytest.mark.parametrize("size", [1, 3])
def test_any_batch_size_gives_the_same_answer(model, sample, size):
    images = sample[0]
    whole = model(images)["mean"].numpy()
    part = model(images[:size])["mean"].numpy()
    np.testing.assert_allclose(part, whole[:size], atol=1e-4)


def test_a_few_steps_lower_the_loss(model, sample):
    images, truth, _ = sample
    head = model.get_layer("head")
    optimizer = keras.optimizers.Adam(3e-3)
    losses = []
    for _ in range(8):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(head.example_loss(truth, model(images, training=True)))
        gradients = tape.gradient(loss, model.trainable_variables)
        assert all(g is not None and np.isfinite(g).all() for g in gradients)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_keras_round_trip_is_exact(model, sample, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    for key, value in model(sample[0]).items():
        np.testing.assert_array_equal(loaded(sample[0])[key], value)


def test_export_equals_the_model(model, sample, tmp_path):
    model.export(tmp_path / "export", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "export"))
    served = loaded.signatures["serving_default"](tf.constant(sample[0]))
    for key, value in model(sample[0]).items():
        np.testing.assert_allclose(served[key], value, atol=1e-5 * np.abs(value).max())


def test_head_stays_float32_under_a_half_precision_backbone(lenses):
    images, _, targets = lenses
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_model(SPECS[0], RECIPE, targets, images)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model(images)["stddev"].dtype == tf.float32


def test_parameter_counts(lenses):
    """Guards the architectures: a change of these numbers is a change of the models."""
    images, _, targets = lenses
    counts = [build_model(s, RECIPE, targets, images).count_params() for s in SPECS]
    assert counts[0] == 4_996
    assert counts[3] == 7_058


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vgg"}, "unknown backbone 'vgg'; valid: resnet, vit"),
        ({"head": "flows"}, "unknown head 'flows'; valid: point, gaussian"),
        ({"loss": "mae"}, "unknown loss of GaussianHead 'mae'; valid: nll, beta_nll"),
        ({"front_end": "fft"}, "unknown front end 'fft'; valid: flux, smooth_residual"),
        ({"options": {"depths": 3}}, "backbone 'resnet' can't be built: .*depths"),
        (
            {"front_end": "lens_fit", "front_end_options": {"ranks": 3}},
            "front end 'lens_fit' can't be built: .*ranks",
        ),
        ({"polar": {"rings": 3}}, "the polar resampling can't be built: .*rings"),
        (
            {"backbone": "vit", "options": {"width": 10, "heads": 3}},
            "width 10 is not a multiple of heads 3",
        ),
    ],
)
def test_unknown_parts_are_refused_in_one_line(changes, message, lenses):
    images, _, targets = lenses
    with pytest.raises(UserError, match=message) as error:
        build_model(ModelSpec(**changes), RECIPE, targets, images)
    assert "\n" not in str(error.value)


def test_smooth_residual_needs_a_fixed_macro_model(lenses):
    images, _, _ = lenses
    recipe = get_recipe("model_ii")
    targets = recipe.class_parameters("axion").select(["log10_m_axion"])
    with pytest.raises(UserError, match="'model_ii' is not; use --front_end=flux"):
        build_model(ModelSpec(front_end="smooth_residual"), recipe, targets, images)


@pytest.mark.parametrize("recipe", ["model_ii_legacy", "model_ii_instrument", "model_ii"])
def test_front_ends_say_what_they_are_given(recipe):
    is_fixed = recipe != "model_ii"
    for front_end in FRONT_ENDS:
        said = given_to(front_end, get_recipe(recipe))
        assert f"The {front_end} front end " in said
        fits = front_end != "flux"
        assert ("fixed macro-model and source shape" in said) == (fits and is_fixed)
        assert ("with only their prior" in said) == (fits and not is_fixed)
        assert ("PSF and noise law" in said) == fits
        assert ("total mass" in said) == (front_end == "lens_fit")
        assert ("baselines are not given these" in said) == fits


def test_results_quote_what_front_ends_are_given():
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    words = " ".join(page.split())
    for front_end, recipe in (
        ("smooth_residual", "model_i_legacy"),
        ("lens_fit", "model_i_legacy"),
        ("lens_fit", "model_i"),
    ):
        assert given_to(front_end, get_recipe(recipe)) in words
