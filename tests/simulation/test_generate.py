import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dlens_tf.errors import UserError
from dlens_tf.parameters import Choice, ParameterSet, Uniform
from dlens_tf.simulation import generate
from dlens_tf.simulation.generate import plan, read_block, run_blocks, simulate_block
from dlens_tf.simulation.recipes import CLASSES, get_recipe
from dlens_tf.simulation.simulator import Simulator

RECIPE = "model_iii_instrument"
KINDS = get_recipe(RECIPE).classes


@pytest.fixture
def blocks(monkeypatch):
    """Six small blocks: two of each class."""
    monkeypatch.setattr(generate, "BLOCK_SIZE", 3)
    return plan(RECIPE, KINDS, seed=5, start=100, num_per_class=5)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_plan_covers_every_example_once(blocks):
    examples = [(b.dm_class, i) for b in blocks for i in range(b.start, b.stop)]
    assert len(examples) == sum(map(len, blocks)) == 15
    assert set(examples) == {(c, i) for c in KINDS for i in range(100, 105)}
    assert [b.dm_class for b in blocks] == [*KINDS, *KINDS]


def test_file_names_tell_requests_apart(blocks):
    other = plan(RECIPE, KINDS, seed=6, start=100, num_per_class=5)
    recipe = plan("model_iii", KINDS, seed=5, start=100, num_per_class=5)
    fast = plan(RECIPE, KINDS, seed=5, start=100, num_per_class=5, engine="fast")
    batch = [dataclasses.replace(block, batch=4) for block in fast]
    names = [b.file_name for b in [*blocks, *other, *recipe, *fast, *batch]]
    assert len(set(names)) == len(names)


def test_block_holds_what_simulate_gives(blocks):
    simulator = Simulator(get_recipe(RECIPE))
    for block in blocks[:3]:
        arrays = simulate_block(block)
        for row, index in enumerate(range(block.start, block.stop)):
            lens = simulator.simulate(block.dm_class, 5, index)
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
    (tmp_path / "two" / f".{blocks[1].file_name}.1.partial").write_bytes(b"half")
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


def test_blocks_of_the_fast_engine_are_parts_of_whole_batches():
    """A block that its split cuts short has the bytes of the whole one."""
    whole = generate.Block(RECIPE, "axion", 5, 100, 104, "fast", batch=4)
    part = dataclasses.replace(whole, stop=102)
    arrays, first = simulate_block(whole), simulate_block(part)
    assert len(first["image"]) == 2 and set(first) == set(arrays)
    for key, values in first.items():
        np.testing.assert_array_equal(values, arrays[key][:2], err_msg=key)
    reference = simulate_block(dataclasses.replace(part, engine="lenstronomy"))
    # The same noise on models that agree to 1e-4 of the peak.
    peak = np.abs(reference["image"]).max()
    np.testing.assert_allclose(first["image"], reference["image"], rtol=0.0, atol=2e-4 * peak)
    for name in get_recipe(RECIPE).class_parameters("axion").names:
        key = f"parameters/{name}"
        np.testing.assert_array_equal(first[key], reference[key], err_msg=name)


@pytest.mark.slow
def test_workers_of_the_fast_engine_leave_no_trace(tmp_path, monkeypatch, capfd):
    """Whatever threads and devices this process has, they write the same bytes, in silence."""
    monkeypatch.setattr(generate, "BLOCK_SIZE", 3)
    blocks = plan(RECIPE, KINDS, seed=5, start=100, num_per_class=5, engine="fast")
    for workers in (1, 2):
        assert sum(run_blocks(blocks, tmp_path / str(workers), workers)) == 15
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert capfd.readouterr() == ("", "")


def test_examples_leave_out_what_the_data_set_has_not(blocks):
    block = blocks[KINDS.index("axion")]
    arrays = simulate_block(block)
    parameters = get_recipe(RECIPE).shared_parameters
    examples = list(generate.block_examples(block, arrays, parameters))
    assert [key for key, _ in examples] == ["axion_100", "axion_101", "axion_102"]
    for i, (_, example) in enumerate(examples):
        assert set(example) == {"image", "label", "parameters", "metadata"}
        assert set(example["parameters"]) == set(parameters.names)
        assert example["parameters"]["source_x"] == arrays["parameters/source_x"][i]


def test_choices_become_classes():
    prior = Choice(6.0, 9.0, 7)
    parameters = ParameterSet.from_priors({"log10_m_cut": prior, "theta_E": Uniform(1.0, 2.0)})
    block = generate.Block(RECIPE, "cdm", 0, 0, 3)
    arrays = {
        "parameters/log10_m_cut": np.float32([6.5, 9.0, 6.0]),
        "parameters/theta_E": np.float32([1.0, 1.5, 2.0]),
    }
    examples = [example for _, example in generate.block_examples(block, arrays, parameters)]
    assert [example["classes"] for example in examples] == [
        {"log10_m_cut": 1}, {"log10_m_cut": 6}, {"log10_m_cut": 0},
    ]  # fmt: skip


def test_galaxies_for_a_recipe_without_are_refused():
    with pytest.raises(UserError, match=r"takes no galaxies; leave out --galaxies=/x"):
        generate.source_galaxies(get_recipe(RECIPE), "/x")
    assert generate.source_galaxies(get_recipe(RECIPE), None) is None


def test_failing_worker_is_heard(tmp_path):
    bad = [generate.Block(RECIPE, "wimp", 0, i, i + 1) for i in range(2)]
    with pytest.raises(Exception, match="unknown class 'wimp'"):
        list(run_blocks(bad, tmp_path, workers=2))
    assert not list(tmp_path.iterdir())


# Far more blocks than are simulated before the test is over.
ENDLESS = f"""
import signal
import sys
from pathlib import Path
from dlens_tf.errors import UserError
from dlens_tf.simulation import generate
from dlens_tf.simulation.generate import plan, run_blocks
if __name__ == "__main__":
    signal.alarm(120)  # ends it where the test can't
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
    try:
        deadline = time.monotonic() + 60
        while not list(folder.glob("*.npz")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield process, folder, children(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group, which its workers are in
        process.communicate(timeout=10)


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
