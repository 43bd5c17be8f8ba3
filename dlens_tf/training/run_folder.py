"""A run's folder, which tells the run's whole story.

    flags.cfg         a flagfile that repeats the run
    run.json          data set, targets, model: what evaluation and export need
    environment.json  versions, machine, git commit
    checkpoints/      of the training, to resume it
    logs/             TensorBoard
    metrics.jsonl     one line per log interval and validation
    model.keras       the best model so far, with averaged weights
    front_end/        kept outputs of the front end, with --cache=front_end
    evaluation/       written by tools/evaluate.py
    recalibration.json  likewise, with --recalibrate
    out_of_distribution.npz  likewise, see `inference.out_of_distribution`
    export/           written by tools/export.py

The rest is written by tools/train.py.
"""

import functools
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlens_tf import __version__
from dlens_tf.commands import command_line
from dlens_tf.errors import UserError
from dlens_tf.io.files import atomic_write, file_checksum
from dlens_tf.parameters import ParameterSet

CONFIG_KEYS = (
    "dataset", "config", "data_dir", "dataset_version", "classes", "targets", "image_shape",
    "pixel_scale", "instrument", "recipe", "model", "head", "seed", "git_commit",
    "dlens_tf_version", "num_parameters",
)  # fmt: skip
"""What run.json holds at least."""


class RunFolder:
    """Paths and contents of a run's folder."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Opens an existing run; raises a `UserError` if `path` isn't one."""
        run = cls(path)
        if not run.config_path.is_file():
            raise UserError(f"{path} is not a run folder (it has no run.json); see tools/train.py")
        run.config  # noqa: B018 (raises if it is damaged)
        return run

    config_path = property(lambda self: self.path / "run.json")
    flags_path = property(lambda self: self.path / "flags.cfg")
    environment_path = property(lambda self: self.path / "environment.json")
    checkpoints_dir = property(lambda self: self.path / "checkpoints")
    logs_dir = property(lambda self: self.path / "logs")
    metrics_path = property(lambda self: self.path / "metrics.jsonl")
    model_path = property(lambda self: self.path / "model.keras")
    recalibration_path = property(lambda self: self.path / "recalibration.json")
    detector_path = property(lambda self: self.path / "out_of_distribution.npz")
    evaluation_dir = property(lambda self: self.path / "evaluation")
    export_dir = property(lambda self: self.path / "export")

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """Contents of run.json; raises a `UserError` if it is damaged."""
        try:
            config = json.loads(self.config_path.read_text())
            missing = [key for key in CONFIG_KEYS if key not in config]
            if missing or not isinstance(config["model"], dict):
                raise KeyError(*missing)
            ParameterSet.from_dicts(config["targets"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.config_path} is damaged: train again in another --run_dir"
            ) from error
        return config

    @property
    def targets(self) -> ParameterSet:
        """The inferred parameters, in the order of the model's outputs."""
        return ParameterSet.from_dicts(self.config["targets"])

    def learned_from_others(self, galaxies: str | None) -> bool:
        """Whether the run's data set was made from another catalogue than this `content_id`.

        Each catalogue has its own split. What has no galaxies, or is of an older version, says
        nothing of them.
        """
        own = self.config.get("dataset_galaxies")
        return None not in (own, galaxies) and own != galaxies

    @property
    def cache(self) -> str | None:
        """Of `launch.RunOptions`; of older runs what their flags say, None if nothing does."""
        if "cache" in self.config or not self.flags_path.is_file():
            return self.config.get("cache")
        return read_flags(self.flags_path).get("cache", [None])[0]

    def read_evaluation(self, allow_part: bool = False) -> dict[str, Any]:
        """Contents of evaluation/test.json.

        Args:
          allow_part: accept an evaluation on a part of the test split.

        Raises:
          UserError: if the run is not evaluated on the whole test split, or not its present model
            with its present recalibration.
        """
        path = self.evaluation_dir / "test.json"
        remedy = f"run {command_line('evaluate', run_dir=self.path)}"
        try:
            evaluation = json.loads(path.read_text(encoding="utf-8"))
            is_whole = evaluation["num_examples"] == evaluation["num_available"]
            checksum = evaluation["run"]["model_sha256"]
            has_recalibration = self._has_recalibration(evaluation["recalibration"], path)
        except FileNotFoundError as error:
            raise UserError(f"{self.path} is not evaluated yet; {remedy}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged or of an older version; {remedy}") from error
        if not is_whole and not allow_part:
            raise UserError(f"{path} is of a part of the test split only; {remedy}")
        if not self.model_path.is_file() or file_checksum(self.model_path) != checksum:
            raise UserError(f"{path} is of another model than {self.model_path}; {remedy}")
        if not has_recalibration:
            raise UserError(f"{path} and {self.recalibration_path} don't belong together; {remedy}")
        return evaluation

    def _has_recalibration(self, told: Mapping[str, Any] | None, evaluation: Path) -> bool:
        """Whether the run's recalibration is the one that an evaluation tells of; both may be none.

        Evaluations of earlier versions lack its checksum: they must be younger than its file.
        """
        path = self.recalibration_path
        if told is None or not path.is_file():
            return told is None and not path.is_file()
        if "sha256" in told:
            return told["sha256"] == file_checksum(path)
        return evaluation.stat().st_mtime > path.stat().st_mtime

    def load_model(self):
        """The best model of the run, a `keras.Model`.

        Raises:
          UserError: if training has not written one yet, or it can't be loaded.
        """
        import keras

        import dlens_tf.models  # noqa: F401 (registers the layers)

        if not self.model_path.is_file():
            raise UserError(f"{self.path} has no model.keras yet; let the training validate once")
        try:
            return keras.models.load_model(self.model_path, compile=False)
        except Exception as error:  # damage shows in many ways inside Keras
            raise UserError(
                f"{self.model_path} is damaged, or of another version of dlens_tf; train again in "
                "another --run_dir"
            ) from error


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under a temporary name, then renames."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_flags(path: Path, flags: Mapping[str, Sequence[str]]) -> None:
    """Writes a flagfile: name to values, several of a repeatable flag."""
    lines = [f"--{name}={value}\n" for name, values in flags.items() for value in values]
    with atomic_write(path) as partial:
        partial.write_text("".join(lines))


