import dataclasses
import json

import keras
import numpy as np
import pytest

from dlens_tf.errors import UserError
from dlens_tf.models import ModelSpec, build_model
from dlens_tf.parameters import ParameterSet, Uniform
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.training.initial_weights import check_initial_run, take_over
from dlens_tf.training.run_folder import RunFolder

SIZES = {
    "resnet": {"width": 8, "depth": 1, "stages": 2},
    "vit": {"patch_size": 16, "width": 8, "depth": 1, "heads": 2},
    "convnext": {"width": 8, "depth": 1, "stages": 2},
    "hybrid": {"width": 8, "depth": 1, "stages": 2, "attention_width": 8, "attention_depth": 1},
}
SAME = ModelSpec(options={"width": 8, "depth": 1, "stages": 2, "stem_stride": 4})
FIT = {"num_masses": 3, "num_angles": 4, "rank": 4, "steps": 1}


@pytest.fixture(scope="module")
def recipe():
    return get_recipe("model_ii_instrument")


@pytest.fixture(scope="module")
def targets(recipe) -> ParameterSet:
    return recipe.class_parameters("axion").select(["log10_m_axion", "source_x"])


def _images(brightness: float = 1.0) -> np.ndarray:
    return brightness * np.random.default_rng(0).uniform(size=(4, 64, 64, 1)).astype(np.float32)


@pytest.mark.parametrize("backbone", [*SIZES, "none"])
def test_all_trained_weights_are_taken_over_and_nothing_else(recipe, targets, backbone, tmp_path):
    """As they come from disk; the answer to the same pictures is then the same."""
    fits = {"front_end": "lens_fit", "front_end_options": FIT} if backbone == "none" else {}
    spec = ModelSpec(backbone, SIZES.get(backbone, {}), **fits)
    initial, model = (build_model(spec, recipe, targets, _images(b)) for b in (1.0, 50.0))
    rng = np.random.default_rng(1)
    for weight in initial.trainable_weights:
        weight.assign(rng.normal(scale=0.1, size=weight.shape))
    initial.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)

    def answers(network: keras.Model, brightness: float) -> np.ndarray:
        return network(_images(brightness))["mean"].numpy()

    before = answers(model, 50.0)
    take_over(model, loaded, "easy")
    for weight, expected in zip(model.trainable_weights, initial.trainable_weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), expected.numpy(), err_msg=weight.path)
    if not fits:
        # The stretch is still that of brighter images, so these look as the others did.
        assert answers(model, 50.0) == pytest.approx(answers(initial, 1.0), rel=1e-4, abs=1e-6)
    assert not np.allclose(answers(model, 50.0), before, rtol=1e-6)


