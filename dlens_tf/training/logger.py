"""Where a training tells its progress: metrics.jsonl and TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf


class RunLogger:
    """Appends scalars to metrics.jsonl and writes TensorBoard summaries.

    Args:
      metrics_path: the metrics.jsonl.
      logs_dir: folder of TensorBoard's event files.
      resumed_step: lines of later steps, left by a run that was killed, are dropped.
    """

    def __init__(self, metrics_path: Path, logs_dir: Path, resumed_step: int):
        lines = metrics_path.read_text().splitlines() if metrics_path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= resumed_step]
        metrics_path.write_text("".join(f"{line}\n" for line in kept))
        self._metrics_path = metrics_path
        self._writers = {
            split: tf.summary.create_file_writer(str(logs_dir / split))
            for split in ("train", "validation")
        }

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars of "train" or "validation" at a step."""
        line = {"step": step, "split": split, **{k: float(v) for k, v in values.items()}}
        with self._metrics_path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        with self._writers[split].as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._writers[split].flush()

    def picture(self, split: str, step: int, name: str, png: bytes) -> None:
        """Writes a PNG picture."""
        image = tf.io.decode_png(png, channels=3)[tf.newaxis]
        with self._writers[split].as_default(step):
            tf.summary.image(name, image)
        self._writers[split].flush()

    def text(self, name: str, markdown: str) -> None:
        """Writes a text at step 0."""
        with self._writers["train"].as_default(0):
            tf.summary.text(name, markdown)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def finite(values: Mapping[str, float]) -> bool:
    """Whether all values are finite numbers."""
    return bool(np.all(np.isfinite(list(values.values()))))
