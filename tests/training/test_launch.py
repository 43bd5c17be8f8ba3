"""Whole runs: resumed after being killed, refused, and bad input that leaves nothing behind."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from astropy.table import Table

from dlens_tf.errors import Interrupted, UserError
from dlens_tf.evaluation.evaluate import evaluate_run
from dlens_tf.io.files import file_checksum
from dlens_tf.pipeline.build import build_dataset
from dlens_tf.simulation.galaxies import BUNDLED, GalaxyCatalogue
from dlens_tf.simulation.simulator import SIMULATOR_VERSION
from dlens_tf.training.cost import training_cost
from dlens_tf.training.launch import RunOptions, check_folder, train_run
from dlens_tf.training.run_folder import RunFolder

# Kills itself after a step, with no chance to tidy up.
KILLED = """
import json, os, signal, sys
from dlens_tf.training import trainer
from dlens_tf.training.launch import RunOptions, train_run

class Bar(trainer.tqdm):
    def update(self, n=1):
        super().update(n)
        if self.n == 5:
            os.kill(os.getpid(), signal.SIGKILL)

trainer.tqdm = Bar
train_run(RunOptions(**json.loads(sys.argv[1])))
"""


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(make_options, assert_same_run, tmp_path):
    model = {
        "backbone": "resnet",
        "options": {"width": 8, "depth": 1, "stages": 2, "stem_stride": 4, "dropout": 0.3},
    }

    def options(name: str) -> RunOptions:
        return make_options(tmp_path / name, cache="none", augmentation="rot180", model=model)

    killed = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(dataclasses.asdict(options("killed")))],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4
    train_run(options("killed"))
    train_run(options("whole"))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    models = [RunFolder(tmp_path / name).load_model() for name in ("killed", "whole")]
    for weight, expected in zip(models[0].weights, models[1].weights, strict=True):
        assert weight.numpy() == pytest.approx(expected.numpy(), abs=1e-6)


SIMULATED = {"data": "simulate:model_ii_instrument", "examples_per_epoch": 24}


@pytest.mark.slow
def test_simulated_training_killed_and_resumed(make_options, assert_same_run, tmp_path):
    killed, whole = (make_options(tmp_path / name, **SIMULATED) for name in ("killed", "whole"))
    process = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(dataclasses.asdict(killed))],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    train_run(killed)
    train_run(whole)
    assert_same_run(tmp_path / "killed", tmp_path / "whole", tolerance=0)


@pytest.fixture(scope="module")
def simulated_run(make_options, tmp_path_factory) -> RunFolder:
    """A finished run on lenses simulated by lenstronomy. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "simulated"
    return RunFolder(train_run(make_options(folder, **SIMULATED, engine="lenstronomy")))


def test_simulated_run_tells_its_story(simulated_run, finished_run):
    config = simulated_run.config
    assert config["data"] == "simulate:model_ii_instrument"
    assert (config["engine"], config["simulator_version"]) == ("lenstronomy", SIMULATOR_VERSION)
    assert (config["training_examples"], config["augmentation"]) == (24, "none")
    assert finished_run.config["data"] == "dataset"
    assert (
        config.items()
        >= {
            key: finished_run.config[key] for key in ("dataset", "recipe", "targets", "classes")
        }.items()
    )


def test_simulated_run_is_evaluated_as_any_other(simulated_run, tmp_path):
    shutil.copytree(simulated_run.path, tmp_path / "run")
    result = evaluate_run(tmp_path / "run")
    assert result["num_examples"] == 8


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("engine", "fast", r"engine fast, not lenstronomy.* or the --engine it was made with"),
        (
            "simulator_version",
            "0.0.0",
            "version 0.0.0, not .* or the version of dlens_tf it was",
        ),
        ("galaxies", "abc", r"galaxies abc, not None.* or the --galaxies it was made with"),
        ("training_examples", 32, "training_examples 32, not 24"),
    ],
)
def test_simulated_run_of_other_data_is_refused(
    simulated_run, make_options, tmp_path, key, value, message
):
    folder = tmp_path / "run"
    shutil.copytree(simulated_run.path, folder)
    config = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError, match=message) as info:
        train_run(make_options(folder, **SIMULATED, engine="lenstronomy"))
    assert "\n" not in str(info.value)


