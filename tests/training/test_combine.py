"""Combined runs: the mean of their members, and on the road that any run goes."""

import json
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from dlens_tf.errors import UserError
from dlens_tf.evaluation.evaluate import evaluate_run
from dlens_tf.inference.predictor import Predictor
from dlens_tf.models.heads import HEADS
from dlens_tf.serving.export import export_run
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.training.combine import combine_runs
from dlens_tf.training.run_folder import CONFIG_KEYS, RunFolder

RECIPE = get_recipe("model_ii_instrument")


@pytest.fixture(scope="module")
def make_member(tiny_data_dir) -> Callable[..., Path]:
    """make_member(folder, seed=0, kind="spline", targets=(...), **run_json): an untrained run."""

    def make(folder: Path, seed=0, kind="spline", targets=("log10_m_axion",), **changes) -> Path:
        chosen = RECIPE.class_parameters("axion").select(targets)
        keras.utils.set_random_seed(seed)
        image = keras.Input(RECIPE.image_shape, name="image")
        x = keras.layers.Flatten()(keras.layers.AveragePooling2D(16)(image))
        x = keras.layers.Dense(8, activation="tanh")(x)
        loss = "mae" if kind == "point" else "nll"
        head = HEADS[kind].for_targets(chosen, loss, name="head")
        model = keras.Model(image, head(x))
        for weight in head.weights:
            weight.assign(np.random.default_rng(seed).normal(size=weight.shape))
        config = {
            "dataset": "deeplense",
            "config": "model_ii_instrument",
            "data_dir": str(tiny_data_dir),
            "dataset_version": "1.0.0",
            "classes": ["axion"],
            "targets": chosen.to_dicts(),
            "image_shape": list(RECIPE.image_shape),
            "pixel_scale": 0.101,
            "instrument": RECIPE.instrument.name,
            "recipe": RECIPE.name,
            "model": {"backbone": "resnet", "front_end": "flux", "options": {}},
            "head": kind,
            "seed": seed,
            "git_commit": None,
            "dlens_tf_version": "0.1.0",
            "num_parameters": model.count_params(),
            "training_examples": 24,
            **changes,
        }
        folder.mkdir(parents=True)
        model.save(folder / "model.keras")
        (folder / "run.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture(scope="module")
def members(make_member, tmp_path_factory) -> list[Path]:
    """Two runs, not to be changed."""
    folder = tmp_path_factory.mktemp("members")
    return [make_member(folder / "a", 0), make_member(folder / "b", 1, "gaussian")]


@pytest.fixture(scope="module")
def combined(members, tmp_path_factory) -> RunFolder:
    """Their ensemble over half turns, not to be changed."""
    return RunFolder(combine_runs(members, tmp_path_factory.mktemp("combined") / "run", "rot180"))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, *RECIPE.image_shape)).astype(np.float32)


def test_combined_run_is_the_mean_of_its_members(combined, members, images):
    models = [RunFolder(member).load_model() for member in members]
    pictures = [images, images[:, ::-1, ::-1]]
    means = [model(picture)["mean"] for model in models for picture in pictures]
    outputs = combined.load_model()(images)
    np.testing.assert_allclose(outputs["mean"], np.mean(means, axis=0), rtol=1e-5)


def test_combined_run_tells_its_story(combined, members):
    config = combined.config
    assert set(CONFIG_KEYS) <= set(config)
    assert (config["head"], config["tta"]) == ("ensemble", "rot180")
    assert [member["run"] for member in config["members"]] == [str(path) for path in members]
    assert [member["head"] for member in config["members"]] == ["spline", "gaussian"]
    assert config["num_parameters"] == sum(m["num_parameters"] for m in config["members"])
    assert (config["data"], config["training_examples"], config["cache"]) == ("dataset", 24, None)
    assert combined.environment_path.is_file() and not combined.metrics_path.exists()


@pytest.mark.slow
def test_combined_run_is_evaluated_exported_and_served(combined, images):
    result = evaluate_run(combined.path)
    assert result["num_examples"] == 8
    predictor = Predictor.load(export_run(combined.path))
    posterior = predictor.predict(images)
    outputs = combined.load_model()(images)
    np.testing.assert_allclose(posterior.mean, outputs["mean"], rtol=1e-5)
    # Asked for levels that the graph does not give, it goes by the members' densities.
    density = combined.load_model().get_layer("head").density
    levels = [0.1, 0.9]
    low, high = RECIPE.class_parameters("axion")["log10_m_axion"].prior.support
    expected = low + (high - low) * np.asarray(density.quantiles(outputs["density"], levels))
    np.testing.assert_allclose(posterior.quantiles(levels), expected, atol=1e-4)
    assert posterior.samples(50, seed=0).shape == (50, 4, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"targets": ("source_x",)},
            r"its targets is source_x in \[.*, not log10_m_axion in \[-24.0, -22.0\]",
        ),
        ({"image_shape": [32, 32, 1]}, r"its image_shape is \[32, 32, 1\], not \[64, 64, 1\]"),
        ({"recipe": "model_iii"}, "its recipe is model_iii, not model_ii_instrument"),
        ({"kind": "point"}, "has a point head"),
        ({"data": "simulate:model_ii_instrument"}, "its data is simulate:.*, not dataset"),
    ],
)
def test_runs_that_do_not_fit(members, make_member, tmp_path, changes, message):
    other = make_member(tmp_path / "other", **changes)
    with pytest.raises(UserError, match=message) as info:
        combine_runs([members[0], other], tmp_path / "run")
    assert "\n" not in str(info.value) and str(other) in str(info.value)
    assert not (tmp_path / "run").exists()


def test_galaxies_that_another_holds_out(members, make_member, tmp_path):
    """A run of an older version does not say from which it learned."""
    first, other = (
        make_member(tmp_path / galaxies, dataset_galaxies=galaxies) for galaxies in ("abc", "def")
    )
    with pytest.raises(UserError, match="its dataset_galaxies is def, not abc") as info:
        combine_runs([members[0], first, other], tmp_path / "run")
    assert "\n" not in str(info.value)
    combined = RunFolder(combine_runs([members[0], first], tmp_path / "run"))
    assert combined.config["dataset_galaxies"] == "abc"


@pytest.mark.parametrize(
    ("number", "tta", "message"),
    [
        (1, "none", "one run alone is no ensemble; name several in --runs, or choose --tta"),
        (2, "d4", "model_ii_instrument are the same after a half turn only; use --tta=rot180"),
        (2, "d3", "unknown tta 'd3'; valid: none, rot180, d4"),
    ],
)
def test_averages_that_there_are_not(members, tmp_path, number, tta, message):
    with pytest.raises(UserError, match=message):
        combine_runs(members[:number], tmp_path / "run", tta)
    assert not (tmp_path / "run").exists()


def test_member_twice(members, tmp_path):
    again = members[0] / ".." / members[0].name
    with pytest.raises(UserError, match="is given twice"):
        combine_runs([members[0], again], tmp_path / "run")


def test_what_turns_with_the_image(make_member, tmp_path):
    member = make_member(tmp_path / "a", targets=("log10_m_axion", "source_x"))
    with pytest.raises(UserError, match="'source_x' turns with the image"):
        combine_runs([member], tmp_path / "run", "rot180")
    assert not (tmp_path / "run").exists()


def test_folder_that_is_taken(members, combined, tmp_path):
    before = combined.config_path.read_bytes()
    with pytest.raises(UserError, match="exists; choose another --run_dir"):
        combine_runs(members, combined.path)
    assert combined.config_path.read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is not a folder that can be written to"):
        combine_runs(members, tmp_path / "file" / "run")
