import itertools
import json
import shutil
import threading

import numpy as np
import pytest
from dlens_tf.benchmarks import serving, serving_worker
from dlens_tf.benchmarks.report import Report
from dlens_tf.benchmarks.serving import statistics_of
from dlens_tf.benchmarks.serving_worker import Measured

from dlens_tf.errors import UserError

REST = ("REST, base64", "REST, JSON numbers")
IMAGES = np.zeros((1, 2, 2, 1), np.float32)


def test_statistics_of_a_measurement():
    latencies = [0.001 * k for k in range(101)]  # the k-th percent is k ms
    np.random.default_rng(0).shuffle(latencies)
    found = statistics_of(Measured(latencies, 4.0), 8)
    assert found == pytest.approx({"p50": 50.0, "p95": 95.0, "p99": 99.0, "rate": 8 * 101 / 4.0})


def test_clients_ask_at_the_same_time():
    together, connected = threading.Barrier(3), []

    def connect():
        connected.append(threading.get_ident())
        return lambda images: together.wait(timeout=60)  # breaks if one of them asks alone

    measured = serving_worker._measure(connect, IMAGES, 3, 0.0)
    assert len(set(connected)) == 3
    assert len(measured.latencies) == 3
    assert measured.seconds >= max(measured.latencies)


def test_the_first_request_is_not_counted(monkeypatch):
    clock = {"now": 0.0, "asked": 0}

    def ask(images):
        clock["asked"] += 1
        clock["now"] += 100.0 if clock["asked"] == 1 else 0.25

    monkeypatch.setattr(serving_worker.time, "perf_counter", lambda: clock["now"])
    measured = serving_worker._measure(lambda: ask, IMAGES, 1, 1.0)
    assert measured == Measured([0.25] * 4, 1.0)


def _row(part, way, latencies, rates, images=1, clients=1, server=None):
    turns = [
        {"p50": latency, "p95": 2 * latency, "p99": 3 * latency, "rate": rate}
        for latency, rate in zip(latencies, rates, strict=True)
    ]
    medians = {name: float(np.median([turn[name] for turn in turns])) for name in turns[0]}
    fields = {"part": part, "way": way, "images": images, "clients": clients, "server": server}
    return fields | medians | {"turns": turns}


ROWS = [
    {"part": "start", "what": "server", "seconds": 2.5, "memory_mb": 1234.0},
    # The second turn was disturbed, and with it all that is compared.
    _row("one image", serving_worker.KERAS, [40.0, 400.0, 40.0], [25.0, 2.5, 25.0]),
    _row("one image", serving_worker.SIGNATURE, [4.0, 40.0, 5.0], [250.0, 25.0, 200.0]),
    _row("one image", serving_worker.GRPC, [6.0, 60.0, 6.0], [166.0, 16.0, 166.0]),
    _row("batches", serving_worker.SIGNATURE, [8.0], [1000.0], images=8),
    _row("batches", serving_worker.GRPC, [10.0], [800.0], images=8),
    _row("threads", serving_worker.SIGNATURE, [4.0], [2000.0], images=8, clients=2),
    _row("threads", serving_worker.SIGNATURE, [8.0], [1000.0], images=8, clients=2),
    _row("clients", "gRPC", [20.0], [600.0], clients=16, server=serving.JOINED),
    _row("clients", "gRPC", [80.0], [150.0], clients=16, server=serving.ALONE),
    {"part": "end", "what": "server", "memory_mb": 1300.0},
]
SETTINGS = {"model": "some_model", "seconds": 2.0, "repeats": 3}


