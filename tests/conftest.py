"""Environment and data that the whole suite shares."""

import os

# Before anything imports TensorFlow: no GPU, no chatter, no network.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_GCE_CHECK", "true")
os.environ.setdefault("MPLBACKEND", "Agg")

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
