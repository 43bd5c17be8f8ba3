"""Searching for good flags: KerasTuner chooses them, the trainer of this package tries them.

A search is a folder:

    best.flags  a flagfile for tools/train.py: the flags of the best trial so far
    tune.json   what is searched, and how
    trials/     the run folder of each trial, as any other
    logs/       what TensorBoard's HParams page needs to know of the search
    tuner/      KerasTuner's own state

Everything that the next trial depends on is in the folder, so a search that was stopped or
killed goes on with the same command, in the middle of a trial too.
"""

import contextlib
import dataclasses
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import tensorflow as tf
from keras_tuner.engine import base_tuner
from keras_tuner.src import config as tuner_config
from tensorboard.plugins.hparams import api as hparams

from dlens_tf.errors import UserError, choose
from dlens_tf.io.files import atomic_write
from dlens_tf.models.heads import HEADS
from dlens_tf.training.launch import RunOptions, train_run
from dlens_tf.training.run_folder import RunFolder, write_flags, write_json
from dlens_tf.training.search_space import (
    Dimension,
    MakeOptions,
    check_space,
    flag_text,
    representatives,
)

ALGORITHMS = ("hyperband", "bayesian")
"""hyperband: many short trainings, of which the best are done again, longer.
bayesian: trainings of full length; a Gaussian process says where to look next.

Reference: Li et al. 2018, arXiv:1603.06560 (hyperband); Snoek et al. 2012, arXiv:1206.2944.
"""


@dataclasses.dataclass(frozen=True)
class Search:
    """What to search and how.

    Attributes:
      space: the flags to choose.
      algorithm: one of `ALGORITHMS`.
      trials: trials at most; None for one sweep of Hyperband. A search may go on with more.
      epochs: of a full training.
      seed: of the choices.
    """

    space: Sequence[Dimension]
    algorithm: str
    trials: int | None
    epochs: int
    seed: int = 0

    def __post_init__(self):
        choose("algorithm", self.algorithm, ALGORITHMS)
        if self.algorithm == "hyperband" and "epochs" in self.names:
            raise UserError("hyperband chooses epochs itself, up to --epochs; don't search them")
        if self.algorithm == "bayesian" and self.trials is None:
            raise UserError("--algorithm=bayesian needs --trials")

    @property
    def names(self) -> list[str]:
        return [dimension.name for dimension in self.space]


@dataclasses.dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
      name: of its run folder.
      score: best validation score; None if it failed.
      flags: the flags chosen for it, as text.
      message: why it failed; None if it did not.
    """

    name: str
    score: float | None
    flags: Mapping[str, str]
    message: str | None


def tune(
    search: Search,
    make_options: MakeOptions,
    tune_dir: str | Path,
    report: Callable[[str], None] = print,
) -> list[Trial]:
    """Runs a search, or goes on with it.

    Args:
      search: what to search.
      make_options: gives the run of chosen flags; "run_dir" and "epochs" are among them.
      tune_dir: the search's folder.
      report: takes lines of progress.

    Returns:
      The finished trials, best first, failed ones last.

    Raises:
      UserError: for anything that the user can mend.
      Interrupted: after Ctrl-C, with the trial's checkpoint saved.
    """
    check_space(search.space, make_options)
    _check_scores(search, make_options)
    tuner_config.DEBUG = False  # otherwise it prints the traceback of a trial that fails
    tune_dir = Path(tune_dir)
    base = make_options({})
    _open_folder(tune_dir, search, base)
    _describe_search(tune_dir, search, base)
    with contextlib.redirect_stdout(io.StringIO()):  # KerasTuner says that it reloads
        tuner = _RunTuner(search, make_options, tune_dir, report)
    try:
        with warnings.catch_warnings():
            # Of fits of the Gaussian process that did not converge; the next trial is one anyhow.
            warnings.filterwarnings("ignore", module="sklearn")
            tuner.search()
    except keras_tuner.errors.FatalError as error:
        raise error.__cause__ from None
    except RuntimeError as error:
        if tuner.failure is None:
            raise
        raise UserError(
            f"three trials in a row failed, the last with: {tuner.failure}; mend the flags or the "
            "search, and use another --tune_dir"
        ) from error
    return tuner.finished()


def _check_scores(search: Search, make_options: MakeOptions) -> None:
    """Raises a `UserError` if the scores of a search's trials do not compare."""
    runs = [o for run in representatives(search.space, make_options) for o in run.values()]
    models = [options.model for pair in runs for options in pair]
    scores = {HEADS[model["head"]].score_name for model in models}
    if len(scores) > 1 or (scores == {"loss"} and len({model["loss"] for model in models}) > 1):
        raise UserError(
            "the search is over heads or losses whose validation scores do not compare; leave them "
            "out of --search"
        )


