"""The quickstart as a newcomer meets it, and how it ends if something goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Runs the quickstart with a stand-in for its tools: a child that takes a second to save.
INTERRUPTED = """
import sys
from pathlib import Path
from dlens_tf.tools import quickstart

quickstart.ROOT = Path(sys.argv.pop())
quickstart.entry()
"""
SLOW_TO_SAVE = """
import sys, time
from pathlib import Path
try:
    Path("started").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    Path("saved").touch()
    sys.exit(130)
"""

# Judges an evaluation; prints the error, if any. In its own process, for the tools' flags collide.
CHECK = """
import json, sys
from pathlib import Path
from dlens_tf.errors import UserError
from dlens_tf.tools import quickstart

try:
    quickstart._check_learned(Path(sys.argv[1]), json.loads(sys.argv[2]))
except UserError as error:
    print(error)
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder that looks like a checkout; its build_dataset is slow to save."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.flags").touch()
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "build_dataset.py").write_text(SLOW_TO_SAVE)
    return tmp_path


def _start(checkout: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, f"--work_dir={checkout / 'work'}", str(checkout)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


def test_interrupt_waits_until_the_tool_has_saved(checkout):
    with _start(checkout) as process:
        deadline = time.monotonic() + 30
        while not (checkout / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (checkout / "saved").exists()
    assert output.endswith("interrupted; the same command goes on where it stopped\n")
    assert errors == ""


def test_failing_tool_is_named(checkout):
    (checkout / "tools" / "build_dataset.py").write_text("raise SystemExit(7)")
    with _start(checkout) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors == "error: tools/build_dataset.py failed with status 7; see above\n"


def test_needs_a_checkout(checkout):
    (checkout / "configs" / "quickstart.flags").unlink()
    with _start(checkout) as process:
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 2 and output == ""
    assert errors == (
        f"error: {checkout / 'configs' / 'quickstart.flags'} is missing: the quickstart runs from "
        "a checkout\n"
    )


@pytest.mark.parametrize(
    ("model", "linear", "largest", "message"),
    [
        (0.16, 0.4, 0.18, None),
        (0.17, 0.4, None, None),
        (0.30, 0.4, None, None),
        (0.19, 0.4, 0.18, "the model's MAE is 0.190, expected at most 0.18"),
        (0.41, 0.4, None, "MAE of 0.410 is not below the 0.400 of the baseline 'linear'"),
        (0.5, 0.6, None, "MAE of 0.500 is not below the 0.500 of the baseline 'centre'"),
        (float("nan"), 0.4, None, "learnt nothing"),
    ],
)
def test_model_that_learnt_nothing_fails(tmp_path, model, linear, largest, message):
    values = {"model": model, "linear": linear, "centre": 0.5, "limit": 0.1}
    rows = [{"kind": k, "metrics": {"mae": {"value": v}}} for k, v in values.items()]
    path = tmp_path / "test.json"
    path.write_text(json.dumps({"parameters": {"log10_m_axion": {"rows": rows}}}))
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(path), json.dumps(largest)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        cwd=ROOT,
    )
    if message is None:
        assert done.stdout == ""
    else:
        assert message in done.stdout and done.stdout.count("\n") == 1


@pytest.mark.slow
def test_from_nothing_to_predictions_and_again(run_tool, tmp_path):
    arguments = ["--num_examples=64", f"--work_dir={tmp_path}", "--train_flags=--epochs=1"]
    done = run_tool("quickstart", *arguments, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done in" in done.stdout and "predicted (mean ± std)" in done.stdout
    assert (tmp_path / "cnn" / "evaluation" / "test.html").is_file()
    exported = list((tmp_path / "cnn" / "export").iterdir())
    assert [path.name for path in exported] == ["1"]
    rows = json.loads((tmp_path / "cnn" / "evaluation" / "test.json").read_text())
    kinds = [row["kind"] for row in rows["parameters"]["log10_m_axion"]["rows"]]
    assert {"model", "linear", "centre"} <= set(kinds)

    # A folder without a version is no export.
    exported[0].rename(tmp_path / "cnn" / "export" / "half_written")
    again = run_tool("quickstart", *arguments, timeout=400)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumed at step" in again.stdout
    assert (tmp_path / "cnn" / "export" / "1" / "saved_model.pb").is_file()