def test_table():
    text = serving.table(Report("serving", SETTINGS, {}, "", ROWS))
    assert text.startswith("some_model, 3 × 2 s each: ")
    assert "| server | 2.5 s | 1,234 MB |" in text
    # Compared turn by turn: the median of 10, 10, 8 and that of 2, 20, 1.
    assert "| Keras model.predict | 40.0 | 80.0 | 120.0 | 25 | +36.0 | 1.0× |" in text
    assert "| in process | 5.0 | 10.0 | 15.0 | 200 | +0.0 | 10.0× |" in text
    assert "| gRPC | 6.0 | 12.0 | 18.0 | 166 | +2.0 | 6.7× |" in text
    assert "| 8 | 1,000 | 8.0 | 800 | 10.0 |" in text
    threads = "| 8 | 2 | 2,000 | 4.0 / 8.0 / 12.0 | 1,000 | 8.0 / 16.0 / 24.0 | 2.0× |"
    assert threads in text
    clients = "| 16 | gRPC | 600 | 20.0 / 40.0 / 60.0 | 150 | 80.0 / 160.0 / 240.0 | 4.0× |"
    assert clients in text
    assert text.endswith("Highest memory of the server: 1,300 MB.")


def test_table_of_an_interrupted_run():
    text = serving.table(Report("serving", SETTINGS, {}, "", ROWS[:1]))
    assert text.endswith("| server | 2.5 s | 1,234 MB |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurrency=0"], "--concurrency needs numbers of at least 1, not '0'"),
        (["--batch_sizes=1,-2"], "--batch_sizes needs numbers of at least 1, not '1,-2'"),
        (["--batch_sizes=one"], "--batch_sizes needs whole numbers"),
        (["--model=no_model"], "unknown model 'no_model'; ready to use are"),
        (["--batch_size=2"], "--batch_size is no flag of --suite=serving"),
    ],
)
def test_bad_input_gives_one_line(run_tool, arguments, message):
    done = run_tool("benchmark", "--suite=serving", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_bundle_without_keras_model_or_images_is_refused(exported_run, tmp_path):
    bundle = exported_run / "export" / "1"
    assert serving._find(str(bundle)) == (bundle, exported_run / "model.keras")
    alone = shutil.copytree(bundle, tmp_path / "a" / "b" / "1")
    with pytest.raises(UserError, match="beside it or in its run folder to compare with"):
        serving._find(str(alone))
    (alone / "assets.extra" / "golden.npz").unlink()
    with pytest.raises(UserError, match=r"golden\.npz; export it again"):
        serving._find(str(alone))


@pytest.mark.slow
def test_all_ways_are_measured(exported_run, run_tool, tmp_path):
    output = tmp_path / "results.json"
    flags = ("--seconds=0", "--repeats=1", "--concurrency=2", "--batch_sizes=3")
    model = f"--model={exported_run / 'export'}"
    done = run_tool("benchmark", "--suite=serving", model, *flags, f"--output={output}")
    assert done.returncode == 0
    assert "warning" not in done.stderr.lower() and "Traceback" not in done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert {(row["part"], row.get("way"), row.get("server")) for row in rows} == {
        ("start", None, None),
        *(("one image", way, None) for way in ("Keras model.predict", "Predictor.predict")),
        ("one image", "in process", None),
        *(("one image", way, serving.JOINED) for way in ("gRPC", *REST)),
        ("batches", "in process", None),
        *(("batches", way, serving.JOINED) for way in ("gRPC", REST[0])),
        ("threads", "in process", None),
        *itertools.product(["clients"], ["gRPC", REST[0]], [serving.JOINED, serving.ALONE]),
        ("end", None, None),
    }
    assert all(0 < row["p50"] <= row["p99"] and row["rate"] > 0 for row in rows if "way" in row)
    threads = [row["threads"] for row in rows if row["part"] == "threads"]
    assert threads == [serving.SINGLE, serving.ALL_CORES] * (len(threads) // 2)
    starts = {row["what"]: row for row in rows if row["part"] == "start"}
    assert starts.keys() == {"in process", "server"}
    # TensorFlow alone takes more.
    assert min(row["memory_mb"] for row in rows if "memory_mb" in row) > 200
    assert Report.read(output).markdown() == done.stdout.strip()
