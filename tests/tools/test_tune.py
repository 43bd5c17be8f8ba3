"""The tuning tool as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlens_tf.training.run_folder import read_flags

ROOT = Path(__file__).resolve().parents[2]
SEARCH = ["--config=model_ii", "--tune_dir=t", "--search=resnet_width=8|16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: flag --config is missing; see --help"),
        (["--config=model_ii"], "error: flag --tune_dir is missing; see --help"),
        (["--config=model_ii", "--tune_dir=t"], "error: flag --search is missing; for example"),
        ([*SEARCH, "--run_dir=r"], "--run_dir is train.py's; a search has a --tune_dir"),
        ([*SEARCH, "--search=depth=1|2"], "'depth' can't be searched; valid: augmentation, model"),
        ([*SEARCH, "--search=seed=1|2"], "'seed' can't be searched"),
        ([*SEARCH, "--search=dropout=0:2"], "--dropout can't be '2'"),
        ([*SEARCH, "--search=vit_width=8|16"], "changes nothing beside the other flags"),
        ([*SEARCH, "--search=binning=1|2"], "--binning need --front_end=smooth_residual"),
        ([*SEARCH, "--strategy=multi_worker"], "multi_worker can't be tuned"),
        ([*SEARCH, "--algorithm=grid"], "<hyperband|bayesian>"),
        ([*SEARCH, "--trials=0"], "trials"),
    ],
)
def test_bad_input_is_one_line(run_tool, arguments, message):
    done = run_tool("tune", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert done.stdout == "" and not (ROOT / "t").exists()


def test_missing_tuner_is_one_line():
    code = (
        "import sys; sys.modules['keras_tuner'] = sys.modules['tensorflow'] = None\n"
        "from dlens_tf.tools import tune\ntune.entry()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *SEARCH], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: keras_tuner is not installed; tuning needs it: pip install 'dlens_tf[tune]'\n"
    )


def test_help_imports_no_tensorflow(run_tool):
    done = run_tool("tune", "--help")
    assert "python tools/tune.py" in done.stdout
    # The flags of train.py are among its own.
    assert "--search" in done.stdout and "--learning_rate" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_search_ends_as_an_uninterrupted_one(run_tool, tiny_data_dir, tmp_path, number):
    def arguments(name: str) -> list[str]:
        return [
            "--config=model_ii_instrument", f"--data_dir={tiny_data_dir}", "--resnet_depth=1",
            "--resnet_stages=2", "--resnet_stem_stride=4", "--batch_size=8", "--epochs=3",
            "--search=resnet_width=8|16", "--search=learning_rate=1e-3:1e-2:log",
            "--algorithm=bayesian", "--trials=3", f"--tune_dir={tmp_path / name}",
        ]  # fmt: skip

    with subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / "tune.py"), *arguments("broken")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        second = tmp_path / "broken" / "trials" / "0001" / "model.keras"
        deadline = time.monotonic() + 300
        while not second.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, number)
        output, progress = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else -number), progress
    if number == signal.SIGINT:
        assert "stopped and saved; run the same command again to go on" in output
    assert "Traceback" not in progress
    assert not (tmp_path / "broken" / "trials" / "0002").exists()

    tables = []
    for name in ("broken", "whole"):
        done = run_tool("tune", *arguments(name), timeout=600)
        assert done.returncode == 0, done.stderr
        tables.append(done.stdout.split("trial  score")[1].split("watch:")[0])
    assert tables[0] == tables[1] and tables[0].count("--resnet_width=") == 3
    flags = [read_flags(tmp_path / name / "best.flags") for name in ("broken", "whole")]
    assert flags[0] == flags[1]

    best = tmp_path / "broken" / "best.flags"
    done = run_tool("train", f"--flagfile={best}", f"--run_dir={tmp_path / 'best'}", timeout=300)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "best" / "metrics.jsonl").read_text().splitlines()
    scores = [json.loads(line).get("nll") for line in lines if '"validation"' in line]
    assert f"{min(scores):.4f}" in tables[0].splitlines()[1]
