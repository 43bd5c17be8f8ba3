"""A run folder small enough to evaluate in a second."""

import json
import types

import pytest


@pytest.fixture
def make_run(tmp_path, tiny_data_dir):
    """Makes a run folder with an untrained model: `make_run(head="gaussian", **run_json)`."""

    def make(head: str = "gaussian", **changes) -> types.SimpleNamespace:
        import keras

        from dlens_tf.models import HEADS
        from dlens_tf.simulation.recipes import get_recipe

        recipe = get_recipe("model_ii_instrument")
        targets = recipe.class_parameters("axion").select(["log10_m_axion", "source_x"])
        loss = "nll" if head == "gaussian" else "mae"
        image = keras.Input(recipe.image_shape, name="image")
        features = keras.layers.Flatten()(keras.layers.AveragePooling2D(16)(image))
        keras.utils.set_random_seed(0)
        outputs = HEADS[head].for_targets(targets, loss, name="head")(features)
        model = keras.Model(image, outputs)
        path = tmp_path / "a_run"
        path.mkdir()
        model.save(path / "model.keras")
        config = {
            "dataset": "deeplense",
            "config": "model_ii_instrument",
            "data_dir": str(tiny_data_dir),
            "dataset_version": "1.0.0",
            "classes": ["axion"],
            "targets": targets.to_dicts(),
            "image_shape": list(recipe.image_shape),
            "pixel_scale": 0.101,
            "instrument": "euclid_vis_2021",
            "recipe": "model_ii_instrument",
            "model": {"backbone": "resnet", "front_end": "flux", "options": {}},
            "head": head,
            "seed": 0,
            "git_commit": None,
            "dlens_tf_version": "0.1.0",
            "num_parameters": model.count_params(),
            **changes,
        }
        (path / "run.json").write_text(json.dumps(config))
        return types.SimpleNamespace(path=path, model=model, targets=targets)

    return make
