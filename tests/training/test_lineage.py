import json

import pytest

from dlens_tf.errors import UserError
from dlens_tf.training.lineage import earlier_runs
from dlens_tf.training.run_folder import RunFolder


@pytest.fixture
def write(finished_run, tmp_path):
    """write(name, **entries): a run with further entries in run.json, of folders in tmp_path."""

    def write(name: str, **entries: str) -> RunFolder:
        (tmp_path / name).mkdir()
        folders = {link: str(tmp_path / folder) for link, folder in entries.items()}
        (tmp_path / name / "run.json").write_text(json.dumps({**finished_run.config, **folders}))
        return RunFolder(tmp_path / name)

    return write


def _names(runs) -> list[str]:
    return [run.path.name for run in runs]


def test_each_run_comes_once_and_after_its_own(write):
    write("start")
    write("first", start_run="start")
    write("second", initial_run="first", start_run="start")
    ends = [write("a", initial_run="second"), write("b", initial_run="first", start_run="gone")]
    assert _names(earlier_runs(ends)) == ["start", "first", "second", "gone"]
    assert _names(earlier_runs(ends, ["initial_run"])) == ["first", "second"]


def test_circles_end(write):
    """A folder may have been made anew from what came from it."""
    runs = [write("a", initial_run="b"), write("b", initial_run="a")]
    assert _names(earlier_runs(runs[:1])) == ["b"]
    assert earlier_runs(runs) == []


def test_runs_of_older_versions_name_it_in_their_flags(write, tmp_path):
    run = write("run")
    config = {key: value for key, value in run.config.items() if key != "start_run"}
    run.config_path.write_text(json.dumps(config))
    run.flags_path.write_text(f"--start_run={tmp_path / 'start'}\n")
    assert _names(earlier_runs([RunFolder(run.path)])) == ["start"]
    run.flags_path.write_text("start_run\n")
    with pytest.raises(UserError, match=r"flags\.cfg is damaged"):
        earlier_runs([RunFolder(run.path)])
