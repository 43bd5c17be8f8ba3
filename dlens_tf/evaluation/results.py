"""The table of results: small JSON files that are kept, and the document that they are printed in.

`add_result` extracts from an evaluated run what a table needs, into

    docs/results/<data set's configuration>/<row>.json
    docs/results/<data set's configuration>/<row>.flags    the flagfile of the training

and `print_results` prints docs/results.md's tables from all of them, between the comments

    <!-- results: <configuration> -->
    <!-- end of results -->

with the constant predictor, the linear regression, published numbers and the information limit
beside the models. What stands outside of the comments is written by hand.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dlens_tf.errors import UserError
from dlens_tf.evaluation import baselines, metrics
from dlens_tf.evaluation.report import format_estimate, write_bytes
from dlens_tf.evaluation.tables import markdown_table
from dlens_tf.io.files import atomic_write
from dlens_tf.parameters import Parameter, ParameterSet
from dlens_tf.simulation.recipes import RECIPES, Recipe
from dlens_tf.training.cost import format_minutes, training_cost
from dlens_tf.training.run_folder import (
    RunFolder,
    portable_flags,
    read_flags,
    write_flags,
    write_json,
)

FORMAT_VERSION = 1
MAX_PUBLISHED = 5
COLUMNS = (*metrics.COVERAGE, "crps", "nll")
"""Metrics in the table, after the MAE."""

SNR_COVERAGE = "largest coverage error in a bin of S/N"
"""Title of the column; the largest over bins of signal-to-noise and probabilities."""

_BASELINES = ("centre", "linear")
_BINNED = ("mae", "bias", *metrics.COVERAGE)
_PLACE = re.compile(
    r"(?P<start><!-- results: (?P<config>\w+) -->\n)(?P<text>.*?)(?P<end><!-- end of results -->)",
    re.DOTALL,
)


def add_result(run_dir: str | Path, name: str, folder: str | Path) -> Path:
    """Keeps what the table needs of an evaluated run, and what it takes to make the row again.

    Args:
      run_dir: the run's folder, with evaluation/test.json.
      name: "<configuration of the data set>/<row>".
      folder: of the results.

    Returns:
      The JSON file, replaced if there was one.

    Raises:
      UserError: if the run is not evaluated, or on another data set than `name` says.
    """
    run = RunFolder.open(run_dir)
    evaluation = run.read_evaluation()
    config, _, row = name.partition("/")
    dataset = evaluation["dataset"]
    if not re.fullmatch(r"[a-z0-9_]+", row):
        raise UserError(
            f"--as={name}: write <data set>/<row>, of lower-case letters, digits and underscores"
        )
    if dataset["config"] != config:
        raise UserError(f"--as={name}: {run.path} is evaluated on {dataset['config']}")
    path = Path(folder) / config / f"{row}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    cost, maps = training_cost(run), evaluation["recalibration"]
    result = {
        "format_version": FORMAT_VERSION,
        "name": row,
        **{k: evaluation["run"][k] for k in ("description", "num_parameters", "git_commit")},
        **{k: evaluation[k] for k in ("created", "dataset", "split", "num_examples", "bootstrap")},
        "recalibration": maps and {key: maps[key] for key in ("method", "split")},
        **_combination(run),
        "cost": dataclasses.asdict(cost) if cost else None,
        "parameters": {k: _extract(v) for k, v in evaluation["parameters"].items()},
    }
    if run.flags_path.is_file():
        flags = portable_flags(read_flags(run.flags_path), f"runs/{config}_{row}")
        write_flags(path.with_suffix(".flags"), flags)
    write_json(path, result)
    return path


def _combination(run: RunFolder) -> dict[str, Any]:
    """What a combined run is made of, as on any machine; {} for other runs."""
    if "members" not in run.config:
        return {}
    members = [f"runs/{Path(member['run']).name}" for member in run.config["members"]]
    return {"members": members, "tta": run.config["tta"]}


def _extract(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Of a parameter's evaluation: its metrics, also in bins, calibration and baselines."""

    def binned(bins: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**part, "metrics": {k: v for k, v in part["metrics"].items() if k in _BINNED}}
            for part in bins
        ]

    return {
        **{key: entry[key] for key in ("name", "prior", "metrics")},
        **{key: binned(entry[key]) for key in ("by_truth", "by_snr")},
        "calibration": {
            state: value and {"metrics": value["metrics"], "pit": value["pit"]}
            for state, value in (entry["calibration"] or {}).items()
        },
        "baselines": {
            row["kind"]: {"name": row["name"], "metrics": row["metrics"]}
            for row in entry["rows"]
            if row["kind"] in _BASELINES
        },
    }


