"""From an evaluated run to a ready-to-use model."""

import json
import os
import re
import shutil

import keras
import numpy as np
import pytest

from dlens_tf import hub
from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import versions
from dlens_tf.inference.predictor import Predictor
from dlens_tf.serving import publish
from dlens_tf.serving.publish import models_table, publish_run
from dlens_tf.training.run_folder import RunFolder

README = "# Models\n\n<!-- table of models -->\nold\n<!-- end of the table -->\n\nEnd.\n"


@pytest.fixture(scope="module")
def published(evaluated_run, tmp_path_factory):
    """A folder of models with one of them, `tiny`. Not to be changed."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "README.md").write_text(README)
    assert publish_run(evaluated_run, "tiny", folder) == folder / "tiny"
    return folder


def test_layout(published, evaluated_run):
    model = published / "tiny"
    files = {p.relative_to(model).as_posix() for p in model.glob("*")}
    plots = {name for name in files if name.endswith(".png")}
    assert files - plots == {
        "1", "README.md", "SHA256SUMS", "evaluation.json", "flags.cfg", "model.keras",
    }  # fmt: skip
    assert {"log10_m_axion_scatter.png", "source_x_scatter.png"} <= plots
    hub.verify_checksums(model)
    assert (model / "model.keras").read_bytes() == (evaluated_run / "model.keras").read_bytes()
    assert sorted(p.name for p in published.iterdir()) == ["README.md", "tiny"]


def test_published_model_answers_as_the_weights(published):
    images = np.random.default_rng(0).normal(size=(3, 64, 64, 1)).astype(np.float32)
    posterior = Predictor.load(published / "tiny").predict(images)
    expected = keras.models.load_model(published / "tiny" / "model.keras")(images)
    np.testing.assert_allclose(posterior.mean, expected["mean"], rtol=1e-5, atol=1e-6)


def test_card_says_what_was_measured(published, evaluated_run):
    card = (published / "tiny" / "README.md").read_text()
    evaluation = json.loads((evaluated_run / "evaluation" / "test.json").read_text())
    for name in ("log10_m_axion", "source_x"):
        mae = evaluation["parameters"][name]["metrics"]["mae"]["value"]
        section = card.split(f"### {name}")[1]
        [shown] = re.findall(r"\| \*\*this model\*\* \| \*\*(\S+) ± ", section.split("###")[0])
        assert float(shown) == pytest.approx(mae, rel=0.1)
        for part in evaluation["parameters"][name]["by_snr"]:
            assert f"| {part['low']:.0f} … {part['high']:.0f} | {part['count']} |" in section
    assert "On 8 test images" in card
    assert "6 steps, 48 images seen, 5 minutes on 2 CPU cores" in card
    assert "It knows one lens." in card
    assert 'dlens_tf.load("tiny")' in card
    for note in evaluation["notes"]:
        assert note in card
    for file in re.findall(r"\]\(([^)]+)\)", card):
        assert (published / "tiny" / file).is_file()


def test_card_and_flags_repeat_the_run_on_another_machine(published, evaluated_run, tiny_data_dir):
    model = published / "tiny"
    card = (model / "README.md").read_text()
    assert "    python tools/train.py --flagfile=saved_models/tiny/flags.cfg\n" in card
    assert " --config=model_ii_instrument --data_dir=data --num_examples=24 --num_valid" in card
    assert " --num_test=8 --seed=0\n" in card
    flags = (model / "flags.cfg").read_text().splitlines()
    assert set(flags) == {
        "--batch_size=8", "--data_dir=data", "--run_dir=runs/tiny", "--epochs=2",
    }  # fmt: skip
    for path in (p for p in model.rglob("*") if p.is_file()):
        for machine in (evaluated_run, tiny_data_dir):
            assert str(machine).encode() not in path.read_bytes()


def test_table_of_models(published):
    text = (published / "README.md").read_text()
    assert text.startswith("# Models\n\n<!-- table of models -->\n| model |")
    assert text.endswith("|\n<!-- end of the table -->\n\nEnd.\n")
    assert models_table(published) in text
    row = text.splitlines()[-4]
    assert row.startswith("| `tiny` | `model_ii_instrument`, 64×64, `euclid_vis_2021` | ")
    assert "`log10_m_axion`, `source_x`" in row and row.endswith(" | [card](tiny/README.md) |")
    assert re.search(r"\d ± 0\.\d+ dex, \d+\.\d+ ± \d\.\d+ arcsec \|", row)


def test_replacing_needs_to_be_said(published, evaluated_run, tmp_path):
    folder = shutil.copytree(published, tmp_path / "models")
    with pytest.raises(UserError, match=r"tiny exists; give --replace to replace it"):
        publish_run(evaluated_run, "tiny", folder)
    (folder / "tiny" / "old").write_text("x")
    publish_run(evaluated_run, "tiny", folder, replace=True)
    assert not (folder / "tiny" / "old").exists()
    assert list(versions(folder / "tiny")) == [2]  # one that a server has loaded must not change
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "tiny"]


def test_what_is_too_large_changes_nothing(published, evaluated_run, tmp_path, monkeypatch):
    folder = shutil.copytree(published, tmp_path / "models")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    monkeypatch.setattr(publish, "MAX_BYTES", 100_000)
    message = r"the bundle of tiny would be \d\.\d MiB, more than 0 MiB \(largest: "
    with pytest.raises(UserError, match=message):
        publish_run(evaluated_run, "tiny", folder, replace=True)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_unreadable_neighbours_are_left_out_of_the_table(
    published, evaluated_run, tmp_path, capsys
):
    folder = shutil.copytree(published, tmp_path / "models")
    manifest = "1/assets.extra/dlens_manifest.json"
    for name in ("damaged", "old", "sound"):
        shutil.copytree(folder / "tiny", folder / name)
    (folder / "damaged" / manifest).write_text("{")
    content = json.loads((folder / "old" / manifest).read_text())
    content["metrics"] = {"parameters": {"source_x": {"rmse": 1.0}}}
    (folder / "old" / manifest).write_text(json.dumps(content))
    capsys.readouterr()
    publish_run(evaluated_run, "tiny", folder, replace=True)
    rows = re.findall(r"^\| `(\w+)` \|", (folder / "README.md").read_text(), re.M)
    assert rows == ["sound", "tiny"]
    lines = capsys.readouterr().err.splitlines()
    warned = [re.match(r"warning: (\S+) is left out", line) for line in lines]
    assert [m[1] for m in warned if m] == [str(folder / "damaged"), str(folder / "old")]


def test_what_a_killed_run_left_is_removed(published, evaluated_run, tmp_path):
    folder = shutil.copytree(published, tmp_path / "models")
    (folder / ".partial-killed").mkdir()
    os.utime(folder / ".partial-killed", (0, 0))
    (folder / ".partial-working").mkdir()
    publish_run(evaluated_run, "tiny", folder, replace=True)
    names = sorted(p.name for p in folder.iterdir())
    assert names == [".partial-working", "README.md", "tiny"]


def test_mistakes(evaluated_run, write_run, tmp_path):
    for name in ("Tiny", "a-b", "../a", "1st", "_x", "a\n", ""):
        with pytest.raises(UserError, match="only lower-case letters, digits and underscores"):
            publish_run(evaluated_run, name, tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        publish_run(evaluated_run, "tiny", tmp_path / "none")
    with pytest.raises(UserError, match=r"is not evaluated yet; run python tools/evaluate\.py"):
        publish_run(write_run(tmp_path / "run"), "tiny", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_ensemble_and_recalibration_are_in_the_commands(evaluated_run, tmp_path):
    run = RunFolder(shutil.copytree(evaluated_run, tmp_path / "run"))
    config = json.loads(run.config_path.read_text())
    members = {"members": [{"run": str(evaluated_run)}] * 2, "tta": "rot180"}
    run.config_path.write_text(json.dumps({**config, **members}))
    evaluation = {"recalibration": {"method": "isotonic", "split": "calibration"}}
    (tmp_path / "tiny").mkdir()
    commands = publish._commands(RunFolder(run.path), evaluation, "tiny", tmp_path / "tiny")
    assert commands[1:] == [
        "python tools/train.py --flagfile=saved_models/tiny/member0.cfg",
        "python tools/train.py --flagfile=saved_models/tiny/member1.cfg",
        "python tools/combine.py --runs=runs/tiny_member0,runs/tiny_member1 --tta=rot180 "
        "--run_dir=runs/tiny",
        "python tools/evaluate.py --run_dir=runs/tiny --recalibrate=isotonic "
        "--calibration_split=calibration",
        "python tools/publish.py --run_dir=runs/tiny --name=tiny",
    ]
    flags = (tmp_path / "tiny" / "member1.cfg").read_text()
    assert "--run_dir=runs/tiny_member1\n" in flags


def test_other_data_sets_of_an_evaluation_are_in_the_commands(evaluated_run, tmp_path):
    (tmp_path / "tiny").mkdir()
    own = publish._commands(RunFolder(evaluated_run), {"recalibration": None}, "tiny", tmp_path)
    fresh = {"data_dir": "fresh", "command": "python tools/build_dataset.py --data_dir=fresh"}
    maps = {"method": "isotonic", "split": "calibration"}
    commands = publish._commands(
        RunFolder(evaluated_run),
        {"dataset": fresh, "recalibration": {**maps, "dataset": fresh}},
        "tiny",
        tmp_path / "tiny",
    )
    assert commands == [
        *own[:-2],
        fresh["command"],
        "python tools/evaluate.py --run_dir=runs/tiny --recalibrate=isotonic "
        "--calibration_split=calibration --data_dir=fresh",
        own[-1],
    ]
    # evaluate.py would take the test's data set for the maps, too.
    mixed = publish._commands(
        RunFolder(evaluated_run),
        {"dataset": fresh, "recalibration": {**maps, "dataset": {"data_dir": "data"}}},
        "tiny",
        tmp_path / "tiny",
    )
    assert mixed[-2].endswith(" --calibration_data_dir=data --data_dir=fresh")


def test_run_that_fits_start_from_comes_first(evaluated_run, tmp_path):
    start = shutil.copytree(evaluated_run, tmp_path / "first")
    run = RunFolder(shutil.copytree(evaluated_run, tmp_path / "run"))
    with open(run.flags_path, "a") as stream:
        stream.write(f"--start_run={start}\n--galaxies=/x/cat\n")
    (tmp_path / "tiny").mkdir()
    commands = publish._commands(run, {"recalibration": None}, "tiny", tmp_path / "tiny")
    # Both are of one data set.
    assert [command.split(" --dataset")[0] for command in commands[:3]] == [
        "python tools/build_dataset.py",
        "python tools/train.py --flagfile=saved_models/tiny/start.cfg",
        "python tools/train.py --flagfile=saved_models/tiny/flags.cfg",
    ]
    assert "--run_dir=runs/first\n" in (tmp_path / "tiny" / "start.cfg").read_text()
    flags = (tmp_path / "tiny" / "flags.cfg").read_text()
    assert "--start_run=runs/first\n" in flags and "--galaxies=<catalogue cat>\n" in flags
    shutil.rmtree(start)
    with pytest.raises(UserError, match="first is not a run folder"):
        publish._commands(run, {"recalibration": None}, "tiny", tmp_path / "tiny")


def test_runs_that_weights_come_from_are_in_the_commands(evaluated_run, tmp_path):
    """A chain: each comes after what it begins with, on its own images."""

    def write(name: str, **changes) -> RunFolder:
        run = RunFolder(shutil.copytree(evaluated_run, tmp_path / name))
        run.config_path.write_text(json.dumps({**run.config, **changes}))
        if "initial_run" in changes:
            with open(run.flags_path, "a") as stream:
                stream.write(f"--initial_run={changes['initial_run']}\n")
        return RunFolder(run.path)

    write("first", config="model_ii")
    write("second", initial_run=str(tmp_path / "first"))
    run = write("run", initial_run=str(tmp_path / "second"))
    (tmp_path / "tiny").mkdir()
    commands = publish._commands(run, {"recalibration": None}, "tiny", tmp_path / "tiny")
    assert "--config=model_ii_instrument " in commands[0] and "--config=model_ii " in commands[1]
    assert commands[2:5] == [
        f"python tools/train.py --flagfile=saved_models/tiny/{name}.cfg"
        for name in ("initial", "initial1", "flags")
    ]
    texts = {path.stem: path.read_text() for path in (tmp_path / "tiny").glob("*.cfg")}
    assert "--run_dir=runs/first\n" in texts["initial"]
    assert "--run_dir=runs/second\n" in texts["initial1"]
    assert "--initial_run=runs/first\n" in texts["initial1"]
    assert "--initial_run=runs/second\n" in texts["flags"]
