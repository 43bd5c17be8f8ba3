"""Several devices and several workers compute what one device computes.

A process can hold one strategy, so each run has its own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The worker named by the last argument, if any, asks to stop in step 4.
WORKER = """
import signal, sys
from dlens_tf.training import trainer
from dlens_tf.tools import train

interrupted = sys.argv.pop() == "interrupt"

class Bar(trainer.tqdm):
    steps_done = 0
    def update(self, n=1):
        self.steps_done += n
        if interrupted and self.steps_done == 4:
            signal.raise_signal(signal.SIGINT)

trainer.tqdm = Bar
train.entry()
"""


@pytest.fixture(scope="module")
def arguments(tiny_data_dir):
    """The flags of `make_options`; the clipping is at work in every step."""
    return [
        "--config=model_ii_instrument",
        f"--data_dir={tiny_data_dir}",
        "--targets=log10_m_axion,source_x",
        "--resnet_width=8",
        "--resnet_depth=1",
        "--resnet_stages=2",
        "--resnet_stem_stride=4",
        "--batch_size=8",
        "--epochs=2",
        "--clip_norm=0.01",
        "--log_every=2",
    ]


def test_two_devices_equal_one(
    run_tool, arguments, finished_run, read_metrics, assert_same_run, tmp_path
):
    done = run_tool(
        "train", *arguments, f"--run_dir={tmp_path / 'run'}", "--strategy=mirrored",
        "--logical_devices=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    norms = [line.get("gradient_norm") for line in read_metrics(tmp_path / "run")]
    assert min(norm for norm in norms if norm) > 0.01
    assert_same_run(tmp_path / "run", finished_run.path, tolerance=1e-5)


@pytest.mark.slow
def test_dropout_on_two_devices(run_tool, arguments, read_checkpoint, read_metrics, tmp_path):
    arguments = [
        *arguments, f"--run_dir={tmp_path / 'run'}", "--strategy=mirrored", "--logical_devices=2",
        "--dropout=0.5",
    ]  # fmt: skip
    done = run_tool("train", *arguments)
    assert done.returncode == 0, done.stderr
    seeds = [v for name, v in read_checkpoint(tmp_path / "run").items() if "seeds" in name]
    assert len(seeds) == 1 and seeds[0][1] == 6  # one draw a step
    # Goes on on one device.
    again = run_tool("train", *arguments, "--strategy=one_device", "--logical_devices=1")
    assert again.returncode == 0, again.stderr
    assert "resumed at step 6" in again.stdout


def _run_workers(arguments, interrupt: int | None = None) -> list[subprocess.Popen]:
    """Runs two workers to their end."""
    with ExitStack() as stack:
        # Held together, so that they differ.
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for held in sockets:
            held.bind(("localhost", 0))
        hosts = [f"localhost:{held.getsockname()[1]}" for held in sockets]
    workers = []
    for index in range(2):
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        workers.append(
            subprocess.Popen(
                [
                    sys.executable, "-c", WORKER, *arguments, "--strategy=multi_worker",
                    "interrupt" if interrupt == index else "",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=ROOT,
                env={**os.environ, "TF_CONFIG": json.dumps(config)},
            )
        )  # fmt: skip
    try:
        for worker in workers:
            worker.output, _ = worker.communicate(timeout=120)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return workers


@pytest.mark.slow
def test_two_workers_equal_one_device(arguments, finished_run, assert_same_run, tmp_path):
    workers = _run_workers([*arguments, f"--run_dir={tmp_path / 'run'}"])
    for worker in workers:
        assert worker.returncode == 0, worker.output
    assert_same_run(tmp_path / "run", finished_run.path, tolerance=1e-5)
    # The second worker writes nothing of its own.
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {path.name for path in finished_run.path.iterdir()}
    assert len(list((tmp_path / "run" / "logs" / "train").iterdir())) == 1
    assert "epoch 1" in workers[0].output and "epoch 1" not in workers[1].output


@pytest.mark.slow
def test_interrupting_one_worker_stops_both(arguments, finished_run, assert_same_run, tmp_path):
    arguments = [*arguments, f"--run_dir={tmp_path / 'run'}"]
    for worker in _run_workers(arguments, interrupt=1):
        assert worker.returncode == 128 + signal.SIGINT, worker.output
        assert "run the same command again to go on" in worker.output
    for worker in _run_workers(arguments):
        assert worker.returncode == 0, worker.output
        assert "resumed at step 5" in worker.output
    assert_same_run(tmp_path / "run", finished_run.path, tolerance=1e-5)
