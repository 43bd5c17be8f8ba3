"""Searches: what is chosen, gone on with after an interruption or a kill, and refused."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from dlens_tf.errors import Interrupted, UserError
from dlens_tf.training import tuning
from dlens_tf.training.launch import RunOptions
from dlens_tf.training.run_folder import RunFolder, read_flags, write_json
from dlens_tf.training.search_space import Dimension
from dlens_tf.training.tuning import Search, best_score, tune

WIDTH = Dimension("width", (8, 16, 24, 32))
RATE = Dimension("rate", bounds=(1e-3, 1e-1), log=True)
POLAR = Dimension("polar", (True, False))


@pytest.fixture
def options_with(make_options) -> Callable[..., RunOptions]:
    """Runs with the flags width, rate, polar, epochs and run_dir."""

    def make(chosen) -> RunOptions:
        values = {"width": "8", "rate": "0.01", "polar": "false", "epochs": "9", **chosen}
        options = make_options(
            Path(values.get("run_dir", "nowhere")),
            plan={"epochs": int(values["epochs"]), "learning_rate": float(values["rate"])},
            flags={name: [value] for name, value in values.items()},
            harmless_flags=["run_dir"],
        )
        sizes = {"depth": 1, "stages": 2, "stem_stride": 4}
        polar = {"radii": 16} if values["polar"] == "true" else None
        model = {
            "backbone": "resnet",
            "options": {"width": int(values["width"]), **sizes},
            "head": "gaussian",
            "loss": "nll",
            "polar": polar,
        }
        return dataclasses.replace(options, model=model)

    return make


@pytest.fixture
def trained(monkeypatch) -> list[RunOptions]:
    """The trainings that were asked for; none is done, but a score is written.

    The score is best, 1, at width 24 and rate 0.03, and with more epochs.
    """
    runs: list[RunOptions] = []

    def pretend(options: RunOptions) -> Path:
        runs.append(options)
        width, rate = options.model["options"]["width"], options.plan["learning_rate"]
        run = RunFolder(options.run_dir)
        run.path.mkdir(parents=True, exist_ok=True)
        score = 1 + abs(width - 24) / 8 + abs(rate - 0.03) * 10 + 1 / options.plan["epochs"]
        lines = [
            {"step": 3, "split": "train", "nll": -9.0},
            {"step": 3, "split": "validation", "nll": score + 5.0},
            {"step": 6, "split": "validation", "nll": score},
        ]
        run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_json(run.config_path, {"head": "gaussian"})
        return run.path

    monkeypatch.setattr(tuning, "train_run", pretend)
    monkeypatch.setattr(
        RunFolder, "config", property(lambda self: json.loads(self.config_path.read_text()))
    )
    return runs


def _bayesian(trials: int = 8, space=(WIDTH, RATE)) -> Search:
    return Search(space, "bayesian", trials, 9, seed=1)


def test_bayesian_search(trained, options_with, monkeypatch, tmp_path):
    train, lines = tuning.train_run, []

    def fail_sometimes(options):
        train(options)
        if len(trained) in (2, 5):
            raise UserError("a bad choice")
        return RunFolder(options.run_dir).path

    monkeypatch.setattr(tuning, "train_run", fail_sometimes)
    trials = tune(_bayesian(), options_with, tmp_path / "tune", lines.append)
    assert len(trials) == len(trained) == 8
    assert all(options.plan["epochs"] == 9 for options in trained)
    assert all(1e-3 <= options.plan["learning_rate"] <= 1e-1 for options in trained)
    failed = [trial for trial in trials if trial.score is None]
    assert trials[-2:] == failed
    assert [(t.name, t.message) for t in failed] == [
        ("0001", "a bad choice"),
        ("0004", "a bad choice"),
    ]
    scores = [trial.score for trial in trials if trial.score is not None]
    assert scores == sorted(scores)
    best = trials[0]
    assert best.score == best_score(RunFolder(tmp_path / "tune" / "trials" / best.name))
    flags = read_flags(tmp_path / "tune" / "best.flags")
    expected = {"polar": ["false"], "epochs": ["9"]} | {n: [v] for n, v in best.flags.items()}
    assert flags == expected
    assert "trial 0001 failed: a bad choice" in lines
    assert lines[-1] == f"best of 8: trial {best.name}, {best.score:.4f}"


def test_hyperband_trains_the_best_for_longer(trained, options_with, tmp_path):
    trials = tune(Search([RATE], "hyperband", None, 9), options_with, tmp_path / "tune")
    epochs = [options.plan["epochs"] for options in trained]
    assert set(epochs) == {1, 3, 9}
    assert epochs.count(1) > epochs[: epochs.index(9)].count(3) > 1
    # The last round of the first bracket repeats the best of those before it.
    rates = {n: [o.plan["learning_rate"] for o in trained[: epochs.index(9) + 1]
                 if o.plan["epochs"] == n] for n in (1, 3, 9)}  # fmt: skip
    assert set(rates[9]) <= set(rates[3]) <= set(rates[1])
    assert rates[9] == [min(rates[1], key=lambda rate: abs(rate - 0.03))]
    assert trials[0].flags["epochs"] == "9"
    # The flags are for a full training.
    assert read_flags(tmp_path / "tune" / "best.flags")["epochs"] == ["9"]


@pytest.mark.parametrize("seed", [0, 7])
def test_same_seed_same_choices(trained, options_with, tmp_path, seed):
    for name in ("one", "two"):
        tune(dataclasses.replace(_bayesian(4), seed=seed), options_with, tmp_path / name)
    chosen = [dataclasses.replace(options, run_dir="", flags={}) for options in trained]
    assert chosen[:4] == chosen[4:]


def test_more_trials_go_on(trained, options_with, tmp_path):
    tune(_bayesian(3), options_with, tmp_path / "tune")
    assert len(tune(_bayesian(3), options_with, tmp_path / "tune")) == len(trained) == 3
    assert len(tune(_bayesian(5), options_with, tmp_path / "tune")) == len(trained) == 5


@pytest.mark.parametrize("algorithm", ["bayesian", "hyperband"])
def test_interrupted_search_goes_on_with_the_same_trial(
    trained, options_with, monkeypatch, tmp_path, algorithm
):
    search = Search([RATE], algorithm, 4, 9)
    train, interrupted = tuning.train_run, []

    def interrupt_once(options):
        if Path(options.run_dir).name == "0001" and not interrupted:
            interrupted.append(options)
            raise Interrupted
        return train(options)

    monkeypatch.setattr(tuning, "train_run", interrupt_once)
    with pytest.raises(Interrupted):
        tune(search, options_with, tmp_path / "tune")
    assert (tmp_path / "tune" / "best.flags").is_file()
    trials = tune(search, options_with, tmp_path / "tune")
    assert [options.run_dir for options in trained].count(interrupted[0].run_dir) == 1
    assert trained[1] == interrupted[0]
    names = [Path(options.run_dir).name for options in trained]
    assert names == ["0000", "0001", "0002", "0003"] and len(trials) == 4


def test_defect_in_a_trial_is_no_bad_choice(options_with, monkeypatch, tmp_path):
    def broken(options):
        raise ZeroDivisionError("defect")

    monkeypatch.setattr(tuning, "train_run", broken)
    with pytest.raises(ZeroDivisionError, match="defect"):
        tune(_bayesian(), options_with, tmp_path / "tune")


def test_trials_that_all_fail_end_the_search(options_with, monkeypatch, tmp_path):
    def fail(options):
        raise UserError("no data set")

    monkeypatch.setattr(tuning, "train_run", fail)
    with pytest.raises(UserError, match="three trials in a row failed, the last with: no data set"):
        tune(_bayesian(), options_with, tmp_path / "tune")


@pytest.mark.parametrize("at", ["trial.json", "oracle.json", "tuner0.json"])
def test_state_is_written_whole_or_not_at_all(trained, options_with, monkeypatch, tmp_path, at):
    """A kill while KerasTuner's state is written, at any of its files, loses nothing."""
    folder = tmp_path / "tune"
    replace, writes = os.replace, []

    class Killed(BaseException):
        pass

    def killing(source, target):
        if Path(target).name == at:
            writes.append(target)
            if len(writes) == 4:
                raise Killed
        replace(source, target)

    monkeypatch.setattr("dlens_tf.io.files.os.replace", killing)
    with pytest.raises(Killed):
        tune(_bayesian(6, [RATE]), options_with, folder)
    monkeypatch.setattr("dlens_tf.io.files.os.replace", replace)
    for path in folder.glob("tuner/**/*.json"):
        json.loads(path.read_text())
    before = {options.run_dir: options for options in trained}
    trials = tune(_bayesian(6, [RATE]), options_with, folder)
    assert len(trials) == 6
    for options in trained[len(before) :]:
        assert options == before.get(options.run_dir, options)


