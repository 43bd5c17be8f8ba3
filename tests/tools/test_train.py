"""The training tool as a user meets it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Prints the options that flags stand for, and writes them to a flagfile.
RESOLVE = """
import dataclasses, json, sys
from pathlib import Path
from absl import flags
from dlens_tf.tools import train
from dlens_tf.training.run_folder import write_flags

path = sys.argv.pop()
flags.FLAGS(sys.argv)
options = train.run_options()
write_flags(Path(path), options.flags)
assert "tensorflow" not in sys.modules
print(json.dumps(dataclasses.asdict(options)))
"""


def _resolve(flagfile: Path, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", RESOLVE, *arguments, str(flagfile)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=model_ii", "--run_dir=r"],
        [
            "--config=model_ii", "--run_dir=a run", "--data_dir=data of mine/=x", "--classes=axion",
            "--classes=cdm", "--targets=log10_m_axion,source_x", "--profile_steps=2,3", "--jit",
            "--nodeterministic", "--loss=beta_nll", "--crop=32", "--front_end=smooth_residual",
            "--learning_rate=1.5e-3", "--model=vit",
        ],
        ["--config=model_ii", "--run_dir=r", "--data=simulate:model_ii", "--engine=lenstronomy"],
        ["--config=model_ii", "--run_dir=r", "--data=simulate:model_ii", "--galaxies=my galaxies"],
        [
            "--config=model_ii", "--run_dir=r", "--model=hybrid", "--hybrid_heads=2", "--polar",
            "--polar_radii=24", "--average=swa", "--swa_start=0.5", "--initial_run=runs/easy",
        ],
    ],
)  # fmt: skip
def test_flagfile_repeats_the_run(tmp_path, arguments):
    first = tmp_path / "flags.cfg"
    options = _resolve(first, *arguments)
    assert _resolve(tmp_path / "again.cfg", f"--flagfile={first}") == options
    assert (tmp_path / "again.cfg").read_text() == first.read_text()
    # A later flag wins.
    assert _resolve(tmp_path / "x.cfg", f"--flagfile={first}", "--batch_size=7")["batch_size"] == 7


def test_flags_of_heads_are_those_of_the_library(tmp_path):
    """The tool repeats names and defaults, as it must not import Keras for its help."""
    from dlens_tf.models import HEADS
    from dlens_tf.parameters import ParameterSet, Uniform

    target = ParameterSet.from_priors({"theta_E": Uniform(1.0, 1.8)})
    for kind, head in HEADS.items():
        options = _resolve(
            tmp_path / f"{kind}.cfg", "--config=model_ii", "--run_dir=r", f"--head={kind}"
        )["model"]
        assert options["loss"] == next(iter(head.losses_by_name))
        made = head.for_targets(target, options["loss"]).density_config
        assert {"kind": options["head"], **options["head_options"]} == made


def test_flags_of_simulation_are_resolved(tmp_path):
    arguments = ["--config=model_ii", "--run_dir=r", "--data=simulate:model_ii"]
    options = _resolve(tmp_path / "flags.cfg", *arguments)
    assert (options["engine"], options["examples_per_epoch"]) == ("fast", 20_000)
    lines = (tmp_path / "flags.cfg").read_text().splitlines()
    assert {"--data=simulate:model_ii", "--engine=fast", "--examples_per_epoch=20000"} <= set(lines)
    # A run on a stored data set has nothing of it.
    assert _resolve(tmp_path / "flags.cfg", *arguments[:2])["data"] == "dataset"
    text = (tmp_path / "flags.cfg").read_text()
    assert "--data=" not in text and "engine" not in text and "examples_per_epoch" not in text


def test_options_of_the_backbone_and_of_polar_images(tmp_path):
    arguments = ["--config=model_ii", "--run_dir=r", "--model=convnext", "--convnext_stages=2"]
    model = _resolve(tmp_path / "flags.cfg", *arguments)["model"]
    assert model["backbone"] == "convnext" and model["polar"] is None
    sizes = {"width": 24, "depth": 2, "stages": 2, "patch_size": 4, "kernel_size": 7}
    assert model["options"] == {**sizes, "dropout": 0.0}
    model = _resolve(tmp_path / "flags.cfg", *arguments, "--polar", "--polar_angles=48")["model"]
    ends = {"min_radius": 0.0, "max_radius": 1.0}
    assert model["polar"] == {"radii": 32, "angles": 48, "overlap": 8, **ends}


def test_interrupt_then_other_flags(run_tool, tiny_data_dir, tmp_path):
    arguments = [
        "--config=model_ii_instrument", f"--data_dir={tiny_data_dir}", "--resnet_width=8",
        "--resnet_depth=1", "--resnet_stages=2", "--resnet_stem_stride=4", "--batch_size=8",
        "--epochs=1000", f"--run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / "train.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        deadline = time.monotonic() + 90
        while not (tmp_path / "run" / "model.keras").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, progress = process.communicate(timeout=60)
    assert process.returncode == 130, progress
    assert "stopped and saved; run the same command again to go on" in output
    assert "Traceback" not in progress and "train:" in progress

    done = run_tool("train", *arguments, "--batch_size=4")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path / 'run'} was made with --batch_size=8, not")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: flag --config is missing; see --help"),
        (["--config=model_ii"], "error: flag --run_dir is missing; see --help"),
        (["--config=model_ii", "--run_dir=r", "--data_dir="], "error: flag --data_dir is missing"),
        (["--config=model_ii", "--run_dir=r", "--crop=32"], "need --front_end=smooth_residual"),
        (["--config=model_ii", "--run_dir=r", "--binning=2"], "need --front_end=smooth_residual"),
        (["--config=model_ii", "--run_dir=r", "--learning_rate=nan"], "learning_rate is nan"),
        (["--seed=4294967296"], "seed"),
        (["--config=model_ii", "--run_dir=r", "--engine=fast"], "needs --data=simulate:<recipe>"),
        (["--config=model_ii", "--run_dir=r", "--galaxies=g"], "needs --data=simulate:<recipe>"),
        (
            ["--config=model_ii", "--run_dir=r", "--data=simulate:model_ii", "--cache=none"],
            "--cache=none needs --data=dataset",
        ),
        (
            ["--config=model_ii", "--run_dir=r", "--data=simulate:model_9"],
            "unknown recipe 'model_9'; valid: model_i_legacy",
        ),
        (["--engine=gpu"], "<lenstronomy|fast>"),
        (["--config=model_v"], "model_ii|"),
        (["--model=unet"], "<resnet|vit|convnext|hybrid"),
        (["--head=flows"], "<point|gaussian|"),
        (["--strategy=tpu"], "<one_device|mirrored|multi_worker>"),
        (["--classes=hot"], "axion"),
        (["--dropout=2"], "dropout"),
        (["--epochs=many"], "epochs"),
        (["--config=model_ii", "--run_dir=r", "--profile_steps=3"], "a first and a last step"),
        (["--config=model_ii", "--run_dir=r", "--profile_steps=3,2"], "a first and a last step"),
        (["--config=model_ii", "--run_dir=r", "--profile_steps=a,b"], "a first and a last step"),
        (["--flagfile=nowhere.flags"], "nowhere.flags"),
        (["train"], "error: unexpected argument 'train'"),
    ],
)
def test_bad_input_is_one_line(run_tool, arguments, message):
    done = run_tool("train", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_mistake_is_told_before_tensorflow_is_imported():
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"  # importing it fails
        "from dlens_tf.tools import train\ntrain.entry()"
    )
    arguments = ["--config=model_ii", "--run_dir=r", "--data=simulate:model_i"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "needs validation data of the same recipe" in done.stderr


def test_help_imports_no_tensorflow(run_tool):
    done = run_tool("train", "--help")
    assert "--flagfile" in done.stdout and "python tools/train.py" in done.stdout


@pytest.mark.slow
def test_deterministic_gives_the_same_bits(run_tool, tiny_data_dir, tmp_path):
    for name in ("one", "two"):
        done = run_tool(
            "train", "--config=model_ii_instrument", f"--data_dir={tiny_data_dir}",
            "--resnet_width=8", "--resnet_depth=1", "--resnet_stages=2", "--resnet_stem_stride=4",
            "--batch_size=8", "--epochs=1", "--dropout=0.2", "--front_end=smooth_residual",
            "--deterministic", f"--run_dir={tmp_path / name}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for line, other in zip(*lines, strict=True):
        line.pop("images_per_second", None), other.pop("images_per_second", None)
        assert line == other
