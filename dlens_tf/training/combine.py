"""Combining trained runs into one: a deep ensemble, or test-time averaging over turned images.

The result is a run folder as any other, with run.json and model.keras, but nothing of a training:
evaluation, export and prediction take it as they take its members. run.json lists these under
"members", and the turns under "tta".
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlens_tf import __version__
from dlens_tf.errors import UserError, choose
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.training.run_folder import RunFolder, environment, git_commit, write_json

TTA = ("none", "rot180", "d4")
"""Turns of test-time averaging, as of `pipeline.augment.AUGMENTATIONS`."""

# What all members must have alike, for their posteriors to be of the same thing.
_COMMON = (
    "dataset", "config", "dataset_version", "classes", "targets", "image_shape", "pixel_scale",
    "instrument", "recipe", "data", "dataset_galaxies",
)  # fmt: skip
# What runs of older versions mean by not saying it. What else a run does not say is not compared.
_OLDER = {"data": "dataset"}


def check_runs(runs: Sequence[RunFolder], tta: str) -> None:
    """Raises a `UserError` unless runs fit each other and the turns of test-time averaging."""
    choose("tta", tta, TTA)
    for run in runs:
        if [other.path.resolve() for other in runs].count(run.path.resolve()) > 1:
            raise UserError(f"{run.path} is given twice; a member counts once")
        if run.config["head"] == "point":
            raise UserError(f"{run.path} has a point head, which has no posterior to be averaged")
    for key in _COMMON:
        telling = [run for run in runs if _entry(run, key) is not None]
        for run in telling[1:]:
            if _entry(run, key) != _entry(telling[0], key):
                its, others = (_shown(member, key) for member in (run, telling[0]))
                raise UserError(
                    f"{run.path} does not fit {telling[0].path}: its {key} is {its}, not {others}"
                )
    if len(runs) == 1 and tta == "none":
        raise UserError("one run alone is no ensemble; name several in --runs, or choose --tta")
    recipe = get_recipe(runs[0].config["recipe"])
    if tta == "d4" and recipe.symmetry != "d4":
        raise UserError(
            f"lenses of {recipe.name} are the same after a half turn only; use --tta=rot180"
        )


def _entry(run: RunFolder, key: str) -> Any:
    """An entry of run.json; None if it says nothing of it."""
    return run.config.get(key, _OLDER.get(key))


def _shown(run: RunFolder, key: str) -> str:
    """An entry of run.json on one line."""
    if key != "targets":
        return str(_entry(run, key))
    return ", ".join(f"{p.name} in {list(p.prior.support)}" for p in run.targets)


def combine_runs(runs: Sequence[str | Path], run_dir: str | Path, tta: str = "none") -> Path:
    """Makes one run of several.

    Args:
      runs: folders of finished runs; of one only with `tta`.
      run_dir: folder to make.
      tta: one of `TTA`: each member looks at the image in all these turns.

    Returns:
      The folder.

    Raises:
      UserError: if the runs don't fit each other or the turns, or the folder exists.
    """
    members = [RunFolder.open(path) for path in runs]
    check_runs(members, tta)
    combined = RunFolder(run_dir)
    _check_new(combined.path)

    from dlens_tf.models.ensemble import TURNS, build_ensemble
    from dlens_tf.training.trainer import save_model

    model = build_ensemble(
        [member.load_model() for member in members], TURNS[tta], members[0].targets
    )
    combined.path.mkdir(parents=True, exist_ok=True)
    save_model(model, combined)
    write_json(combined.environment_path, environment())
    write_json(combined.config_path, _config(members, tta))
    return combined.path


def _check_new(path: Path) -> None:
    """Raises a `UserError` if something is there; an unfinished combination is no obstacle."""
    ours = {"model.keras", "environment.json"}
    if path.exists() and not (path.is_dir() and set(os.listdir(path)) <= ours):
        raise UserError(f"{path} exists; choose another --run_dir")
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"can't make {path}: {existing} is not a folder that can be written to")


def _config(members: Sequence[RunFolder], tta: str) -> dict[str, Any]:
    """run.json of the combined run."""
    configs = [member.config for member in members]
    told = ("model", "head", "seed", "git_commit", "dlens_tf_version", "num_parameters")

    front_ends = [config["model"].get("front_end", "flux") for config in configs]
    examples = {config.get("training_examples") for config in configs}
    return {
        **{
            key: next((v for m in members if (v := _entry(m, key)) is not None), None)
            for key in _COMMON
        },
        "data_dir": configs[0]["data_dir"],
        # Of each member; whether images were seen again must be said of the whole.
        "training_examples": examples.pop() if len(examples) == 1 else None,
        "cache": max((member.cache for member in members), key=lambda name: name == "front_end"),
        "model": {
            "backbone": "ensemble",
            # What is said of models that are told more than the image holds for the whole.
            "front_end": max(front_ends, key=lambda name: name != "flux"),
        },
        "head": "ensemble",
        "tta": tta,
        "members": [
            {"run": str(member.path.absolute()), **{key: member.config[key] for key in told}}
            for member in members
        ],
        "seed": configs[0]["seed"],
        "git_commit": git_commit(),
        "dlens_tf_version": __version__,
        "num_parameters": sum(config["num_parameters"] for config in configs),
    }