def test_hparams_page(trained, options_with, tmp_path):
    tune(_bayesian(2, [POLAR, RATE]), options_with, tmp_path / "tune")

    def content(folder: Path) -> metadata.plugin_data_pb2.HParamsPluginData:
        events = EventAccumulator(str(folder)).Reload()
        (found,) = events.summary_metadata.values()
        assert found.plugin_data.plugin_name == metadata.PLUGIN_NAME
        return metadata.plugin_data_pb2.HParamsPluginData.FromString(found.plugin_data.content)

    experiment = content(tmp_path / "tune" / "logs").experiment
    assert [info.name for info in experiment.hparam_infos] == ["polar", "rate"]
    names = {(info.name.group, info.name.tag) for info in experiment.metric_infos}
    tags = {"nll", "mae/log10_m_axion", "mae/source_x"}
    assert names == {("validation", tag) for tag in tags}
    for options in trained:
        started = content(Path(options.run_dir) / "logs").session_start_info
        assert started.hparams["rate"].number_value == options.plan["learning_rate"]
        assert started.hparams["polar"].bool_value == (options.model["polar"] is not None)


@pytest.mark.parametrize(
    ("search", "changes", "message"),
    [
        (Search([RATE], "bayesian", 2, 9, seed=1), {}, "with other --search"),
        (_bayesian(2), {"epochs": "3"}, "with other --epochs"),
        (dataclasses.replace(_bayesian(2), seed=2), {}, "with other --seed"),
        (dataclasses.replace(_bayesian(2), algorithm="hyperband"), {}, "with other --algorithm"),
    ],
)
def test_folder_of_another_search(trained, options_with, tmp_path, search, changes, message):
    tune(_bayesian(1), options_with, tmp_path)
    with pytest.raises(UserError, match=f"{message}; choose another --tune_dir") as info:
        tune(search, lambda chosen: options_with({**changes, **chosen}), tmp_path)
    assert "\n" not in str(info.value)