def _open_folder(tune_dir: Path, search: Search, base: RunOptions) -> None:
    """Makes the search's folder, or checks that it is this search's.

    Raises:
      UserError: if it can't be made, or is of something else.
    """
    passing = {*base.harmless_flags, *search.names}
    definition = {
        "search": [dataclasses.asdict(dimension) for dimension in search.space],
        "algorithm": search.algorithm,
        "seed": search.seed,
        "flags": {n: list(values) for n, values in base.flags.items() if n not in passing},
    }
    path = tune_dir / "tune.json"
    if not path.is_file():
        if tune_dir.exists() and not (tune_dir.is_dir() and not any(tune_dir.iterdir())):
            raise UserError(f"{tune_dir} exists and holds no search; choose another --tune_dir")
        try:
            tune_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't make {tune_dir}: {error.strerror}") from error
        write_json(path, definition)
        return
    definition = json.loads(json.dumps(definition))  # tuples become lists, as in the file
    try:
        recorded = json.loads(path.read_text())
        keys = ("search", "algorithm", "seed")
        different = [f"--{key}" for key in keys if recorded[key] != definition[key]]
        if not different:
            before, now = recorded["flags"], definition["flags"]
            names = sorted({*before, *now})
            different = [f"--{name}" for name in names if before.get(name) != now.get(name)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; choose another --tune_dir") from error
    if different:
        raise UserError(
            f"{tune_dir} is of a search with other {', '.join(different)}; choose another "
            "--tune_dir"
        )


def _describe_search(tune_dir: Path, search: Search, base: RunOptions) -> None:
    """Tells TensorBoard's HParams page, once, what is searched and measured."""
    logs = tune_dir / "logs"
    if logs.is_dir():
        return

    def domain(dimension: Dimension):
        if dimension.values:
            return hparams.Discrete(list(dimension.values))
        interval = hparams.IntInterval if dimension.is_whole else hparams.RealInterval
        return interval(*dimension.bounds)

    tags = [HEADS[base.model["head"]].score_name, *(f"mae/{name}" for name in base.targets)]
    with tf.summary.create_file_writer(str(logs)).as_default():
        hparams.hparams_config(
            hparams=[hparams.HParam(d.name, domain(d)) for d in search.space],
            metrics=[hparams.Metric(tag, group="validation", display_name=tag) for tag in tags],
        )


def best_score(run: RunFolder) -> float:
    """The lowest validation score of a run."""
    name = HEADS[run.config["head"]].score_name
    lines = map(json.loads, run.metrics_path.read_text().splitlines())
    return min(line[name] for line in lines if line["split"] == "validation")


def _write_state(path: str | Path, stateful: Any) -> None:
    """Writes the state of an object of KerasTuner, all of it or nothing."""
    with atomic_write(Path(path)) as partial:
        partial.write_text(json.dumps(stateful.get_state()))


class _WholeFiles:
    """Mix-in of an oracle: what it leaves behind when it is killed can be gone on with."""

    def save(self):
        _write_state(self._get_oracle_fname(), self)

    def _save_trial(self, trial):
        _write_state(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", trial)

    def reload(self):
        super().reload()
        # A trial that was written before the oracle was is chosen once more.
        self.trials = {name: self.trials[name] for name in self.start_order}
        # KerasTuner counts a trial as ongoing for a moment after it has ended.
        self._retry_queue = [name for name in self._retry_queue if name not in self.end_order]


class _HyperbandOracle(_WholeFiles, keras_tuner.oracles.HyperbandOracle):
    pass


class _BayesianOracle(_WholeFiles, keras_tuner.oracles.BayesianOptimizationOracle):
    pass


def _make_oracle(search: Search) -> keras_tuner.Oracle:
    space = keras_tuner.HyperParameters()
    for dimension in search.space:
        if dimension.values:
            space.Choice(dimension.name, list(dimension.values))
        else:
            add = space.Int if dimension.is_whole else space.Float
            scale = "log" if dimension.log else "linear"
            add(dimension.name, *dimension.bounds, sampling=scale)
    common = {
        "objective": keras_tuner.Objective("score", "min"),
        "hyperparameters": space,
        "seed": search.seed + 1,  # 0 would be drawn at random
        "allow_new_entries": False,
    }
    if search.algorithm == "bayesian":
        return _BayesianOracle(max_trials=search.trials, **common)
    oracle = _HyperbandOracle(max_epochs=search.epochs, **common)
    oracle.max_trials = search.trials
    return oracle


class _RunTuner(base_tuner.BaseTuner):
    """KerasTuner's loop over trials, each of which is a run.

    Attributes:
      failure: why the last trial failed; None if it did not.
    """

    def __init__(self, search: Search, make_options: MakeOptions, tune_dir: Path, report):
        self._search = search
        self._make_options = make_options
        self._tune_dir = tune_dir
        self._report = report
        self.failure: str | None = None
        super().__init__(_make_oracle(search), directory=str(tune_dir), project_name="tuner")
        self.oracle.verbose = 0

    def save(self):
        self.oracle.save()
        _write_state(self._get_tuner_fname(), self)

    def _run(self, trial) -> RunFolder:
        return RunFolder(self._tune_dir / "trials" / f"{int(trial.trial_id):04d}")

    def _values(self, trial) -> dict[str, Any]:
        return {name: trial.hyperparameters.values[name] for name in self._search.names}

    def _flags(self, trial) -> dict[str, str]:
        flags = {name: flag_text(value) for name, value in self._values(trial).items()}
        if self._search.algorithm == "hyperband":
            flags["epochs"] = str(trial.hyperparameters.values["tuner/epochs"])
        return flags

    def on_search_begin(self):
        self.save()  # KerasTuner reloads only what has been saved once

    def on_trial_begin(self, trial):
        flags = " ".join(f"--{name}={value}" for name, value in self._flags(trial).items())
        self._report(f"trial {self._run(trial).path.name}: {flags}")

    def run_trial(self, trial) -> dict[str, float]:
        keras.backend.clear_session()
        run = self._run(trial)
        self.failure = None
        try:
            options = self._make_options({**self._flags(trial), "run_dir": str(run.path)})
            train_run(options)
            with tf.summary.create_file_writer(str(run.logs_dir)).as_default():
                hparams.hparams(self._values(trial), trial_id=run.path.name)
            return {"score": best_score(run)}
        except UserError as error:
            self.failure = str(error)
            raise keras_tuner.errors.FailedTrialError(self.failure) from error
        except Exception as error:  # KerasTuner would take a defect for a bad choice
            raise keras_tuner.errors.FatalError from error

    def on_trial_end(self, trial):
        super().on_trial_end(trial)
        if self.failure is not None:
            self._report(f"trial {self._run(trial).path.name} failed: {self.failure}")
            return
        best = self.finished()[0]
        self._report(f"best of {len(self.oracle.end_order)}: trial {best.name}, {best.score:.4f}")
        self._keep_best()

    def on_search_end(self):
        self._keep_best()  # a kill may have come between a trial's end and this

    def _keep_best(self) -> None:
        """Writes the flags of the best trial, if there is one."""
        best = next(iter(self.finished()), None)
        if best is None or best.score is None:
            return
        # Of a trial of Hyperband the epochs are left out: the flags are for a full training.
        chosen = {name: best.flags[name] for name in self._search.names}
        flags = self._make_options(chosen).flags
        kept = {name: values for name, values in flags.items() if name != "run_dir"}
        write_flags(self._tune_dir / "best.flags", kept)

    def finished(self) -> list[Trial]:
        """Finished trials, best first, failed ones last."""
        trials = [
            Trial(self._run(t).path.name, t.score, self._flags(t), _reason(t.message))
            for t in map(self.oracle.get_trial, self.oracle.end_order)
        ]
        return sorted(trials, key=lambda t: math.inf if t.score is None else t.score)


def _reason(message: str | None) -> str | None:
    """What failed: the last line of the traceback that KerasTuner keeps."""
    return None if message is None else message.strip().splitlines()[-1].partition(": ")[2]