@dataclasses.dataclass(frozen=True)
class Results:
    """The results on one data set.

    Attributes:
      config: the data set's configuration.
      rows: contents of the JSON files, by name.
    """

    config: str
    rows: Mapping[str, Mapping[str, Any]]

    @property
    def recipe(self) -> Recipe | None:
        return RECIPES.get(next(iter(self.rows.values()))["dataset"]["recipe"])

    @property
    def targets(self) -> ParameterSet:
        """All parameters that some row infers."""
        entries = {k: v for row in self.rows.values() for k, v in row["parameters"].items()}
        return ParameterSet.from_dicts(entries.values())


def read_results(folder: str | Path) -> list[Results]:
    """All results in a folder, sorted.

    Raises:
      UserError: if there are none, or a file is damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(folder).glob("*/*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format_version"] != FORMAT_VERSION:
                raise ValueError
            if (content["dataset"]["config"], content["name"]) != (path.parent.name, path.stem):
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no result, or of another version; add it again with tools/results.py"
            ) from error
        found.setdefault(path.parent.name, {})[path.stem] = content
    if not found:
        raise UserError(f"{folder} holds no results; add one with tools/results.py --add=<run_dir>")
    return [Results(config, rows) for config, rows in found.items()]


def results_table(results: Results, parameter: Parameter) -> str:
    """The Markdown table of one parameter: from the constant predictor to the information limit."""
    recipe = results.recipe
    rows = {k: r for k, r in results.rows.items() if parameter.name in r["parameters"]}
    entries = {k: r["parameters"][parameter.name] for k, r in rows.items()}
    limit = baselines.information_limit(recipe, parameter.name)
    best = {"value": limit.mae, "standard_error": limit.mae_error} if limit else None

    def line(name: str, values: Mapping[str, Any], *cost: str, worst: str = "") -> list[str]:
        over = format_estimate(metrics.ratio(values["mae"], best)) if best else ""
        cells = [format_estimate(values["mae"]), over]
        cells += [format_estimate(values[key]) if key in values else "" for key in COLUMNS]
        return [name, *cells, worst, *(cost or ("", "", "", ""))]

    # Baselines of the largest test set.
    largest = entries[max(rows, key=lambda name: rows[name]["num_examples"])]["baselines"]
    lines = [line(largest[k]["name"], largest[k]["metrics"]) for k in _BASELINES]
    published = baselines.published_results(recipe, parameter.name)[:MAX_PUBLISHED]
    for result in reversed(published):
        value = {"mae": {"value": result.mae, "standard_error": None}}
        lines.append(line(f"{result.model} (published)", value))
    # From the worst to the best.
    for name in sorted(rows, key=lambda k: -entries[k]["metrics"]["mae"]["value"]):
        entry, cost = entries[name], _cost(rows[name])
        worst = _worst_coverage(entry["by_snr"])
        lines.append(line(f"**`{name}`**", entry["metrics"], *cost, worst=worst))
    if limit:
        name, mae, _, *others = line("information limit", {"mae": best})
        lines.append([name, mae, "", *others])
    elif recipe and not recipe.has_noise:
        lines.append(["information limit", "0 (no noise)", *[""] * (len(lines[0]) - 2)])
    header = ["predictor", "MAE", "MAE / limit", *(metrics.TITLES[key] for key in COLUMNS)]
    header += [SNR_COVERAGE, "weights", "distinct images simulated", "images seen", "training"]
    keep = [i for i in range(len(header)) if any(row[i] for row in lines)]
    return markdown_table([header[i] for i in keep], [[row[i] for i in keep] for row in lines])


def _worst_coverage(bins: Iterable[Mapping[str, Any]]) -> str:
    errors = [
        {**found, "value": abs(found["value"] - level)}
        for part in bins
        for key, level in metrics.COVERAGE.items()
        if (found := part["metrics"].get(key))
    ]
    worst = max(errors, key=lambda error: error["value"], default=None)
    return format_estimate(worst) if worst else ""


def _cost(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    cost = row["cost"]
    if cost is None:
        return f"{row['num_parameters']:,}", "", "", ""
    duration = f"{format_minutes(cost['minutes'])}, {cost['machine']}"
    # Results of older versions say nothing of these three.
    if initial := cost.get("initial_minutes"):
        duration += f", of which {format_minutes(initial)} for the weights to begin with"
    if start := cost.get("start"):
        duration += f"; before, the network to start from: {format_minutes(start['minutes'])}"
    distinct = cost.get("distinct_images")
    shown = "" if distinct is None else f"{distinct:,}"
    return f"{row['num_parameters']:,}", shown, f"{cost['images']:,}", duration


def _text(results: Results, pictures: str) -> str:
    """What stands between the comments: tables, what they show, and the cost curve."""
    parts = []
    sizes = {row["num_examples"] for row in results.rows.values()}
    for parameter in results.targets:
        unit = metrics.difference_unit(parameter)
        tested = f"{max(sizes):,} test images"
        fewer = [
            f"`{name}` {row['num_examples']:,}"
            for name, row in results.rows.items()
            if row["num_examples"] < max(sizes)
        ]
        parts += [
            f"MAE and CRPS of `{parameter.name}`" + (f" in {unit}" if unit else "") + f", {tested}"
            + (f" ({', '.join(fewer)})" if fewer else "") + ".",
            results_table(results, parameter),
        ]  # fmt: skip
    described = [
        f"- `{k}`: {row['description']}{_made_of(row, results.config)}"
        for k, row in results.rows.items()
    ]
    parts.append("\n".join(described))
    if _curves(results, results.targets):
        parts.append(f"![Validation error against training images]({pictures}/{_picture(results)})")
    return "\n" + "\n\n".join(parts) + "\n\n"


def _made_of(row: Mapping[str, Any], config: str) -> str:
    """Members of a combined run, by their rows' names if they have such, and the turns."""
    if "members" not in row:
        return ""
    names = [Path(member).name.removeprefix(f"{config}_") for member in row["members"]]
    turns = "" if row["tta"] == "none" else f", turned by {row['tta']}"
    return f", of {', '.join(names)}{turns}"