def test_folder_of_something_else(trained, options_with, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="exists and holds no search"):
            tune(_bayesian(), options_with, folder)
    with pytest.raises(UserError, match="can't make"):
        tune(_bayesian(), options_with, tmp_path / "notes.txt" / "tune")
    (tmp_path / "tune.json").write_text("{")
    with pytest.raises(UserError, match=r"tune\.json is damaged"):
        tune(_bayesian(), options_with, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "annealing"}, "unknown algorithm 'annealing'; valid: hyperband, bayesian"),
        ({"space": [Dimension("epochs", (1, 2))]}, "hyperband chooses epochs itself"),
        ({"algorithm": "bayesian"}, "--algorithm=bayesian needs --trials"),
    ],
)
def test_searches_that_there_are_not(changes, message):
    with pytest.raises(UserError, match=message):
        Search(
            **{"space": [RATE], "algorithm": "hyperband", "trials": None, "epochs": 9, **changes}
        )


def test_heads_do_not_compare(options_with, tmp_path):
    def make(chosen):
        options = options_with(chosen)
        head = chosen.get("head", "gaussian")
        return dataclasses.replace(options, model={**options.model, "head": head})

    search = _bayesian(space=[Dimension("head", ("gaussian", "point"))])
    with pytest.raises(UserError, match="scores do not compare"):
        tune(search, make, tmp_path / "tune")
    assert not (tmp_path / "tune").exists()
