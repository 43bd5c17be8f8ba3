"""How fast a bundle answers: in process, and by the local server's REST and gRPC.

Beside it, a plain loop of Keras's `model.predict`. What is compared takes turns. The model that is
asked in process, the clients and the servers have a process each, so that they share the cores, as
on one machine they do, but not an interpreter. There are two servers: of one joins requests to
batches, the other does not.
"""

import contextlib
import dataclasses
import operator
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from dlens_tf.benchmarks import serving_worker as worker
from dlens_tf.benchmarks.cores import available
from dlens_tf.benchmarks.processes import fresh_process, peak_memory_mb, result
from dlens_tf.benchmarks.report import Report, markdown_table
from dlens_tf.benchmarks.serving_worker import (
    BASE64,
    GRPC,
    JSON,
    KERAS,
    MODEL,
    PREDICTOR,
    SIGNATURE,
    VERSION,
    Measured,
    Start,
)
from tqdm import tqdm

from dlens_tf import hub
from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import EXTRA, GOLDEN

JOINED, ALONE = "micro-batching", "one by one"
"""What the two servers do with requests that come together."""
START, END, ONE, BATCHES, CLIENTS = "start", "end", "one image", "batches", "clients"
THREADS = "threads"
"""Parts of the measurement, a row's `part`."""
ALL_CORES, SINGLE = "one for each core", "one"
"""Threads that TensorFlow gives to an operation."""
PERCENTILES = (50, 95, 99)
_ADDRESSES = re.compile(r"REST and page at (http://\S+), gRPC at (\S+)\.")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to ask and how often.

    Attributes:
      model: a ready-to-use model's name, or the path of a bundle with its run's model.keras.
      seconds: that a measurement lasts.
      repeats: measurements of each way.
      concurrency: numbers of clients that ask at the same time.
      batch_sizes: numbers of images in a request.

    Raises:
      UserError: if a number of clients or images is none.
    """

    model: str = "axion_model_ii"
    seconds: float = 2.0
    repeats: int = 3
    concurrency: Sequence[int] = (1, 4, 16)
    batch_sizes: Sequence[int] = (1, 8, 32)

    def __post_init__(self):
        for name in ("concurrency", "batch_sizes"):
            numbers = getattr(self, name)
            if not numbers or min(numbers) < 1:
                given = ",".join(map(str, numbers))
                raise UserError(f"--{name} needs numbers of at least 1, not '{given}'")


class _Server(NamedTuple):
    process: int
    urls: Mapping[str, str]
    """By protocol."""
    start: Start


def _find(model: str) -> tuple[Path, Path]:
    """The bundle and the model.keras of a model."""
    bundle = hub.find_model(model).resolve()
    if not (bundle / EXTRA / GOLDEN).is_file():
        raise UserError(f"{bundle} has no {EXTRA}/{GOLDEN}; export it again with tools/export.py")
    # Beside a published bundle, and in the run folder above an export folder.
    for folder in (bundle.parent, bundle.parent.parent):
        if (folder / hub.WEIGHTS).is_file():
            return bundle, folder / hub.WEIGHTS
    raise UserError(f"{bundle} has no {hub.WEIGHTS} beside it or in its run folder to compare with")


@contextlib.contextmanager
def _serve(base: Path, max_batch_size: int) -> Iterator[_Server]:
    """tools/serve.py, once it is ready."""
    flags = {"model_base": base, "model_name": MODEL, "max_batch_size": max_batch_size}
    flags |= {"rest_port": 0, "grpc_port": 0, "poll_seconds": 0}
    command = [sys.executable, "-m", "dlens_tf.tools.serve"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stdout.readline, "")
            found = next(filter(None, map(_ADDRESSES.search, lines)), None)
            if found is None:
                raise UserError("the server ended before it was ready; what it says is above")
            seconds, rest = time.perf_counter() - begin, found[1]
            urls = {JSON: rest, BASE64: rest, GRPC: f"grpc://{found[2]}"}
            yield _Server(process.pid, urls, Start(seconds, peak_memory_mb(process.pid)))
        finally:
            process.kill()


class _Way(NamedTuple):
    """What is measured in turns with others, and the fields of its row."""

    fields: dict[str, Any]
    measure: Callable[[], Measured]


class _Ways:
    """Makes `_Way`s.

    Args:
      options: of the suite.
      bundle: with the images.
      asked: processes that have loaded the model, by the threads of an operation.
      asking: process of the clients.
      servers: by what they do with requests.
    """

    def __init__(
        self,
        options: Options,
        bundle: Path,
        asked: Mapping[str, ProcessPoolExecutor],
        asking: ProcessPoolExecutor,
        servers: Mapping[str, _Server],
    ):
        self._seconds = options.seconds
        self._bundle = bundle
        self._asked = asked
        self._asking = asking
        self._servers = servers

    def here(
        self, part: str, way: str, images: int, callers: int = 1, threads: str = ALL_CORES
    ) -> _Way:
        """In the process of the model."""
        asked = worker.images_of(self._bundle, images)
        fields = {"part": part, "way": way, "images": images, "clients": callers, "server": None}
        arguments = (way, asked, callers, self._seconds)
        return _Way(
            fields | {"threads": threads},
            lambda: _call(self._asked[threads], worker.measure, *arguments),
        )

    def there(self, part: str, protocol: str, images: int, clients: int, server: str) -> _Way:
        """By a server."""
        asked, url = worker.images_of(self._bundle, images), self._servers[server].urls[protocol]
        fields = {"part": part, "way": protocol, "images": images}
        arguments = (protocol, url, asked, clients, self._seconds)
        return _Way(
            fields | {"clients": clients, "server": server},
            lambda: _call(self._asking, worker.measure_server, *arguments),
        )


def _call(pool: ProcessPoolExecutor, function: Callable, *arguments: Any) -> Any:
    return result(pool.submit(function, *arguments), "fewer --batch_sizes take less memory")


def statistics_of(measured: Measured, images: int) -> dict[str, float]:
    """Percentiles of the latency in ms, and images a second."""
    percentiles = 1000.0 * np.percentile(measured.latencies, PERCENTILES)
    found = {f"p{p}": float(value) for p, value in zip(PERCENTILES, percentiles, strict=True)}
    return found | {"rate": images * len(measured.latencies) / measured.seconds}


def _in_turns(ways: Sequence[_Way], repeats: int, progress: tqdm) -> Iterator[dict[str, Any]]:
    """Measures ways by turns; a row for each: medians of the repeats, and all of these."""
    turns: list[list[dict[str, float]]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, own in zip(ways, turns, strict=True):
            progress.set_postfix_str(f"{way.fields['part']}, {way.fields['way']}")
            own.append(statistics_of(way.measure(), way.fields["images"]))
            progress.update()
    for way, own in zip(ways, turns, strict=True):
        medians = {name: statistics.median(turn[name] for turn in own) for name in own[0]}
        yield way.fields | medians | {"turns": own}


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Measures all ways; yields a row for each, and for what it takes to start and to go on."""
    bundle, weights = _find(options.model)
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (base / str(VERSION)).symlink_to(bundle)
        asked = stack.enter_context(fresh_process(worker.start))
        loaded = _call(asked, worker.load_bundle, bundle)
        yield {"part": START, "what": SIGNATURE, **loaded._asdict()}
        _call(asked, worker.load_keras, weights)
        servers = {}
        for name, most in ((JOINED, 32), (ALONE, 1)):
            servers[name] = stack.enter_context(_serve(base, most))
        yield {"part": START, "what": "server", **servers[JOINED].start._asdict()}
        asking = stack.enter_context(fresh_process(worker.start))
        single = stack.enter_context(fresh_process(worker.start, 1))
        _call(single, worker.load_bundle, bundle)
        ways = _Ways(options, bundle, {ALL_CORES: asked, SINGLE: single}, asking, servers)
        groups = [
            [ways.here(ONE, way, 1) for way in (KERAS, PREDICTOR, SIGNATURE)]
            + [ways.there(ONE, protocol, 1, 1, JOINED) for protocol in (GRPC, BASE64, JSON)]
        ]
        for size in options.batch_sizes:
            own = [ways.there(BATCHES, protocol, size, 1, JOINED) for protocol in (GRPC, BASE64)]
            groups.append([ways.here(BATCHES, SIGNATURE, size), *own])
        for size in options.batch_sizes:
            for callers in dict.fromkeys((1, len(available()))):
                groups.append(
                    [
                        ways.here(THREADS, SIGNATURE, size, callers, threads)
                        for threads in (SINGLE, ALL_CORES)
                    ]
                )
        for clients in options.concurrency:
            groups.append(
                [
                    ways.there(CLIENTS, protocol, 1, clients, server)
                    for protocol in (GRPC, BASE64)
                    for server in servers
                ]
            )
        total = options.repeats * sum(map(len, groups))
        with tqdm(total=total, desc="measure", unit="turn") as progress:
            for group in groups:
                yield from _in_turns(group, options.repeats, progress)
        yield {
            "part": END,
            "what": "server",
            "memory_mb": peak_memory_mb(servers[JOINED].process),
        }


