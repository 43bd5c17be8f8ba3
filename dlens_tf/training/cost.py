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
      steps: updates of the weights.
      batch_size: images in an update; of an ensemble, of its first member.
      minutes: time spent in updates, from the recorded rate; validation comes on top.
      machine: processors or GPUs, in words.
      curve: the validation error on the way: {"images", "mae": {parameter: value}}.
    """

    images: int
    steps: int
    batch_size: int
    minutes: float
    machine: str
    curve: tuple[dict[str, Any], ...]


def training_cost(run: RunFolder) -> TrainingCost | None:
    """The cost of a run; None if it is not known.

    That of an ensemble is the sum of its members', without a curve, as long as their folders are
    there.

    Raises:
      UserError: if the run's records are damaged.
    """
    if not run.metrics_path.is_file():
        members = [RunFolder(m["run"]) for m in run.config.get("members", [])]
        costs = [training_cost(member) for member in members if member.config_path.is_file()]
        return _sum(costs) if costs and None not in costs and len(costs) == len(members) else None
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
        steps=steps,
        batch_size=batch_size,
        minutes=seconds / 60.0,
        machine=_machine(run),
        curve=tuple(curve),
    )


def _sum(costs: Sequence[TrainingCost]) -> TrainingCost:
    return TrainingCost(
        images=sum(cost.images for cost in costs),
        steps=sum(cost.steps for cost in costs),
        batch_size=costs[0].batch_size,
        minutes=sum(cost.minutes for cost in costs),
        machine=", ".join(dict.fromkeys(cost.machine for cost in costs)),
        curve=(),
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
