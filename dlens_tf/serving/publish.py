"""Publishing: from a run to a ready-to-use model, see `dlens_tf.hub` for its layout."""

import os
import re
import shutil
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlens_tf import hub
from dlens_tf.commands import command_line
from dlens_tf.errors import UserError
from dlens_tf.evaluation.report import format_estimate
from dlens_tf.evaluation.tables import markdown_table
from dlens_tf.inference.bundle import CARD, Manifest, find_bundle, versions
from dlens_tf.io.files import atomic_write, one_line
from dlens_tf.pipeline.reading import build_command, dataset_path
from dlens_tf.serving.card import CardContents, model_card
from dlens_tf.serving.export import PARTIAL, export_run, remove_stale
from dlens_tf.serving.limits import limits_of_use
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.training.cost import training_cost
from dlens_tf.training.lineage import earlier_runs
from dlens_tf.training.run_folder import RunFolder, portable_flags, read_flags, write_flags

MAX_BYTES = 8 * 2**20
"""Largest size of a bundle, and of the Keras weights beside it."""

_PLOTS = ("scatter", "calibration", "pit", "densities")  # the card has tables of the others
_TABLE = ("<!-- table of models -->", "<!-- end of the table -->")


def publish_run(
    run_dir: str | Path, name: str, output: str | Path = "saved_models", replace: bool = False
) -> Path:
    """Makes a ready-to-use model of an evaluated run.

    Args:
      run_dir: the run's folder, with evaluation/test.json.
      name: of the model: lower-case letters, digits and underscores, a letter first.
      output: folder of the models; the table in its README.md is renewed.
      replace: whether a model of this name may be replaced. The new one's bundle has the next
        version: a server that looks at the folder takes it for new, as it is.

    Returns:
      The model's folder.

    Raises:
      UserError: if the run's present model is not evaluated, the name is taken, or the model is
        too large; nothing is changed then.
    """
    run, folder = RunFolder.open(run_dir), Path(output) / name
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise UserError(
            f"--name={name}: only lower-case letters, digits and underscores, and a letter first"
        )
    if not folder.parent.is_dir():
        raise UserError(f"there is no folder {folder.parent}; make it, or choose another --output")
    if folder.exists() and not replace:
        raise UserError(f"{folder} exists; give --replace to replace it, or another --name")
    evaluation = run.read_evaluation()
    partial = folder.with_name(f"{PARTIAL}{uuid.uuid4().hex}")
    try:
        partial.mkdir()
        remove_stale(folder.parent)
        version = max(versions(folder), default=0) + 1
        _fill(run, evaluation, name, partial, version)
        _check_size(partial, name)
        table = models_table(folder.parent, {name: partial})
        _put_in_place(partial, folder)
        _write_models_table(folder.parent, table)
    except OSError as error:
        raise UserError(f"can't write {folder}: {one_line(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _fill(
    run: RunFolder, evaluation: Mapping[str, Any], name: str, folder: Path, version: int
) -> None:
    """Writes all files of a model."""
    config = run.config
    bundle = export_run(run.path, folder, version)
    shutil.copyfile(run.model_path, folder / hub.WEIGHTS)
    shutil.copyfile(run.evaluation_dir / "test.json", folder / hub.EVALUATION)
    recipe = get_recipe(config["recipe"])
    front_end = config["model"].get("front_end", "flux")
    contents = CardContents(
        name=name,
        manifest=Manifest.read(bundle),
        description=recipe.description,
        evaluation=evaluation,
        data=config.get("data", "dataset"),
        training_examples=config.get("training_examples"),
        cache=run.cache,
        cost=training_cost(run),
        plots=_copy_plots(run, folder),
        limits=limits_of_use(
            recipe, config["classes"], front_end, Manifest.read(bundle).ood is not None
        ),
        commands=_commands(run, evaluation, name, folder),
    )
    (folder / CARD).write_text(model_card(contents), encoding="utf-8")
    hub.write_checksums(folder)


def _copy_plots(run: RunFolder, folder: Path) -> dict[str, dict[str, str]]:
    """Copies the evaluation's plots; returns their file names by parameter and kind."""
    plots: dict[str, dict[str, str]] = {}
    for target in run.targets.names:
        for plot in _PLOTS:
            source = run.evaluation_dir / "test" / f"{target}_{plot}.png"
            if source.is_file():
                file = f"{plot}.png" if len(run.targets) == 1 else f"{target}_{plot}.png"
                shutil.copyfile(source, folder / file)
                plots.setdefault(target, {})[plot] = file
    return plots