TARGETS = ["log10_m_axion", "source_x"]
GALAXIES = {
    "dataset": "dark_matter",
    "config": "cdm_hst_cosmos",
    "data": "simulate:cdm_hst_cosmos",
    "targets": ["sigma_sub"],
}


@pytest.fixture(scope="module")
def own_galaxies(tmp_path_factory) -> Path:
    """The bundled galaxies but for the last, in a folder of their own."""
    folder = tmp_path_factory.mktemp("galaxies")
    name = "real_galaxy_catalog_23.5.fits"
    Table.read(BUNDLED / name)[:-1].write(folder / name)
    shutil.copy(BUNDLED / "real_galaxy_images_23.5_n1.fits", folder)
    return folder


@pytest.fixture(scope="module")
def own_data_dir(own_galaxies, tmp_path_factory) -> Path:
    """A data_dir with a data set of these galaxies."""
    data_dir = tmp_path_factory.mktemp("data")
    build_dataset(
        "dark_matter", "cdm_hst_cosmos", data_dir, galaxies=own_galaxies, engine="lenstronomy",
        sizes={"train": 1, "validation": 1, "test": 1}, num_shards=1,
    )  # fmt: skip
    return data_dir


def test_galaxies_of_another_catalogue_are_refused(
    make_options, own_galaxies, own_data_dir, tmp_path
):
    """Those that its split trains on may be held out by the data set's."""
    own, bundled = (GalaxyCatalogue.open(path).content_id for path in (own_galaxies, None))
    options = make_options(tmp_path / "run", data_dir=str(own_data_dir), **GALAXIES)
    with pytest.raises(UserError, match=f"from galaxies {bundled}, but .* {own}, and") as info:
        train_run(options)
    assert "\n" not in str(info.value)
    # The same one, in another place: what is refused comes later.
    moved = shutil.copytree(own_galaxies, tmp_path / "moved")
    options = dataclasses.replace(options, galaxies=str(moved), examples_per_epoch=1)
    with pytest.raises(UserError, match="batch_size 8 is larger than the 1 images"):
        train_run(options)


@pytest.mark.parametrize("kind", ["finished_run", "simulated_run"])
def test_run_says_what_made_its_data_set(kind, request, make_options, tmp_path, capsys):
    run = request.getfixturevalue(kind)
    changes = {} if kind == "finished_run" else {**SIMULATED, "engine": "lenstronomy"}
    made_by = {
        "dataset_engine": "lenstronomy",
        "dataset_engine_version": None,
        "dataset_simulator_version": SIMULATOR_VERSION,
        "dataset_galaxies": None,
    }
    assert run.config.items() >= made_by.items()
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder)
    for key in made_by:
        (folder / "run.json").write_text(json.dumps({**run.config, key: "other"}))
        with pytest.raises(UserError, match=rf"\({key} other, not .* or a data set built as"):
            train_run(make_options(folder, **changes))
    # Runs of older versions don't say it.
    older = {key: value for key, value in run.config.items() if key not in made_by}
    (folder / "run.json").write_text(json.dumps(older))
    train_run(make_options(folder, **changes))
    assert "resumed at step 6" in capsys.readouterr().out


QUICK = """
import dataclasses, json, sys
from dlens_tf.errors import UserError
from dlens_tf.training.launch import RunOptions, train_run

options = RunOptions(**json.loads(sys.argv[1]))
for changes in json.loads(sys.argv[2]):
    try:
        train_run(dataclasses.replace(options, **changes))
    except UserError as error:
        print(error)
assert "tensorflow" not in sys.modules
"""


