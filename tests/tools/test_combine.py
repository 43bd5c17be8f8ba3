import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: flag --runs is missing; see --help"),
        (["--runs=a,b"], "error: flag --run_dir is missing; see --help"),
        (["--runs=/nowhere/a", "--run_dir=r"], "error: /nowhere/a is not a run folder"),
        (["--tta=d3"], "<none|rot180|d4>"),
    ],
)
def test_bad_input_is_one_line(run_tool, arguments, message):
    done = run_tool("combine", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


def test_help_imports_no_tensorflow(run_tool):
    done = run_tool("combine", "--help")
    assert "--runs" in done.stdout and "python tools/combine.py" in done.stdout