def read_flags(path: Path) -> dict[str, list[str]]:
    """The inverse of `write_flags`; raises a `UserError` if the file is damaged."""
    flags: dict[str, list[str]] = {}
    try:
        for line in path.read_text().splitlines():
            name, value = line.removeprefix("--").split("=", 1)
            flags.setdefault(name, []).append(value)
    except ValueError as error:
        raise UserError(f"{path} is damaged: choose another --run_dir") from error
    return flags


def portable_flags(flags: Mapping[str, Sequence[str]], run_dir: str) -> dict[str, list[str]]:
    """A run's flags for another machine: without paths of this one.

    Args:
      flags: as `read_flags` gives them.
      run_dir: takes the place of --run_dir; other absolute paths become `runs/<last part>`,
        --data_dir becomes `data`, and --galaxies `<catalogue …>`.
    """

    def portable(name: str, value: str) -> str:
        if name == "run_dir":
            return run_dir
        if name == "data_dir":
            return "data"
        if name == "galaxies":
            # A catalogue is not what a run makes.
            return f"<catalogue {Path(value).name}>"
        return f"runs/{Path(value).name}" if os.path.isabs(value) else value

    return {name: [portable(name, v) for v in values] for name, values in flags.items()}


def git_commit() -> str | None:
    """Commit of the checkout that holds this package, with "+changes" if it is not clean."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    if not (root / "setup.py").is_file():
        return None
    try:
        changes = "+changes" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", "HEAD") + changes
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> dict[str, Any]:
    """Versions, machine and git commit, JSON-ready."""
    from importlib import metadata

    packages = ["tensorflow", "keras", "keras-cv", "tensorflow-datasets", "lenstronomy", "numpy"]
    return {
        "dlens_tf": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        **{package: metadata.version(package) for package in packages},
    }
