import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: flag --run_dir is missing; see --help"),
        (["--run_dir=/nowhere/run"], "error: /nowhere/run is not a run folder"),
        (["--split=tset"], "<train|validation|test|calibration>"),
        (["--batch_size=0"], "batch_size"),
        (["--recalibrate=platt"], "<isotonic|temperature>"),
        (["--calibration_split=test"], "<calibration|validation>"),
    ],
)
def test_bad_input_is_one_line(run_tool, arguments, message):
    done = run_tool("evaluate", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


def test_help_imports_no_tensorflow(run_tool):
    done = run_tool("evaluate", "--help")
    assert "--run_dir" in done.stdout and "python tools/evaluate.py" in done.stdout