def test_mistakes_are_told_before_tensorflow_is_imported(make_options, tmp_path):
    mistakes = [
        ({"config": "model_v"}, "unknown configuration"),
        ({"config": "cdm"}, "is of data set dark_matter"),
        ({"data": "simulate:model_v"}, "unknown recipe"),
        ({"data": "simulate:model_ii"}, "needs validation data of the same recipe"),
        ({**SIMULATED, "galaxies": "here"}, "has no real galaxies"),
        ({**GALAXIES, "galaxies": "/nowhere"}, "/nowhere"),
        ({"run_dir": str(tmp_path)}, "is not a run folder"),
        ({"initial_run": "/nowhere"}, "/nowhere is not a run folder"),
        ({"initial_run": str(tmp_path / "run")}, "is the run itself"),
        ({"cache": "front_end", "strategy": "multi_worker"}, "--strategy=multi_worker can't use"),
    ]
    (tmp_path / "notes.txt").write_text("mine")
    options = dataclasses.asdict(make_options(tmp_path / "run"))
    changes = [change for change, _ in mistakes]
    done = subprocess.run(
        [sys.executable, "-c", QUICK, json.dumps(options), json.dumps(changes)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    for line, (_, message) in zip(done.stdout.splitlines(), mistakes, strict=True):
        assert message in line


def test_same_command_again_does_no_more(finished_run, make_options, capsys, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(finished_run.path, folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    # Harmless flags may differ.
    train_run(make_options(folder, flags={"batch_size": ["8"], "seed": ["0"], "log_every": ["5"]}))
    assert "resumed at step 6" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seed": ["0"], "batch_size": ["16"]}, "with --batch_size=8, not with --batch_size=16"),
        ({"seed": ["0"]}, "with --batch_size=8, not without --batch_size"),
        (
            {"seed": ["0"], "batch_size": ["8"], "classes": ["axion", "cdm"]},
            "without --classes, not with --classes=axion --classes=cdm",
        ),
    ],
)
def test_run_of_other_flags_is_refused(finished_run, make_options, flags, message):
    with pytest.raises(UserError) as info:
        train_run(make_options(finished_run.path, flags=flags))
    assert f"{finished_run.path} was made {message}: choose another --run_dir" in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("recipe", "model_iii", "recipe model_iii, not model_ii_instrument"),
        ("dataset_version", "0.9.0", "dataset_version 0.9.0, not 1.0.0"),
        ("dataset_seed", 77, "dataset_seed 77, not 0"),
        ("image_shape", [32, 32, 1], "image_shape .32, 32, 1., not .64, 64, 1."),
        ("classes", ["axion", "cdm"], "classes .'axion', 'cdm'., not .'axion'."),
        ("training_examples", 25, "training_examples 25, not 24"),
    ],
)
def test_run_of_other_data_is_refused(finished_run, make_options, tmp_path, key, value, message):
    folder = tmp_path / "run"
    shutil.copytree(finished_run.path, folder)
    config = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError, match=f"was trained on other data \\({message}\\)") as info:
        train_run(make_options(folder))
    assert "\n" not in str(info.value)


def test_run_older_than_a_flag_had_its_default(finished_run, make_options, capsys, tmp_path):
    shutil.copytree(finished_run.path, tmp_path / "run")
    defaults = {"average": ["ema"], "batch_size": ["64"]}

    def options(**flags):
        given = {"batch_size": ["8"], "seed": ["0"], **flags}
        return make_options(tmp_path / "run", flags=given, default_flags=defaults)

    train_run(options(average=["ema"]))
    assert "resumed at step 6" in capsys.readouterr().out
    for flags in ({"average": ["swa"]}, {"batch_size": ["64"]}):
        with pytest.raises(UserError, match="was made with"):
            train_run(options(**flags))


def test_data_set_may_move(finished_run, make_options, tiny_data_dir, capsys, tmp_path):
    shutil.copytree(finished_run.path, tmp_path / "run")
    (tmp_path / "moved").symlink_to(tiny_data_dir)
    train_run(make_options(tmp_path / "run", data_dir=str(tmp_path / "moved")))
    assert "resumed at step 6" in capsys.readouterr().out


