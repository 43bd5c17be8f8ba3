"""What a training has cost, and what each image brought: read from a run's own records."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from dlens_tf.errors import UserError
from dlens_tf.training.lineage import LINKS, earlier_runs
from dlens_tf.training.run_folder import RunFolder, read_flags


@dataclasses.dataclass(frozen=True)
class TrainingCost:
    """Cost of a training, and of the earlier ones that its weights come from.

    Attributes:
      images: images seen, each as often as it was seen.
      distinct_images: images that had to be simulated, each counted once; None if unknown.
      steps: updates of the weights.
      batch_size: images in an update; of several runs, of the last or of the first member.
      minutes: time spent in updates, from the recorded rate, and in computing the outputs of a
        front end that are kept; validation comes on top.
      front_end_minutes: the latter part; 0 without, None if unknown.
      machine: processors or GPUs, in words.
      curve: the validation error on the way: {"images", "mae": {parameter: value}}; "images"
        begins with those of earlier runs.
      start: of the runs that lens fits start from, which comes on top, without a curve; None
        without one, or if a folder is gone.
      initial_minutes: the part of `minutes` that earlier runs took whose weights it began with.
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
    initial_minutes: float = 0.0


def training_cost(run: RunFolder) -> TrainingCost | None:
    """The cost of a run; None if it is not known.

    That of an ensemble is the sum of its members', without a curve. The folders of members and of
    runs that weights come from must still be there; what several runs share counts once.

    Raises:
      UserError: if the run's records are damaged.
    """
    last = _trained(run)
    initial = earlier_runs(last, ("initial_run",))
    if not last or not _are_known([*last, *initial]):
        return None
    own, earlier = [*map(_updates, last)], [*map(_updates, initial)]
    cost = _total([*last, *initial], [*own, *earlier])
    curve = own[0].curve if len(own) == 1 else ()
    before = sum(c.images for c in earlier)
    others = earlier_runs([*last, *initial], ("members", *LINKS))
    starts = [r for r in others if not (r.config_path.is_file() and "members" in r.config)]
    return dataclasses.replace(
        cost,
        curve=tuple({**point, "images": before + point["images"]} for point in curve),
        start=_total(starts, [*map(_updates, starts)]) if starts and _are_known(starts) else None,
        initial_minutes=cost.minutes - _total(last, own).minutes,
    )


def _trained(run: RunFolder) -> list[RunFolder]:
    """The run, or those that it is combined from."""
    if "members" not in run.config:
        return [run]
    members = [RunFolder(member["run"]) for member in run.config["members"]]
    return [r for m in members for r in (_trained(m) if m.config_path.is_file() else [m])]


def _are_known(runs: Sequence[RunFolder]) -> bool:
    return all(r.config_path.is_file() and r.metrics_path.is_file() for r in runs)


def _total(runs: Sequence[RunFolder], costs: Sequence[TrainingCost]) -> TrainingCost:
    """The cost of some runs together, without a curve; `costs` are those of their updates."""
    fills = _fill_minutes(runs).values()
    return TrainingCost(
        images=sum(cost.images for cost in costs),
        distinct_images=_distinct(runs, costs),
        steps=sum(cost.steps for cost in costs),
        batch_size=costs[0].batch_size,
        minutes=sum(cost.minutes for cost in costs) + sum(filter(None, fills)),
        front_end_minutes=None if None in fills else sum(fills),
        machine=", ".join(dict.fromkeys(cost.machine for cost in costs)),
        curve=(),
        start=None,
    )


def _fill_minutes(runs: Sequence[RunFolder]) -> dict[str, float | None]:
    """Time to compute kept outputs of front ends, once for each folder; None if unknown."""
    fills = {}
    for run in runs:
        if run.cache == "front_end":
            folder = run.config.get("front_end_dir", str(run.path))
            seconds = run.config.get("front_end_seconds")
            fills[folder] = None if seconds is None else seconds / 60.0
    return fills


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
