import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dlens_tf.simulation import generate
from dlens_tf.simulation.generate import plan, read_block, run_blocks, simulate_block
from dlens_tf.simulation.recipes import CLASSES, get_recipe
from dlens_tf.simulation.simulator import simulate

RECIPE = "model_iii_instrument"


@pytest.fixture
def blocks(monkeypatch):
    """Six small blocks: two of each class."""
    monkeypatch.setattr(generate, "BLOCK_SIZE", 3)
    return plan(RECIPE, CLASSES, seed=5, start=100, num_per_class=5)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_plan_covers_every_example_once(blocks):
    examples = [(b.dm_class, i) for b in blocks for i in range(b.start, b.stop)]
    assert len(examples) == sum(map(len, blocks)) == 15
    assert set(examples) == {(c, i) for c in CLASSES for i in range(100, 105)}
    assert [b.dm_class for b in blocks] == [*CLASSES, *CLASSES]


def test_file_names_tell_requests_apart(blocks):
    other = plan(RECIPE, CLASSES, seed=6, start=100, num_per_class=5)
    recipe = plan("model_iii", CLASSES, seed=5, start=100, num_per_class=5)
    names = [b.file_name for b in [*blocks, *other, *recipe]]
    assert len(set(names)) == len(names)


def test_block_holds_what_simulate_gives(blocks):
    for block in blocks[:3]:
        arrays = simulate_block(block)
        for row, index in enumerate(range(block.start, block.stop)):
            lens = simulate(get_recipe(RECIPE), block.dm_class, 5, index)
            np.testing.assert_array_equal(arrays["image"][row], lens.image)
            assert arrays["label"][row] == CLASSES.index(block.dm_class)
            for name, value in lens.parameters.items():
                assert arrays[f"parameters/{name}"][row] == np.float32(value)
            assert arrays["metadata/index"][row] == index
            assert arrays["metadata/snr"][row] == np.float32(lens.metadata["snr"])


def test_number_of_workers_and_interruptions_leave_no_trace(blocks, tmp_path):
    assert list(run_blocks(blocks, tmp_path / "one", workers=1)) == [3, 3, 3, 2, 2, 2]
    alone = contents(tmp_path / "one")
    assert set(alone) == {block.file_name for block in blocks}
    assert list(run_blocks(blocks, tmp_path / "two", workers=2)) == [3, 3, 3, 2, 2, 2]
    assert contents(tmp_path / "two") == alone
    # Half of it lost, one block half written.
    for block in blocks[1::2]:
        (tmp_path / "two" / block.file_name).unlink()
    (tmp_path / "two" / f"{blocks[1].file_name}.1.partial").write_bytes(b"half")
    assert sum(run_blocks(blocks, tmp_path / "two", workers=1)) == 15
    assert contents(tmp_path / "two") == alone


def test_finished_blocks_are_not_simulated_again(blocks, tmp_path, monkeypatch):
    list(run_blocks(blocks, tmp_path, workers=1))

    def fail(*_):
        raise AssertionError("simulated again")

    monkeypatch.setattr(generate, "simulate_block", fail)
    assert sum(run_blocks(blocks, tmp_path, workers=1)) == 15
    arrays = read_block(blocks[0], tmp_path)
    assert arrays["image"].shape == (3, 64, 64, 1) and arrays["image"].dtype == np.float32


def test_failing_worker_is_heard(tmp_path):
    bad = [generate.Block(RECIPE, "wimp", 0, i, i + 1) for i in range(2)]
    with pytest.raises(Exception, match="unknown class 'wimp'"):
        list(run_blocks(bad, tmp_path, workers=2))
    assert not list(tmp_path.iterdir())


# Far more blocks than are simulated before the test is over.
ENDLESS = f"""
import sys
from pathlib import Path
from dlens_tf.simulation import generate
from dlens_tf.simulation.generate import plan, run_blocks
if __name__ == "__main__":
    generate.BLOCK_SIZE = 10
    blocks = plan({RECIPE!r}, ["axion", "cdm"], 0, 0, 100_000)
    for _ in run_blocks(blocks, Path(sys.argv[1]), workers=2):
        pass
"""


def children(pid: int) -> list[int]:
    """The processes that a process has spawned to simulate."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if parent == pid and b"spawn_main" in command:
            found.append(int(status.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def endless(tmp_path):
    """A run that simulates for long, its folder and its two workers."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    folder = tmp_path / "blocks"
    process = subprocess.Popen(
        [sys.executable, tmp_path / "endless.py", folder],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.npz")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    workers = children(process.pid)
    yield process, folder, workers
    for pid in (process.pid, *filter(alive, workers)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=10)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_killed_worker_ends_the_run_with_a_line(endless):
    process, folder, workers = endless
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    _, messages = process.communicate(timeout=30)
    line = messages.splitlines()[-1]
    assert "UserError: a simulating process died (out of memory?); the same command" in line
    assert not any(map(alive, workers))
    assert list(folder.glob("*.npz"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_parent_leaves_no_process(endless, sent):
    process, _, workers = endless
    assert len(workers) == 2
    start = time.monotonic()
    os.kill(process.pid, sent)
    process.communicate(timeout=30)
    while any(map(alive, workers)) and time.monotonic() < start + 10:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    assert time.monotonic() < start + 10


def test_workers_need_no_tensorflow():
    code = (
        "import sys; import dlens_tf.simulation.generate as g\n"
        "g.simulate_block(g.Block('model_ii', 'no_sub', 0, 0, 1))\n"
        "assert 'tensorflow' not in sys.modules, 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
