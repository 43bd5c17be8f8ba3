import dataclasses
import json

import keras
import numpy as np
import pytest

from dlens_tf.errors import UserError
from dlens_tf.models import ModelSpec, build_model
from dlens_tf.models.lens_fit import LensFit
from dlens_tf.models.registry import split_at_fit
from dlens_tf.pipeline.batches import TrainingBatches
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.training import front_end
from dlens_tf.training.front_end import FrontEndBatches, make_predictor, weights_digest


@pytest.fixture
def front():
    """Means over quarters as "pictures", and the largest pixel as "facts"."""
    image = keras.Input((64, 64, 1), name="image")
    pictures = keras.layers.AveragePooling2D(32, name="pictures")(image)
    facts = keras.layers.GlobalMaxPooling2D(name="facts")(image)
    return keras.Model(image, {"facts": facts, "pictures": pictures})


@pytest.fixture
def batches(tiny_batches, front, tmp_path):
    return FrontEndBatches(tiny_batches, front, tmp_path / "kept", {"recipe": "tiny"})


def first_epoch(batches):
    """Images and targets of the first epoch of the tiny data set."""
    parts = list(batches.dataset().take(batches.steps_per_epoch).as_numpy_iterator())
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def sorted_rows(facts, targets):
    order = np.argsort(targets[:, 0])
    return facts[order], targets[order]


def test_every_epoch_holds_the_outputs_for_the_first_epochs_images(tiny_batches, batches):
    images, targets = first_epoch(tiny_batches)
    expected = sorted_rows(images.max(axis=(1, 2)), targets)
    assert batches.num_examples == len(images)
    epochs = []
    dataset = batches.dataset().take(2 * batches.steps_per_epoch).as_numpy_iterator()
    rows = list(dataset)
    for epoch in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        facts = np.concatenate([inputs["facts"] for inputs, _ in epoch])
        truth = np.concatenate([targets for _, targets in epoch])
        epochs.append(truth)
        for got, want in zip(sorted_rows(facts, truth), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)
    assert not np.array_equal(*epochs)


def test_pictures_keep_half_precision(tiny_batches, batches):
    images, targets = first_epoch(tiny_batches)
    inputs, truth = next(batches.dataset().as_numpy_iterator())
    row = int(np.argmin(np.abs(targets[:, 0] - truth[0, 0])))
    means = images[row].reshape(2, 32, 2, 32, 1).mean(axis=(1, 3))
    np.testing.assert_allclose(inputs["pictures"][0], means, rtol=1e-3)
    assert inputs["pictures"].dtype == np.float32


def test_steps_and_replicas_cut_the_same_stream(batches):
    whole = list(batches.dataset().take(4).as_numpy_iterator())
    later = next(batches.dataset(start_step=3).as_numpy_iterator())
    np.testing.assert_array_equal(later[1], whole[3][1])
    halves = list(batches.dataset(replicas=2).take(2).as_numpy_iterator())
    both = np.concatenate([targets for _, targets in halves])
    np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(whole[0][1], axis=0))


def test_filling_goes_on_where_it_stopped(tiny_batches, front, batches, tmp_path):
    folder = tmp_path / "kept"
    expected = np.load(folder / "facts.npy").copy()
    # As if the process had been killed after the first batch.
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "done": 8, "seconds": 1000.0}))
    facts = np.load(folder / "facts.npy", mmap_mode="r+")
    facts[8:] = -1.0
    facts.flush()
    del facts
    again = FrontEndBatches(tiny_batches, front, folder, {"recipe": "tiny"})
    assert 0.0 < batches.fill_seconds < 1000.0 < again.fill_seconds
    assert json.loads((folder / "state.json").read_text())["seconds"] == again.fill_seconds
    np.testing.assert_array_equal(np.load(folder / "facts.npy"), expected)


def test_outputs_of_other_data_are_refused(tiny_batches, front, batches, tmp_path):
    with pytest.raises(UserError, match="choose another --front_end_dir"):
        FrontEndBatches(tiny_batches, front, tmp_path / "kept", {"recipe": "other"})


@pytest.mark.parametrize("changes", [{"targets": ["source_x", "log10_m_axion"]}, {"batch_size": 4}])
def test_targets_and_batches_of_the_same_shape_are_refused(
    tiny_folder, tiny_batches, front, batches, tmp_path, changes
):
    other = TrainingBatches(tiny_folder, dataclasses.replace(tiny_batches.spec, **changes))
    with pytest.raises(UserError, match="of another front end or of other data"):
        FrontEndBatches(other, front, tmp_path / "kept", {"recipe": "tiny"})


def test_digest_is_of_what_a_fit_computes_but_not_of_its_last_bits(tiny_folder, monkeypatch):
    def fit(rank=4):
        options = {"num_masses": 3, "num_angles": 4, "rank": rank, "steps": 1}
        spec = ModelSpec("none", {}, "spline", "nll", "lens_fit", options)
        targets = tiny_folder.parameters.select(["source_x"])
        start = keras.Sequential(
            [keras.Input((64, 64, 1)), keras.layers.Flatten(), keras.layers.Dense(2)], name="start"
        )
        recipe = get_recipe("model_ii_instrument")
        return split_at_fit(build_model(spec, recipe, targets, None, start))[0]

    keras.utils.set_random_seed(0)
    model = fit()
    digest = weights_digest(model)
    [layer] = [layer for layer in model.layers if isinstance(layer, LensFit)]
    layer.basis.assign(layer.basis * (1.0 + 1e-6))
    assert weights_digest(model) == digest
    keras.utils.set_random_seed(0)
    assert weights_digest(fit(rank=3)) != digest
    with monkeypatch.context() as patch:
        patch.setattr(front_end, "FIT_VERSION", -1)
        assert weights_digest(model) != digest
    bias = model.get_layer("start").layers[-1].bias
    bias.assign(bias + 1e-6)
    assert weights_digest(model) != digest


def _cut_short(folder):
    (folder / "state.json").write_text("{")


def _lose_an_array(folder):
    (folder / "facts.npy").unlink()


@pytest.mark.parametrize("damage", [_cut_short, _lose_an_array])
def test_damaged_folders_are_told(tiny_batches, front, batches, tmp_path, damage):
    del batches
    damage(tmp_path / "kept")
    with pytest.raises(UserError, match="kept is damaged: remove it"):
        FrontEndBatches(tiny_batches, front, tmp_path / "kept", {"recipe": "tiny"})


def test_predictor_is_the_model(front, tiny_validation, tiny_folder):
    images = tiny_validation.images[:12]
    targets = tiny_folder.parameters.select(["log10_m_axion", "source_x"])
    facts = make_predictor(front)(images)["facts"]
    np.testing.assert_allclose(facts, images.max(axis=(1, 2)), rtol=1e-6)
    # A model that fits lenses takes another road: pieces of 16, compiled.
    fit = {"num_masses": 3, "num_angles": 4, "rank": 4, "steps": 1}
    spec = ModelSpec("none", {}, "spline", "nll", "lens_fit", fit, head_options={"bins": 4})
    model = build_model(spec, get_recipe("model_ii_instrument"), targets, images)
    some = np.resize(images, (19, 64, 64, 1))
    expected = model(some)
    for name, values in make_predictor(model)(some).items():
        np.testing.assert_allclose(values, np.array(expected[name]), rtol=1e-3, atol=1e-3)
