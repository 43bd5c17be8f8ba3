import json
import re

import pytest

CONFIG = "--config=model_ii_instrument"


def test_prints_a_rate_for_every_reader(run_tool, tiny_data_dir, tmp_path):
    flags = (CONFIG, "--images=240", "--repeats=3", f"--output={tmp_path / 'results.json'}")
    done = run_tool("benchmark", "--suite=reading", f"--data_dir={tiny_data_dir}", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "model_ii_instrument: 24 images of 64×64×1, 240 read per measurement" in done.stdout
    rows = re.findall(
        r"^\| (.+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", done.stdout, re.MULTILINE
    )
    assert len({name for name, *_ in rows}) == 4
    for _, *texts in rows:
        median, lowest, highest = (int(text.replace(",", "")) for text in texts)
        assert 0 < lowest <= median <= highest
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["suite"] == "reading" and content["complete"]
    assert [len(row["rates"]) for row in content["rows"]] == [3] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=model_v"], "|model_i|"),
        (["--repeats=0"], "--repeats=0"),
        (["--data_dir=nowhere", "--core=4096"], "there is no core 4096 to use; valid: "),
    ],
)
def test_bad_input_gives_one_line(run_tool, arguments, message):
    done = run_tool("benchmark", "--suite=reading", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
