import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "--suite=simulation", "--recipes=model_iii_instrument", "--engines=lenstronomy", "--cores=1",
    "--images=2", "--repeats=2", "--seconds=0",
)  # fmt: skip


def test_output_is_printed_again(run_tool, tmp_path):
    output = tmp_path / "results.json"
    done = run_tool("benchmark", *SMALL, f"--output={output}")
    assert done.returncode == 0
    assert "| model_iii_instrument | axion | 1 core | " in done.stdout
    assert done.stderr.rstrip().endswith("model_iii_instrument axion, 1 core]")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    content = json.loads(output.read_text())
    assert content["complete"] and content["suite"] == "simulation"
    assert content["settings"]["recipes"] == ["model_iii_instrument"]
    again = run_tool("benchmark", f"--render={output}")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.strip() == done.stdout.strip()


def test_ctrl_c_keeps_what_was_measured(tmp_path):
    output = tmp_path / "results.json"
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), *SMALL, f"--output={output}"]
    process = subprocess.Popen(
        [*command, "--repeats=100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not output.exists():  # the row about the engine's start
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in stderr
    assert "| model_iii_instrument | " in stdout and "The run was interrupted" in stdout
    assert not json.loads(output.read_text())["complete"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "flag --suite is missing"),
        (["--suite=speed"], "should be one of <simulation|reading|training|serving|"),
        (["--suite=simulation", "--recipes=model_v"], "unknown recipe 'model_v'"),
        (["--suite=simulation", "--cores=two"], "--cores needs whole numbers"),
        (["--suite=simulation", "--cores=4096"], "can't measure on 4096 cores"),
        (["--suite=simulation", "--seconds=-1"], "--seconds=-1"),
        (["--suite=simulation", "--images=0"], "--images=0"),
        (["--suite=simulation", "--data_dir=data"], "--data_dir is no flag of --suite=simulation"),
        (["--suite=reading", "--recipes=model_i"], "--recipes is no flag of --suite=reading"),
        (["--suite=training", "--core=0"], "--core is no flag of --suite=training"),
        (["--suite=training", "--output=/nowhere/a.json"], "there is no folder /nowhere"),
        (["--render=nowhere.json"], "nowhere.json: no such file"),
        (["--render=setup.py"], "setup.py is not a result of tools/benchmark.py"),
    ],
)
def test_bad_input_gives_one_line(run_tool, arguments, message):
    done = run_tool("benchmark", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_option_of_a_suite_has_a_flag():
    code = (
        "import sys, dlens_tf.tools.benchmark as benchmark\n"
        "heavy = {'tensorflow', 'lenstronomy', 'matplotlib', 'astropy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "print(*benchmark._SUITE_FLAGS)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, flags = done.stdout.splitlines()
    assert heavy == "[]"
    from dlens_tf.benchmarks import SUITES
    from dlens_tf.benchmarks.report import suite_module

    options = {f.name for s in SUITES for f in dataclasses.fields(suite_module(s).Options)}
    assert options == set(flags.split())
