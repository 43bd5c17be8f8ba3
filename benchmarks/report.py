"""Results of a benchmark: rows, with the machine and the versions that they were measured with."""

import dataclasses
import datetime
import importlib
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from dlens_tf.benchmarks import SUITES

from dlens_tf.errors import UserError, choose
from dlens_tf.evaluation.tables import markdown_table as markdown_table  # suites take it from here
from dlens_tf.io.files import check_readable
from dlens_tf.training.run_folder import environment, write_json

_SHOWN_VERSIONS = {
    "dlens_tf": "dlens_tf",
    "tensorflow": "TensorFlow",
    "keras": "Keras",
    "lenstronomy": "lenstronomy",
    "numpy": "NumPy",
    "python": "Python",
}


def suite_module(suite: str) -> ModuleType:
    """The module of a suite; raises a `UserError` if there is none."""
    return importlib.import_module(f"dlens_tf.benchmarks.{choose('suite', suite, SUITES)}")


def summary(rates: Sequence[float]) -> dict[str, Any]:
    """Median, lowest and highest of repeated measurements, JSON-ready, with all of them."""
    return {
        "median": statistics.median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "rates": list(rates),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _machine() -> dict[str, Any]:
    return {
        **environment(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30,
        "load": os.getloadavg()[0],
    }


@dataclasses.dataclass
class Report:
    """Results of one run of a suite.

    Attributes:
      suite: one of `SUITES`.
      settings: the suite's options.
      machine: hardware and versions, and how busy the machine was before the run.
      date: of the start, ISO 8601, UTC.
      rows: what the suite yielded.
      complete: whether the run came to its end.
    """

    suite: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    date: str
    rows: list[dict[str, Any]]
    complete: bool = False

    @classmethod
    def begin(cls, suite: str, options: Any) -> "Report":
        """An empty report of a run that starts now."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(suite, dataclasses.asdict(options), _machine(), now, [])

    @classmethod
    def read(cls, path: Path) -> "Report":
        """Reads what `write` wrote; raises a `UserError` if it is anything else."""
        check_readable(path)
        try:
            report = cls(**json.loads(path.read_text(encoding="utf-8")))
            report.markdown()
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise UserError(f"{path} is not a result of tools/benchmark.py") from error
        return report

    def write(self, path: Path) -> None:
        """Writes JSON, under a temporary name first."""
        write_json(path, dataclasses.asdict(self))

    def markdown(self) -> str:
        """The suite's table, with the machine below it."""
        machine = self.machine
        versions = [f"{shown} {machine[name]}" for name, shown in _SHOWN_VERSIONS.items()]
        commit = machine["git_commit"]
        if commit:
            versions[0] += f" ({commit[:9]}{'+changes' * commit.endswith('+changes')})"
        parts = [
            suite_module(self.suite).table(self),
            f"Machine: {machine['cores']} cores, {machine['processor']}, "
            f"{machine['memory_gb']:.0f} GB, {machine['machine']}; {', '.join(versions)}; "
            f"{self.date[:10]}; load before the run {machine['load']:.1f}.",
        ]
        if not self.complete:
            parts.append("The run was interrupted: these are not all results.")
        return "\n\n".join(parts)


def _earlier_rows(earlier: Report, report: Report, path: Path) -> list[dict[str, Any]]:
    """Rows of a run that this one goes on with; raises a `UserError` if it can't."""
    for name, old, new in (
        ("suite", earlier.suite, report.suite),
        ("seed", earlier.settings.get("seed"), report.settings.get("seed")),
    ):
        if old != new:
            raise UserError(f"{path} holds results of {name} {old}, not {new}; name another file")
    return list(earlier.rows)


def measure(suite: str, options: Any, output: Path | None) -> Report:
    """Runs a suite.

    Args:
      suite: one of `SUITES`.
      options: the suite's `Options`.
      output: JSON file, written anew after each row; None for none. A suite that `RESUMES` goes
        on where the run that wrote it stopped.

    Returns:
      The results. After Ctrl-C those so far, not `complete`.

    Raises:
      UserError: from the suite, or if `output` can't be written.
    """
    report = Report.begin(suite, options)
    module = suite_module(suite)
    if getattr(module, "RESUMES", False) and output and output.exists():
        report.rows = _earlier_rows(Report.read(output), report, output)
        rows = module.run(options, tuple(report.rows))
    else:
        rows = module.run(options)
    try:
        for row in rows:
            report.rows.append(row)
            if output:
                report.write(output)
        report.complete = True
        if output:
            report.write(output)
    except KeyboardInterrupt:
        rows.close()  # ends what the suite has started
    return report
