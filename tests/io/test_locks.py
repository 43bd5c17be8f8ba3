import os
import signal
import subprocess
import sys

import pytest

from dlens_tf.errors import UserError
from dlens_tf.io.locks import exclusive

HOLD = """
import sys, time
from pathlib import Path
from dlens_tf.io.locks import exclusive
with exclusive(Path(sys.argv[1]), "work"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_second_process_is_refused(holder, tmp_path):
    message = rf"work is under way already \(process {holder.pid} on .*, lock file .*/lock\)"
    with pytest.raises(UserError, match=message), exclusive(tmp_path / "lock", "work"):
        raise AssertionError("both hold the lock")
    assert (tmp_path / "lock").exists()


def test_killed_holder_is_no_obstacle(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "lock").exists()
    with exclusive(tmp_path / "lock", "work"):
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()
    assert not list(tmp_path.iterdir())


def test_released_also_by_failure(tmp_path):
    with pytest.raises(KeyError), exclusive(tmp_path / "lock", "work"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with exclusive(tmp_path / "lock", "work"):
        pass


def test_folder_that_is_missing(tmp_path):
    with (
        pytest.raises(UserError, match=r"can't lock .*: No such file"),
        exclusive(tmp_path / "none" / "lock", "work"),
    ):
        pass


COUNT = """
import sys, time
from pathlib import Path
from dlens_tf.errors import UserError
from dlens_tf.io.locks import exclusive
folder, end, done = Path(sys.argv[1]), time.monotonic() + 2.0, 0
while time.monotonic() < end:
    try:
        with exclusive(folder / "lock", "work"):
            number = int((folder / "number").read_text())
            (folder / "number").write_text(str(number + 1))
            done += 1
    except UserError:
        pass
print(done)
"""


def test_no_two_hold_it_at_once(tmp_path):
    """Also where one opens the file that another is about to remove."""
    (tmp_path / "number").write_text("0")
    command = [sys.executable, "-c", COUNT, tmp_path]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    done = [int(process.communicate(timeout=30)[0]) for process in processes]
    assert min(done) > 10
    assert (tmp_path / "number").read_text() == str(sum(done))