def _picture(results: Results) -> str:
    return f"cost_{results.config}.png"


def _curves(results: Results, targets: Iterable[Parameter]) -> dict[str, dict[str, tuple]]:
    """(images, MAE) of each row's validations, by parameter and row; without empty ones."""
    curves: dict[str, dict[str, tuple]] = {}
    for parameter in targets:
        for name, row in results.rows.items():
            points = [
                (point["images"], point["mae"][parameter.name])
                for point in (row["cost"] or {"curve": []})["curve"]
                if parameter.name in point["mae"]
            ]
            if points:
                curves.setdefault(parameter.name, {})[name] = tuple(zip(*points, strict=True))
    return curves


def render_document(text: str, all_results: Iterable[Results], pictures: str = "images") -> str:
    """The document with its tables renewed.

    Args:
      text: the document.
      all_results: what to print.
      pictures: folder of the pictures, seen from the document.

    Raises:
      UserError: if the document has no place for a data set.
    """
    by_config = {results.config: results for results in all_results}
    places = [match["config"] for match in _PLACE.finditer(text)]
    for config in by_config:
        if places.count(config) != 1:
            raise UserError(
                f"the document needs one place for {config}: lines '<!-- results: {config} -->' "
                "and '<!-- end of results -->'"
            )

    def replaced(place: re.Match) -> str:
        results = by_config.get(place["config"])
        content = _text(results, pictures) if results else "\nNo results yet.\n\n"
        return place["start"] + content + place["end"]

    return _PLACE.sub(replaced, text)


def print_results(folder: str | Path, document: str | Path, pictures: str = "images") -> list[Path]:
    """Renews the tables of a document, and the cost curves beside it.

    Args:
      folder: of the results.
      document: Markdown, see the module's synopsis.
      pictures: folder of the pictures, seen from the document.

    Returns:
      The files that were written.
    """
    from dlens_tf.evaluation import plots

    document, all_results = Path(document), read_results(folder)
    text = render_document(_read(document), all_results, pictures)
    written = [document]
    for results in all_results:
        curves = _curves(results, results.targets)
        if curves:
            limits = {
                name: limit.mae
                for name in curves
                if (limit := baselines.information_limit(results.recipe, name))
            }
            figure = plots.cost_figure(curves, limits, results.targets)
            path = document.parent / pictures / _picture(results)
            write_bytes(path, plots.figure_to_png(figure))
            written.append(path)
    with atomic_write(document) as partial:
        partial.write_text(text, encoding="utf-8")
    return written


def check_results(folder: str | Path, document: str | Path, pictures: str = "images") -> None:
    """Raises a `UserError` unless a document's tables are what `print_results` would print."""
    document = Path(document)
    text = _read(document)
    if render_document(text, read_results(folder), pictures) != text:
        raise UserError(f"{document} is not what {folder} says; run python tools/results.py")


def _read(document: Path) -> str:
    try:
        return document.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"there is no document {document}") from error
