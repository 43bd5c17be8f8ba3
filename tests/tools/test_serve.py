import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_serves_until_it_is_told_to_end(exported_run, number):
    command = [sys.executable, str(ROOT / "tools" / "serve.py")]
    flags = ["--model_name=dlens", "--rest_port=0", "--grpc_port=0"]
    base = exported_run / "export"
    with subprocess.Popen(
        [*command, f"--model_base={base}", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "dlens version 1: AVAILABLE\n"
            line = process.stdout.readline()
            assert "the production server is TensorFlow Serving" in line
            url = re.search(r"http://127\.0\.0\.1:\d+", line).group()
            body = {"instances": np.zeros((1, 64, 64, 1)).tolist()}
            with requests.Session() as session:  # whose open connection does not hold up the end
                answer = session.post(f"{url}/v1/models/dlens:predict", json=body, timeout=60)
                assert answer.status_code == 200
                os.kill(process.pid, number)
                out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "stopped\n", "")


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "give either --model_base or --models_config; see --help"),
        (("--model_base=x", "--models_config=y"), "give either --model_base or --models_config"),
        (("--model_base=none",), "none does not exist; name the folder of an exported model's"),
        (("--models_config=none",), "none: no such file"),
        (("--model_base=x", "--rest_port=70000"), "flag --rest_port=70000"),
    ],
)
def test_wrong_flags_are_one_line(run_tool, flags, message):
    done = run_tool("serve", *flags)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