def test_folder_with_other_things_is_refused(make_options, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a run folder"):
        train_run(make_options(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("below", ["", "run", "a/b/run"])
def test_folder_that_cannot_be_made(make_options, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match=r"can't make .*: .*file is not a folder") as info:
        train_run(make_options(file / below))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", '{"targets": [', r"run\.json is damaged"),
        ("flags.cfg", "batch_size", r"flags\.cfg is damaged"),
    ],
)
def test_damaged_run_is_refused(finished_run, make_options, tmp_path, name, content, message):
    for file in ("run.json", "flags.cfg"):
        shutil.copy(finished_run.path / file, tmp_path / file)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        train_run(make_options(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_dir": "nowhere"}, "build it with: python tools/build_dataset.py"),
        ({"targets": ["log10_mass"]}, "'log10_mass' is not in this data set; valid: log10_m_axion"),
        ({"targets": []}, "no target parameter chosen; valid: log10_m_axion"),
        ({"classes": ["cdm"]}, "unknown class of .* 'cdm'; valid: axion"),
        ({"batch_size": 25}, "batch_size 25 is larger than the 24 training examples"),
        ({"augmentation": "d8"}, "unknown augmentation 'd8'; valid: none, rot180, d4, rotate"),
        ({"strategy": "tpu"}, "unknown strategy 'tpu'; valid: one_device, mirrored"),
        ({"model": {"backbone": "unet"}}, "unknown backbone 'unet'; valid: resnet, vit"),
        ({"model": {"loss": "mae"}}, "unknown loss of GaussianHead 'mae'; valid: nll, beta_nll"),
        (
            {"model": {"backbone": "vit", "options": {"width": 10, "heads": 4}}},
            "width 10 is not a multiple of heads 4",
        ),
        ({"plan": {"epochs": 1, "profile_steps": (9, 10)}}, "training has only 3 steps"),
        (
            {"model": {"front_end": "smooth_residual"}, "augmentation": "d4"},
            "can't fit lenses turned by --augmentation=d4: .* use auto, none or rot180",
        ),
        ({"plan": {"epochs": 1, "learning_rate": float("nan")}}, "learning_rate is nan"),
        ({"plan": {"epochs": 1, "clip_norm": 0.0}}, "clip_norm is 0.0, must be positive"),
        ({"data": "simulate:model_v"}, "unknown recipe 'model_v'; valid: model_i_legacy, model_i,"),
        (
            {"data": "simulate"},
            "neither dataset nor simulate:<recipe>; recipes: model_i_legacy",
        ),
        (
            {"data": "simulate:model_ii"},
            "--config=model_ii_instrument is of model_ii_instrument; choose --dataset=deeplense "
            "with --config=model_ii or model_ii_classes",
        ),
        ({**SIMULATED, "galaxies": "here"}, "has no real galaxies; leave out --galaxies"),
        ({"config": "cdm"}, "configuration 'cdm' is of data set dark_matter"),
        ({**SIMULATED, "engine": "slow"}, "unknown engine 'slow'; valid: lenstronomy, fast"),
        ({**SIMULATED, "batch_size": 25}, "batch_size 25 is larger than the 24 images of an epoch"),
        ({**SIMULATED, "data_dir": "nowhere"}, "build it with: python tools/build_dataset.py"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(make_options, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as info:
        train_run(make_options(tmp_path / "run", **changes))
    assert "\n" not in str(info.value)
    assert not (tmp_path / "run").exists()


def test_interrupted_filling_of_a_front_end_is_no_obstacle(make_options, tmp_path):
    run = tmp_path / "run"
    (run / "front_end").mkdir(parents=True)
    check_folder(make_options(run, cache="front_end"))
    with pytest.raises(UserError, match="exists and is not a run folder"):
        check_folder(make_options(run))
    (run / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a run folder"):
        check_folder(make_options(run, cache="front_end"))


def _trained_weights(run: RunFolder) -> dict:
    return {weight.path: weight.numpy() for weight in run.load_model().trainable_weights}


def _same(weights: dict, others: dict) -> bool:
    """Whether weights are alike, but for the rounding of averages."""
    return weights.keys() == others.keys() and all(
        weights[path] == pytest.approx(others[path], rel=1e-5, abs=1e-7) for path in weights
    )


def test_training_begins_with_the_weights_of_the_initial_run(
    finished_run, make_options, read_metrics, tmp_path, capsys
):
    """At a learning rate of zero nothing else can have made them."""
    still = {"epochs": 1, "learning_rate": 0.0}
    runs = [
        RunFolder(train_run(make_options(tmp_path / name, plan=still, seed=5, initial_run=initial)))
        for name, initial in (("random", None), ("run", str(finished_run.path)))
    ]
    assert f", from the weights of {finished_run.path}\n" in capsys.readouterr().out
    expected = _trained_weights(finished_run)
    assert [_same(_trained_weights(run), expected) for run in runs] == [False, True]
    before, [now] = (
        [line for line in read_metrics(run.path) if line.pop("split") == "validation"]
        for run in (finished_run, runs[1])
    )
    best = min(before, key=lambda line: line["nll"])
    assert now == pytest.approx({**best, "step": 3}, rel=1e-4, abs=1e-5)
    config = runs[1].config
    assert config["initial_run"] == str(finished_run.path)
    assert config["initial_model_sha256"] == file_checksum(finished_run.model_path)
    assert runs[0].config["initial_run"] is runs[0].config["initial_model_sha256"] is None


def test_interrupted_run_with_an_initial_one_goes_on(
    finished_run, make_options, assert_same_run, at_step, tmp_path
):
    options = make_options(tmp_path / "run", initial_run=str(finished_run.path))
    at_step(lambda step: signal.raise_signal(signal.SIGINT) if step == 4 else None)
    with pytest.raises(Interrupted):
        train_run(options)
    at_step(lambda step: None)
    train_run(options)
    train_run(dataclasses.replace(options, run_dir=str(tmp_path / "whole")))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("link", ["start", "initial"])
def test_other_model_of_an_earlier_run_is_refused(finished_run, make_options, tmp_path, link):
    for name in ("run", "earlier"):
        shutil.copytree(finished_run.path, tmp_path / name)
    earlier = str(tmp_path / "earlier")
    config = {f"{link}_run": earlier, f"{link}_model_sha256": "0" * 64}
    run = tmp_path / "run" / "run.json"
    run.write_text(json.dumps({**finished_run.config, **config}))
    options = make_options(tmp_path / "run", **{f"{link}_run": earlier})
    with pytest.raises(UserError, match=f"the model of --{link}_run={earlier} is not .*0, not"):
        train_run(options)
    now = file_checksum(finished_run.model_path)
    run.write_text(json.dumps({**finished_run.config, **config, f"{link}_model_sha256": now}))
    train_run(options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"targets": ["source_x", "log10_m_axion"]},
            "infers log10_m_axion,source_x, not source_x,log10_m_axion: train one with --targets=s",
        ),
        ({"model": {"head": "spline"}}, "its head is gaussian, not spline"),
        (
            {"model": {"options": {"width": 8, "depth": 1, "stages": 2, "stem_stride": 2}}},
            "its resnet_stem_stride is 4, not 2",
        ),
        (
            {
                "model": {
                    "options": {"width": 16, "depth": 1, "stages": 2, "stem_stride": 4},
                }
            },
            r"its resnet_width is 8, not 16\): train",
        ),
        (
            {"model": {"options": {"width": 8, "depth": 1, "stages": 3, "stem_stride": 4}}},
            "its resnet_stages is 2, not 3",
        ),
    ],
)
def test_initial_run_of_another_network_is_refused(
    finished_run, make_options, tmp_path, changes, message
):
    options = make_options(tmp_path / "run", initial_run=str(finished_run.path), **changes)
    with pytest.raises(UserError, match=f"--initial_run={finished_run.path} .*{message}") as info:
        train_run(options)
    assert "\n" not in str(info.value)
    assert not (tmp_path / "run").exists()


def test_initial_run_without_a_model_is_refused(finished_run, make_options, tmp_path):
    initial = tmp_path / "initial"
    initial.mkdir()
    shutil.copy(finished_run.config_path, initial)
    with pytest.raises(UserError, match=r"initial has no model\.keras yet"):
        train_run(make_options(tmp_path / "run", initial_run=str(initial)))


@pytest.mark.slow
def test_initial_run_on_several_devices(finished_run, run_tool, tiny_data_dir, tmp_path):
    done = run_tool(
        "train", "--config=model_ii_instrument", f"--data_dir={tiny_data_dir}",
        "--targets=log10_m_axion,source_x", "--resnet_width=8", "--resnet_depth=1",
        "--resnet_stages=2", "--resnet_stem_stride=4", "--batch_size=8", "--epochs=1",
        "--learning_rate=0", f"--initial_run={finished_run.path}", f"--run_dir={tmp_path / 'run'}",
        "--strategy=mirrored", "--logical_devices=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert _same(_trained_weights(RunFolder(tmp_path / "run")), _trained_weights(finished_run))


@pytest.mark.slow
def test_kept_front_end_from_start_to_evaluation(make_options, tmp_path, capsys):
    """A fit that starts from a run, its outputs kept, and a network of evidence and facts."""
    start = tmp_path / "start"
    train_run(make_options(start, targets=["source_x", "source_y"], plan={"epochs": 1}))
    model = {
        "backbone": "none",
        "head": "spline",
        "head_options": {"bins": 4},
        "front_end": "lens_fit",
        "front_end_options": {"num_masses": 3, "num_angles": 4, "rank": 4, "steps": 1},
    }
    options = make_options(
        tmp_path / "run", cache="front_end", model=model, start_run=str(start), targets=TARGETS
    )
    run = RunFolder(train_run(options))
    assert (run.config["cache"], run.config["start_run"]) == ("front_end", str(start))
    assert run.config["start_model_sha256"] == file_checksum(start / "model.keras")
    state = json.loads((run.path / "front_end" / "state.json").read_text())
    assert (state["done"], state["seconds"]) == (24, run.config["front_end_seconds"])
    cost = training_cost(run)
    assert (cost.images, cost.distinct_images, cost.start.images) == (48, 24, 24)
    assert cost.front_end_minutes == pytest.approx(state["seconds"] / 60.0)
    assert cost.minutes > cost.front_end_minutes > 0.0
    # The whole model, from images: as good as the training said of kept outputs.
    mae = evaluate_run(run.path)["parameters"][TARGETS[0]]["metrics"]["mae"]["value"]
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    told = [line[f"mae/{TARGETS[0]}"] for line in lines if line["split"] == "validation"]
    assert 0.0 < mae < 1.0 and 0.0 < min(told) < 1.0
    before = run.model_path.read_bytes()
    train_run(options)
    assert "resumed at step 6" in capsys.readouterr().out
    assert run.model_path.read_bytes() == before
    # Another one begins with its weights, and shares the kept outputs and the start.
    again = dataclasses.replace(
        options,
        run_dir=str(tmp_path / "again"),
        initial_run=str(run.path),
        front_end_dir=str(run.path / "front_end"),
        plan={"epochs": 1, "learning_rate": 0.0},
    )
    then = RunFolder(train_run(again))
    assert _same(_trained_weights(then), _trained_weights(run))
    both = training_cost(then)
    assert (both.images, both.distinct_images, both.start.images) == (72, 24, 24)
    assert both.initial_minutes == pytest.approx(cost.minutes - cost.front_end_minutes)
