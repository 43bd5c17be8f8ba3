import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "--config=model_ii_instrument"


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "reading.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_prints_a_rate_for_every_reader(tiny_data_dir):
    done = run(f"--data_dir={tiny_data_dir}", CONFIG, "--images=240", "--repeats=3")
    assert (done.returncode, done.stderr) == (0, "")
    assert "model_ii_instrument: 24 images of 64×64×1, 240 read per measurement" in done.stdout
    rows = re.findall(
        r"^\| (.+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", done.stdout, re.MULTILINE
    )
    assert len({name for name, *_ in rows}) == 4
    for _, *texts in rows:
        median, lowest, highest = (int(text.replace(",", "")) for text in texts)
        assert 0 < lowest <= median <= highest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=model_v"], "should be one of <model_i|"),
        (["--repeats=0"], "--repeats=0"),
        (["--data_dir=nowhere", "--core=4096"], "there is no core 4096 to use; valid: "),
    ],
)
def test_bad_input_gives_one_line(arguments, message):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