def _paired(compare: Callable[[float, float], float], name: str, row: dict, other: dict) -> float:
    """Median of what a number of a row is to that of another in the same turn."""
    pairs = zip(row["turns"], other["turns"], strict=True)
    return statistics.median(compare(turn[name], another[name]) for turn, another in pairs)


def _starts(rows: Sequence[dict]) -> str:
    lines = [
        [row["what"], f"{row['seconds']:.1f} s", f"{row['memory_mb']:,.0f} MB"] for row in rows
    ]
    return markdown_table(["start", "until it answers", "memory"], lines)


def _one_image(rows: Sequence[dict]) -> str:
    by_way = {row["way"]: row for row in rows}
    lines = []
    for way, row in by_way.items():
        added = _paired(operator.sub, "p50", row, by_way[SIGNATURE])
        faster = _paired(operator.truediv, "p50", by_way[KERAS], row)
        latencies = [f"{row[f'p{p}']:.1f}" for p in PERCENTILES]
        lines.append([way, *latencies, f"{row['rate']:,.0f}", f"{added:+.1f}", f"{faster:.1f}×"])
    header = ["one image, one client", *(f"p{p}, ms" for p in PERCENTILES), "images/s"]
    header += ["p50 beyond that in process, ms", "p50 below Keras's"]
    return markdown_table(header, lines)


