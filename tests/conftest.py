"""Environment and data that the whole suite shares."""

import os

# Before anything imports TensorFlow: no GPU, no chatter, no network.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_GCE_CHECK", "true")
os.environ.setdefault("MPLBACKEND", "Agg")

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny_data_dir(tmp_path_factory) -> Path:
    """A data_dir that holds deeplense/model_ii_instrument/1.0.0: 24 + 8 + 8 axion lenses."""
    from dlens_tf.pipeline.build import build_dataset

    data_dir = tmp_path_factory.mktemp("tiny_data")
    sizes = {"train": 24, "validation": 8, "test": 8}
    build_dataset("deeplense", "model_ii_instrument", data_dir, sizes=sizes, num_shards=2)
    return data_dir


@pytest.fixture(scope="session")
def run_tool():
    """Runs tools/<name>.py with flags as a user would; returns the finished process."""

    def run(tool: str, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
        )

    return run


@pytest.fixture(scope="session")
def write_run():
    """Writes a run folder with a small untrained model: write_run(folder, head="gaussian")."""

    def write(folder: Path, head: str = "gaussian") -> Path:
        import keras

        from dlens_tf.models import HEADS
        from dlens_tf.simulation.recipes import get_recipe

        recipe = get_recipe("model_ii_instrument")
        targets = recipe.class_parameters("axion").select(["log10_m_axion", "source_x"])
        keras.utils.set_random_seed(1)
        image = keras.Input((64, 64, 1))
        hidden = keras.layers.Conv2D(4, 8, strides=8, activation="relu")(image)
        hidden = keras.layers.Flatten()(hidden)
        loss = "mae" if head == "point" else "nll"
        outputs = HEADS[head].for_targets(targets, loss, name="head")
        model = keras.Model(image, outputs(hidden))
        # An untrained head answers with the prior; this one shall tell images apart.
        outputs.dense.kernel.assign(100.0 * outputs.dense.kernel)
        kernel = model.get_layer("head").dense.kernel
        kernel.assign(0.1 * keras.random.normal(kernel.shape, seed=2))  # answers that differ
        folder.mkdir(parents=True)
        model.save(folder / "model.keras")
        run = {
            "dataset": "deeplense",
            "config": "model_ii_instrument",
            "data_dir": "data",
            "dataset_version": "1.0.0",
            "classes": ["axion"],
            "targets": targets.to_dicts(),
            "image_shape": [64, 64, 1],
            "pixel_scale": 0.101,
            "instrument": "euclid_vis_2021",
            "recipe": "model_ii_instrument",
            "model": {"name": "stand-in"},
            "head": head,
            "seed": 1,
            "git_commit": "0" * 40,
            "dlens_tf_version": "0.1.0",
            "num_parameters": model.count_params(),
        }
        (folder / "run.json").write_text(json.dumps(run))
        return folder

    return write


@pytest.fixture(scope="session")
def exported_run(write_run, tmp_path_factory) -> Path:
    """A run folder with a Gaussian head, exported once: export/1. Not to be changed."""
    from dlens_tf.serving.export import export_run

    folder = write_run(tmp_path_factory.mktemp("exported") / "run")
    export_run(folder)
    return folder


@pytest.fixture(scope="session")
def evaluated_run(write_run, tiny_data_dir, tmp_path_factory) -> Path:
    """A run folder with a Gaussian head, evaluated on the tiny data set. Not to be changed."""
    from dlens_tf.evaluation.evaluate import evaluate_run

    run = write_run(tmp_path_factory.mktemp("evaluated") / "run")
    config = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**config, "data_dir": str(tiny_data_dir)}))
    flags = {"batch_size": 8, "data_dir": tiny_data_dir, "run_dir": run, "epochs": 2}
    (run / "flags.cfg").write_text("".join(f"--{k}={v}\n" for k, v in flags.items()))
    (run / "environment.json").write_text(json.dumps({"cpus": 2, "gpus": []}))
    metrics = [
        {"step": 3, "split": "train", "images_per_second": 0.4},  # a minute
        {"step": 3, "split": "validation", "mae/log10_m_axion": 0.6, "mae/source_x": 0.3},
        {"step": 6, "split": "train", "images_per_second": 0.1},  # four more
        {"step": 6, "split": "validation", "mae/log10_m_axion": 0.5, "mae/source_x": 0.2},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    evaluate_run(run)
    return run
