"""A tiny model and its trainer, runs of the tiny data set, and what to compare in them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tqdm import tqdm

from dlens_tf.models.heads import GaussianHead
from dlens_tf.pipeline import reading
from dlens_tf.pipeline.batches import BatchSpec, TrainingBatches, load_arrays
from dlens_tf.training import trainer as trainer_module
from dlens_tf.training.launch import RunOptions, train_run
from dlens_tf.training.run_folder import RunFolder
from dlens_tf.training.trainer import Trainer, TrainingPlan

TARGETS = ["log10_m_axion", "source_x"]


@pytest.fixture(scope="session")
def tiny_folder(tiny_data_dir):
    return reading.open_dataset("deeplense", "model_ii_instrument", tiny_data_dir)


@pytest.fixture(scope="session")
def tiny_batches(tiny_folder) -> TrainingBatches:
    """Three batches of 8 an epoch, turned by half turns."""
    return TrainingBatches(
        tiny_folder, BatchSpec(TARGETS, batch_size=8, seed=3, augmentation="rot180")
    )


@pytest.fixture(scope="session")
def tiny_validation(tiny_folder):
    return load_arrays(tiny_folder, "validation", [*TARGETS, "source_y"])


@pytest.fixture
def make_trainer(tiny_folder, tiny_batches, tiny_validation) -> Callable[..., Trainer]:
    """make_trainer(folder, dropout=0.0, batches=tiny_batches, model=None, **plan).

    Trains a two-layer model on images averaged to 4 × 4 pixels; 12 steps in 4 epochs.
    """
    targets = tiny_folder.parameters.select(TARGETS)

    def make(folder: Path, *, dropout=0.0, batches=None, make_model=None, **plan) -> Trainer:
        def two_layers() -> keras.Model:
            image = keras.Input((64, 64, 1))
            x = keras.layers.AveragePooling2D(16)(image)
            x = keras.layers.Rescaling(1e-2)(keras.layers.Flatten()(x))
            x = keras.layers.Dense(8, activation="tanh")(x)
            x = keras.layers.Dropout(dropout)(x)
            return keras.Model(image, GaussianHead.for_targets(targets, "nll", name="head")(x))

        keras.utils.set_random_seed(4)
        folder.mkdir(parents=True, exist_ok=True)
        return Trainer(
            RunFolder(folder),
            tf.distribute.get_strategy(),
            make_model or two_layers,
            batches or tiny_batches,
            tiny_validation,
            targets,
            TrainingPlan(**{"epochs": 4, "log_every": 2, **plan}),
        )

    return make


@pytest.fixture
def at_step(monkeypatch) -> Callable[[Callable[[int], Any]], None]:
    """at_step(hook): calls hook(step) after each training step."""

    def install(hook: Callable[[int], Any]) -> None:
        """Replaces an earlier hook."""

        class Bar(tqdm):
            def update(self, n=1):
                super().update(n)
                # A disabled bar doesn't count.
                self.steps_done = getattr(self, "steps_done", self.initial) + n
                hook(self.steps_done)

        monkeypatch.setattr(trainer_module, "tqdm", Bar)

    return install


@pytest.fixture(scope="session")
def make_options(tiny_data_dir) -> Callable[..., RunOptions]:
    """make_options(run_dir, **changes): a run of a tiny CNN, 6 steps in 2 epochs."""

    def make(run_dir: Path, **changes) -> RunOptions:
        options = RunOptions(
            dataset="deeplense",
            config="model_ii_instrument",
            data_dir=str(tiny_data_dir),
            run_dir=str(run_dir),
            targets=TARGETS,
            classes=[],
            batch_size=8,
            augmentation="auto",
            cache="memory",
            max_validation=100,
            seed=0,
            strategy="one_device",
            logical_devices=1,
            deterministic=False,
            model={
                "backbone": "resnet",
                "options": {"width": 8, "depth": 1, "stages": 2, "stem_stride": 4},
            },
            plan={"epochs": 2, "clip_norm": 0.01, "log_every": 2},
            flags={"batch_size": ["8"], "seed": ["0"], "log_every": ["2"]},
            harmless_flags=["log_every"],
        )
        return dataclasses.replace(options, **changes)

    return make


@pytest.fixture(scope="session")
def finished_run(make_options, tmp_path_factory) -> RunFolder:
    """A run of `make_options`, done. Not to be changed."""
    return RunFolder(train_run(make_options(tmp_path_factory.mktemp("runs") / "finished")))


@pytest.fixture(scope="session")
def read_metrics() -> Callable[[Path], list[dict[str, float]]]:
    """Lines of a run's metrics.jsonl, without what depends on the clock."""

    def read(folder: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("images_per_second", None)
        return lines

    return read


@pytest.fixture(scope="session")
def read_checkpoint() -> Callable[[Path], dict[str, np.ndarray]]:
    """All numbers of a run's last checkpoint by name: weights, averages, optimizer, state."""

    def read(folder: Path) -> dict[str, np.ndarray]:
        checkpoint = tf.train.load_checkpoint(str(folder / "checkpoints"))
        return {
            name.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): checkpoint.get_tensor(name)
            for name in checkpoint.get_variable_to_shape_map()
            if name.endswith("VARIABLE_VALUE") and not name.startswith("save_counter")
        }

    return read


@pytest.fixture(scope="session")
def assert_same_run(read_metrics, read_checkpoint) -> Callable[..., None]:
    """assert_same_run(folder, other): same lines of metrics and same last checkpoint."""

    def check(folder: Path, other: Path, tolerance: float = 1e-6) -> None:
        for line, line_of_other in zip(read_metrics(folder), read_metrics(other), strict=True):
            assert line.pop("split") == line_of_other.pop("split")
            assert line == pytest.approx(line_of_other, rel=tolerance, abs=tolerance)
        values, values_of_other = read_checkpoint(folder), read_checkpoint(other)
        assert values.keys() == values_of_other.keys()
        for name, value in values.items():
            np.testing.assert_allclose(
                value, values_of_other[name], rtol=tolerance, atol=tolerance, err_msg=name
            )

    return check