def _commands(run: RunFolder, evaluation: Mapping[str, Any], name: str, folder: Path) -> list[str]:
    """The commands that make the model again; writes the flagfiles that they name."""
    config, run_dir = run.config, f"runs/{name}"
    commands = []

    def add(command: str) -> None:
        if command not in commands:
            commands.append(command)

    def build(config: Mapping[str, Any]) -> None:
        path = dataset_path(config["dataset"], config["config"], config["data_dir"])
        add(build_command(path, data_dir="data"))

    def train(run: RunFolder, file: str, run_dir: str) -> None:
        if run.flags_path.is_file():
            write_flags(folder / file, portable_flags(read_flags(run.flags_path), run_dir))
            commands.append(command_line("train", flagfile=f"saved_models/{name}/{file}"))

    members = [RunFolder(member["run"]) for member in config.get("members", [])]
    runs = members or [run]
    initial = {earlier.path for earlier in earlier_runs(runs, ("initial_run",))}
    build(config)
    for i, earlier in enumerate(earlier_runs(runs)):
        RunFolder.open(earlier.path)  # were it gone, the model could not be made again
        # A data set has one place: where both have the same, the run's own serves for both.
        if any(earlier.config[key] != config[key] for key in ("dataset", "config")):
            build(earlier.config)
        # Where the flags of those who come from it seek it.
        [place] = portable_flags({"start_run": [str(earlier.path)]}, run_dir)["start_run"]
        kind = "initial" if earlier.path in initial else "start"
        train(earlier, f"{kind}{i or ''}.cfg", place)
    if members:
        for i, member in enumerate(members):
            train(member, f"member{i}.cfg", f"{run_dir}_member{i}")
        runs = ",".join(f"{run_dir}_member{i}" for i in range(len(members)))
        commands.append(command_line("combine", runs=runs, tta=config["tta"], run_dir=run_dir))
    else:
        train(run, hub.FLAGS, run_dir)
    maps = evaluation["recalibration"]
    options = {"recalibrate": maps["method"], "calibration_split": maps["split"]} if maps else {}
    used = [source.get("dataset", {}) for source in (maps or evaluation, evaluation)]
    places = [dataset.get("data_dir", "data") for dataset in used]
    for dataset, place in zip(used, places, strict=True):
        if place != "data":  # another than the training's
            add(dataset["command"])
    if places[0] != places[1]:
        options["calibration_data_dir"] = places[0]
    if places[1] != "data":
        options["data_dir"] = places[1]
    commands.append(command_line("evaluate", run_dir=run_dir, **options))
    commands.append(command_line("publish", run_dir=run_dir, name=name))
    return commands


def _check_size(folder: Path, name: str) -> None:
    """Raises a `UserError` if the bundle or the Keras weights are too large."""
    bundle = find_bundle(folder)
    for what, files in (("bundle", bundle.rglob("*")), ("weights", [folder / hub.WEIGHTS])):
        sizes = {p: p.stat().st_size for p in files if p.is_file()}
        total = sum(sizes.values())
        if total > MAX_BYTES:
            largest = max(sizes, key=sizes.get).relative_to(folder)
            raise UserError(
                f"the {what} of {name} would be {total / 2**20:.1f} MiB, more than "
                f"{MAX_BYTES / 2**20:.0f} MiB (largest: {largest}); publish a smaller network"
            )


def _put_in_place(partial: Path, folder: Path) -> None:
    """Renames a finished model to its name; an earlier one goes only when it is there."""
    old = folder.with_name(f"{partial.name}.old")
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _table_row(model: hub.ReadyModel) -> list[str]:
    errors = [
        f"{format_estimate(mae)} {'dex' if p.unit.startswith('log10(') else p.unit}".rstrip()
        for p in model.manifest.parameters
        if (mae := model.test_mae.get(p.name))
    ]
    height, width, _ = model.image_shape
    return [
        f"`{model.name}`",
        f"`{model.recipe}`, {height}×{width}, `{model.instrument}`",
        ", ".join(f"`{target}`" for target in model.targets),
        ", ".join(errors) or "–",
        f"[card]({model.name}/{CARD})",
    ]


def models_table(folder: Path, new: Mapping[str, Path] | None = None) -> str:
    """The table of the models in a folder, Markdown.

    Models that can't be read are left out, and told on stderr.

    Args:
      folder: of the models.
      new: further models by name, or ones to take the place of those in the folder.
    """
    paths = {name: folder / name for name in hub.model_names(folder)} | dict(new or {})
    rows = []
    for name, path in sorted(paths.items()):
        try:
            manifest = Manifest.read(find_bundle(path))
            rows.append(_table_row(hub.ReadyModel(name, path, manifest)))
        except (UserError, LookupError, TypeError, ValueError) as error:
            reason = f"can't be read ({one_line(error)}); publish it again"
            print(f"warning: {path} is left out of the table: it {reason}", file=sys.stderr)
    return markdown_table(["model", "images", "infers", "test MAE", "card"], rows)


def _write_models_table(folder: Path, models: str) -> None:
    """Puts a table into the README.md of a folder of models, if it has one with a place for it.

    The place is between two comments, which stay.
    """
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    start, end = (text.find(mark) for mark in _TABLE)
    if not 0 <= start < end:
        return
    start += len(_TABLE[0])
    with atomic_write(path) as partial:
        partial.write_text(f"{text[:start]}\n{models}\n{text[end:]}", encoding="utf-8")
