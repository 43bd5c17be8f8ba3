"""Where a training tells its progress: metrics.jsonl and TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from dlens_tf.errors import UserError
from dlens_tf.io.files import atomic_write


class RunLogger:
    """Appends scalars to metrics.jsonl and writes TensorBoard summaries.

    Args:
      metrics_path: the metrics.jsonl.
      logs_dir: folder of TensorBoard's event files.
      resumed_step: lines of later steps, left by a run that was killed, are dropped.

    Raises:
      UserError: if metrics.jsonl can't be read or written.
    """

    def __init__(self, metrics_path: Path, logs_dir: Path, resumed_step: int):
        if metrics_path.exists():
            with atomic_write(metrics_path) as partial:
                partial.write_text("".join(_lines_until(metrics_path, resumed_step)))
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

    def close(self) -> None:
        """Writes out what is still buffered."""
        for writer in self._writers.values():
            writer.close()


def finite(values: Mapping[str, float]) -> bool:
    """Whether all values are finite numbers."""
    return bool(np.all(np.isfinite(list(values.values()))))


def _lines_until(metrics_path: Path, last_step: int) -> list[str]:
    """Lines of metrics.jsonl up to a step; a last line cut off by a crash is left out."""
    kept = []
    lines = metrics_path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            step = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise UserError(
                f"{metrics_path} is damaged at line {number}: mend or remove it"
            ) from error
        if step <= last_step:
            kept.append(line)
    return kept