def test_position_embeddings_of_other_images_are_refused(targets, recipe):
    spec = ModelSpec("vit", SIZES["vit"])
    small, large = (
        build_model(spec, dataclasses.replace(recipe, num_pix=n), targets, _images()[:, :n, :n])
        for n in (32, 64)
    )
    weights = [weight.numpy() for weight in large.weights]
    with pytest.raises(
        UserError,
        match=r"--initial_run=easy has another network \(its weight patches/position is "
        r"\[1, 4, 8\], here it is \[1, 16, 8\]\): train one with the same flags of the model",
    ):
        take_over(large, small, "easy")
    for weight, value in zip(large.weights, weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_surplus_weights_are_refused(recipe, targets):
    deep, flat = (
        build_model(
            ModelSpec("resnet", {**SIZES["resnet"], "depth": n}), recipe, targets, _images()
        )
        for n in (2, 1)
    )
    with pytest.raises(UserError, match=r"its weight \S+ is \[[\d, ]+\], here it is missing"):
        take_over(flat, deep, "easy")


def test_heads_with_numbers_of_another_meaning_are_refused(recipe, targets):
    """Of one parameter both have two numbers."""
    one = targets.select(["log10_m_axion"])
    normal, probit = (
        build_model(ModelSpec("resnet", SIZES["resnet"], head=head), recipe, one, _images())
        for head in ("gaussian", "covariance")
    )
    assert [w.shape for w in normal.weights] == [w.shape for w in probit.weights]
    with pytest.raises(UserError, match="its head's kind is covariance, not gaussian"):
        take_over(normal, probit, "easy")


def test_other_priors_of_targets_are_refused(finished_run, targets):
    check_initial_run(finished_run, targets, None, SAME)
    wider = {p.name: p.prior for p in targets} | {"source_x": Uniform(-0.5, 0.5)}
    with pytest.raises(
        UserError, match=r"infers source_x under the prior Uniform\(low=-0\.35, .* not Uniform\(low"
    ) as info:
        check_initial_run(finished_run, ParameterSet.from_priors(wider), None, SAME)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"stem_stride": 1}}, "its resnet_stem_stride is 4, not 1"),
        ({"backbone": "vit"}, "its model is resnet, not vit"),
        ({"front_end": "lens_fit"}, "its front_end is flux, not lens_fit"),
        ({"head": "covariance"}, "its head is gaussian, not covariance"),
        ({"polar": {"radii": 32}}, "its polar is False, not True"),
    ],
)
def test_other_network_is_refused(finished_run, targets, change, message):
    """Even where the weights fit."""
    with pytest.raises(UserError, match=rf"has another network \({message}\)") as info:
        check_initial_run(finished_run, targets, None, ModelSpec(**change))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (
            {"backbone": "vit", "options": {"heads": 4}},
            {"backbone": "vit", "options": {"heads": 2}},
            "its vit_heads is 4, not 2",
        ),
        (
            {"front_end": "lens_fit", "front_end_options": {"crop": 64, "binning": 1}},
            {"front_end": "lens_fit", "front_end_options": {"crop": None, "binning": 1}},
            "its crop is 64, not None",
        ),
        (
            {"polar": {"radii": 32, "max_radius": 1.0}},
            {"polar": {"radii": 32, "max_radius": 0.8}},
            "its polar_max_radius is 1.0, not 0.8",
        ),
        (
            {"head": "flow", "head_options": {"bins": 16}},
            {"head": "flow", "head_options": {"bins": 24}},
            "its flow_bins is 16, not 24",
        ),
        ({"options": {"dropout": 0.0}}, {"options": {"dropout": 0.3}, "loss": "beta_nll"}, None),
    ],
)
def test_options_of_the_network(finished_run, targets, tmp_path, theirs, ours, message):
    run, spec = RunFolder(tmp_path), ModelSpec(**ours)
    model = dataclasses.asdict(ModelSpec(**theirs))
    run.config_path.write_text(json.dumps({**finished_run.config, "model": model}))
    if message is None:
        check_initial_run(run, targets, None, spec)
        return
    with pytest.raises(UserError, match=message):
        check_initial_run(run, targets, None, spec)


def test_older_run_says_less_of_its_network(finished_run, targets, tmp_path):
    run = RunFolder(tmp_path)
    model = {"backbone": "resnet", "options": {"width": 8}}
    run.config_path.write_text(json.dumps({**finished_run.config, "model": model}))
    check_initial_run(run, targets, None, ModelSpec(options={"width": 8, "stem_stride": 1}))
    with pytest.raises(UserError, match="its resnet_width is 8, not 16"):
        check_initial_run(run, targets, None, ModelSpec(options={"width": 16}))


def test_galaxies_that_may_be_held_out_are_refused(finished_run, targets, tmp_path):
    run = RunFolder(tmp_path)
    run.config_path.write_text(json.dumps({**finished_run.config, "dataset_galaxies": "abc"}))
    for galaxies in ("abc", None):
        check_initial_run(run, targets, galaxies, SAME)
    check_initial_run(finished_run, targets, "abc", SAME)
    with pytest.raises(UserError, match=r"learned from galaxies abc, but .* from galaxies def"):
        check_initial_run(run, targets, "def", SAME)