def _batches(rows: Sequence[dict]) -> str:
    lines = []
    for size in dict.fromkeys(row["images"] for row in rows):
        own = [row for row in rows if row["images"] == size]
        cells = [cell for row in own for cell in (f"{row['rate']:,.0f}", f"{row['p50']:.1f}")]
        lines.append([str(size), *cells])
    header = ["images in a request"]
    for way in dict.fromkeys(row["way"] for row in rows):
        header += [f"{way}: images/s", "p50, ms"]
    return markdown_table(header, lines)


def _pairs(rows: Sequence[dict], keys: Mapping[str, str], names: Sequence[str]) -> str:
    """Rows two by two, and the ratio of their rates; `keys` tell the pairs apart."""
    lines = []
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        line = [str(first[key]) for key in keys]
        for row in (first, second):
            latencies = " / ".join(f"{row[f'p{p}']:.1f}" for p in PERCENTILES)
            line += [f"{row['rate']:,.0f}", latencies]
        lines.append([*line, f"{_paired(operator.truediv, 'rate', first, second):.1f}×"])
    header = list(keys.values())
    for name in names:
        header += [f"{name}: images/s", "p50 / p95 / p99, ms"]
    return markdown_table([*header, "images/s, ratio"], lines)


def _threads(rows: Sequence[dict]) -> str:
    keys = {"images": "images in a call", "clients": "callers"}
    return _pairs(rows, keys, [f"threads of an operation: {name}" for name in (SINGLE, ALL_CORES)])


def _clients(rows: Sequence[dict]) -> str:
    return _pairs(rows, {"clients": "clients", "way": "protocol"}, (JOINED, ALONE))


_TABLES = {
    START: _starts,
    ONE: _one_image,
    BATCHES: _batches,
    THREADS: _threads,
    CLIENTS: _clients,
}


def table(report: Report) -> str:
    """Start, one image, several images in a request, several clients, and memory at the end."""
    settings = report.settings
    texts = [
        f"{settings['model']}, {settings['repeats']} × {settings['seconds']:g} s each: medians of "
        "each measurement's percentiles and rate"
    ]
    for part, make in _TABLES.items():
        rows = [row for row in report.rows if row["part"] == part]
        if rows:
            texts.append(make(rows))
    memory = [f"{row['memory_mb']:,.0f} MB" for row in report.rows if row["part"] == END]
    texts += [f"Highest memory of the server: {megabytes}." for megabytes in memory]
    return "\n\n".join(texts)
