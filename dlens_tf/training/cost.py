"""What a training has cost, and what each image brought: read from a run's own records."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from dlens_tf.errors import UserError
from dlens_tf.training.run_folder import RunFolder, read_flags


@dataclasses.dataclass(frozen=True)
class TrainingCost:
    """Cost of a training.

    Attributes:
      images: images seen, each as often as it was seen.
      distinct_images: images that had to be simulated, each counted once; None if unknown.
      steps: updates of the weights.
      batch_size: images in an update; of an ensemble, of its first member.
      minutes: time spent in updates, from the recorded rate, and in computing the outputs of a
        front end that are kept; validation comes on top.
      front_end_minutes: the latter part; 0 without, None if unknown.
      machine: processors or GPUs, in words.
      curve: the validation error on the way: {"images", "mae": {parameter: value}}.
      start: of the run that lens fits start from, which comes on top, without a curve; None
        without one, or if its folder is gone.
    """

    images: int
    distinct_images: int | None
    steps: int
    batch_size: int
    minutes: float
    front_end_minutes: float | None
    machine: str
    curve: tuple[dict[str, Any], ...]
    start: "TrainingCost | None"


def training_cost(run: RunFolder) -> TrainingCost | None:
    """The cost of a run; None if it is not known.

    That of an ensemble is the sum of its members', without a curve, as long as their folders are
    there; what they share counts once.

    Raises:
      UserError: if the run's records are damaged.
    """
    runs = _trained(run)
    if not runs or not all(r.config_path.is_file() and r.metrics_path.is_file() for r in runs):
        return None
    costs = [_updates(trained) for trained in runs]
    starts = {}
    for trained in runs:
        start = RunFolder(trained.config.get("start_run") or trained.path)
        if start.path != trained.path and start.config_path.is_file():
            starts[start.path.resolve()] = start
    fills = _fill_minutes(runs)
    return dataclasses.replace(
        costs[0] if len(costs) == 1 else _sum(costs),
        distinct_images=_distinct(runs, costs),
        minutes=sum(cost.minutes for cost in costs) + (fills or 0.0),
        front_end_minutes=fills,
        start=_start_cost(list(starts.values())),
    )


def _trained(run: RunFolder) -> list[RunFolder]:
    """The run, or those that it is combined from."""
    if "members" not in run.config:
        return [run]
    members = [RunFolder(member["run"]) for member in run.config["members"]]
    return [r for m in members for r in (_trained(m) if m.config_path.is_file() else [m])]


def _start_cost(starts: Sequence[RunFolder]) -> TrainingCost | None:
    costs = [cost for start in starts if (cost := training_cost(start))]
    if not costs:
        return None
    if len(costs) == 1:
        return dataclasses.replace(costs[0], curve=())
    return _sum(costs)


def _fill_minutes(runs: Sequence[RunFolder]) -> float | None:
    """Time to compute kept outputs of front ends, once for those that share them."""
    fills = {}
    for run in runs:
        if run.cache == "front_end":
            folder = run.config.get("front_end_dir", str(run.path))
            fills[folder] = run.config.get("front_end_seconds")
    return None if None in fills.values() else sum(fills.values()) / 60.0


def _distinct(runs: Sequence[RunFolder], costs: Sequence[TrainingCost]) -> int | None:
    """Images that had to be simulated, once for those that train on the same."""
    most: dict[tuple, int] = {}
    for run, cost in zip(runs, costs, strict=True):
        config, number = run.config, cost.images
        is_stored = config.get("data", "dataset") == "dataset"
        if is_stored or run.cache == "front_end":
            if config.get("training_examples") is None:
                return None
            number = min(number, config["training_examples"])
        # Simulated images are those of the run's seed.
        source = (config["dataset"], config["config"], config["dataset_version"])
        key = (*source, None if is_stored else config["seed"], config.get("dataset_seed"))
        most[key] = max(most.get(key, 0), number)
    return sum(most.values())


def _updates(run: RunFolder) -> TrainingCost:
    """The cost of a run's updates alone."""
    try:
        batch_size = int(read_flags(run.flags_path)["batch_size"][0])
        lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
        seconds, timed, curve = 0.0, 0, []
        for line in lines:
            images = line["step"] * batch_size
            if line["split"] == "train":
                seconds += (images - timed) / line["images_per_second"]
                timed = images
            else:
                mae = {k.removeprefix("mae/"): v for k, v in line.items() if k.startswith("mae/")}
                curve.append({"images": images, "mae": mae})
        steps = max(line["step"] for line in lines)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{run.metrics_path} or {run.flags_path} is damaged") from error
    return TrainingCost(
        images=steps * batch_size,
        distinct_images=None,
        steps=steps,
        batch_size=batch_size,
        minutes=seconds / 60.0,
        front_end_minutes=0.0,
        machine=_machine(run),
        curve=tuple(curve),
        start=None,
    )


def _sum(costs: Sequence[TrainingCost]) -> TrainingCost:
    return TrainingCost(
        images=sum(cost.images for cost in costs),
        distinct_images=None,
        steps=sum(cost.steps for cost in costs),
        batch_size=costs[0].batch_size,
        minutes=sum(cost.minutes for cost in costs),
        front_end_minutes=None,
        machine=", ".join(dict.fromkeys(cost.machine for cost in costs)),
        curve=(),
        start=None,
    )


def format_minutes(minutes: float) -> str:
    """ "42 seconds", "7 minutes", "2.5 hours": what a training lasted."""
    if minutes < 1.5:
        return f"{60.0 * minutes:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 100.0 else f"{minutes / 60.0:.1f} hours"


def _machine(run: RunFolder) -> str:
    try:
        environment = json.loads(run.environment_path.read_text())
        gpus, cpus = environment.get("gpus", []), environment["cpus"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{run.environment_path} is damaged") from error
    if gpus:
        return f"{len(gpus)} × {gpus[0]}"
    return f"{cpus} CPU cores" if cpus != 1 else "1 CPU core"
