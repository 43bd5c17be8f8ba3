"""From resolved options to a trained run: what tools/train.py calls."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlens_tf import __version__
from dlens_tf.errors import UserError
from dlens_tf.simulation.catalogue import DATASETS, get_config
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.recipes import RECIPES, Recipe, get_recipe

_SIMULATE = "simulate:"
_FRONT_END = "front_end"  # folder in the run
# Of the metadata of a stored data set: what it was made by.
_MADE_BY = ("engine", "engine_version", "simulator_version", "galaxies")
_REMEDIES = {
    "engine": "the --engine it was made with",
    "galaxies": "the --galaxies it was made with",
    "engine_version": "the version of dlens_tf it was made with ({dlens_tf_version})",
    "simulator_version": "the version of dlens_tf it was made with ({dlens_tf_version})",
}


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Everything that defines a run; the fields of `model` and `plan` are theirs.

    Attributes:
      dataset, config, data_dir: the data set, of validation and test at least.
      run_dir: folder of the run.
      targets: names of the inferred parameters.
      classes: classes of substructure to keep; empty keeps all.
      batch_size: examples in a global batch.
      augmentation: "auto" for the recipe's own symmetry, or none where training is simulated; or
        one of `augment.AUGMENTATIONS`.
      cache: "memory", "none", or "front_end": the outputs of a lens_fit front end are computed once
        for the training images, or the first epoch of simulated ones, and kept.
      max_validation: validation examples used at most.
      seed: of initial weights, order and augmentation.
      strategy, logical_devices: see `strategies.make_strategy`.
      deterministic: whether every operation gives the same bits each time, at some cost.
      model: keyword arguments of `models.ModelSpec`.
      plan: keyword arguments of `trainer.TrainingPlan`.
      flags: the resolved flags, name to values (several of a repeatable flag), written to
        flags.cfg; a run folder with others is refused.
      harmless_flags: flags that may differ on resuming.
      default_flags: values that flags have if not given: those of a run that is older than them.
      data: what the model is trained on: "dataset" or "simulate:<recipe>".
      engine: of simulated training, one of `engines.ENGINES`.
      examples_per_epoch: simulated images that count as an epoch.
      galaxies: catalogue of real galaxies that simulated training takes its sources from; None
        for the bundled one.
      start_run: folder of a run that predicts the parameters of the smooth lens, which a lens_fit
        front end starts from; None where templates do.
      initial_run: folder of a run with the same network and targets, whose weights training begins
        with; None for random ones.
      front_end_dir: where the outputs of cache "front_end" are kept; None for a folder in the run.
    """

    dataset: str
    config: str
    data_dir: str
    run_dir: str
    targets: Sequence[str]
    classes: Sequence[str]
    batch_size: int
    augmentation: str
    cache: str
    max_validation: int
    seed: int
    strategy: str
    logical_devices: int
    deterministic: bool
    model: Mapping[str, Any]
    plan: Mapping[str, Any]
    flags: Mapping[str, Sequence[str]]
    harmless_flags: Sequence[str] = ()
    default_flags: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    data: str = "dataset"
    engine: str = "fast"
    examples_per_epoch: int = 20_000
    galaxies: str | None = None
    start_run: str | None = None
    initial_run: str | None = None
    front_end_dir: str | None = None


def simulated_recipe(data: str) -> Recipe | None:
    """The recipe that `--data` says to simulate; None for "dataset".

    Raises:
      UserError: if `data` is neither, or the recipe is unknown.
    """
    if data == "dataset":
        return None
    if not data.startswith(_SIMULATE):
        raise UserError(
            f"--data={data} is neither dataset nor {_SIMULATE}<recipe>; recipes: "
            f"{', '.join(RECIPES)}"
        )
    return get_recipe(data.removeprefix(_SIMULATE))


def _check_simulated(options: RunOptions, recipe: Recipe) -> None:
    """Raises a `UserError` unless the data set is of the simulated recipe."""
    configs = DATASETS[recipe.dataset].configs.values()
    fitting = [spec.name for spec in configs if spec.recipe is recipe]
    stored = get_config(options.dataset, options.config).recipe
    if stored is not recipe:
        raise UserError(
            f"--data={options.data} needs validation data of the same recipe, and --config="
            f"{options.config} is of {stored.name}; choose --dataset={recipe.dataset} with "
            f"--config={' or '.join(fitting)}"
        )
    if options.galaxies is not None and not recipe.has_galaxies:
        raise UserError(f"recipe {recipe.name} has no real galaxies; leave out --galaxies")


def _check_galaxies(galaxies: GalaxyCatalogue | None, folder) -> None:
    """Raises a `UserError` unless the data set's sources are of the same catalogue.

    Each catalogue has its own split: another one may train on what the data set holds out.
    """
    trained, stored = galaxies.content_id if galaxies else None, folder.metadata.get("galaxies")
    if trained != stored:
        raise UserError(
            f"training would simulate from galaxies {trained}, but {folder.path} is made from "
            f"galaxies {stored}, and those it holds out could be trained on; choose the "
            "--galaxies it is made from, or build it again with these"
        )


def check_folder(options: RunOptions) -> None:
    """Raises a `UserError` if the run's folder can't be made, or is of another run."""
    from dlens_tf.training.run_folder import RunFolder, read_flags

    run = RunFolder(options.run_dir)
    if run.config_path.is_file():
        recorded = read_flags(run.flags_path)
        for name in sorted(recorded.keys() | options.flags.keys()):
            before, now = recorded.get(name, []), list(options.flags.get(name, []))
            default = list(options.default_flags.get(name, []))
            if name not in options.harmless_flags and now not in (before, before or default):
                raise UserError(
                    f"{run.path} was made {_given(name, before)}, not {_given(name, now)}: choose "
                    f"another --run_dir, or run it with its own flags (--flagfile={run.flags_path})"
                )
        RunFolder.open(run.path)
        return
    existing = next(path for path in (run.path, *run.path.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"can't make {run.path}: {existing} is not a folder that can be written to")
    # What is written before run.json is no obstacle.
    ours = {run.flags_path.name, run.environment_path.name}
    if options.cache == "front_end":
        ours.add(_FRONT_END)
    if existing == run.path and set(os.listdir(run.path)) - ours:
        raise UserError(f"{run.path} exists and is not a run folder; choose another --run_dir")


def _check_data(run, data: Mapping[str, Any]) -> None:
    """Raises a `UserError` if an existing run was trained on other data than these."""
    if not run.config_path.is_file():
        return
    for key, now in data.items():
        before = run.config.get(key, now)  # runs of older versions lack some
        if before != now:
            remedy = _REMEDIES.get(key, "a data set built as that was (it was in {data_dir})")
            raise UserError(
                f"{run.path} was trained on other data ({key} {before}, not {now}): choose another "
                f"--run_dir, or {remedy.format_map(run.config)}"
            )


def _given(name: str, values: Sequence[str]) -> str:
    return "with " + " ".join(f"--{name}={v}" for v in values) if values else f"without --{name}"


def _make_folder(options: RunOptions, config: dict[str, Any]) -> None:
    """Makes the run's folder; run.json, written last, marks it as complete."""
    from dlens_tf.training.run_folder import RunFolder, environment, write_flags, write_json
    from dlens_tf.training.strategies import gpu_names

    run = RunFolder(options.run_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    write_flags(run.flags_path, options.flags)
    write_json(run.environment_path, {**environment(), "gpus": gpu_names()})
    write_json(run.config_path, config)


def _start_network(start_run: str | None, recipe: Recipe):
    """The network of a run that a fit starts from; None without one."""
    if start_run is None:
        return None
    from dlens_tf.models import lens_fit
    from dlens_tf.models.registry import start_network
    from dlens_tf.training.run_folder import RunFolder

    run = RunFolder.open(start_run)
    if run.config["recipe"] != recipe.name:
        raise UserError(
            f"--start_run={start_run} was trained on {run.config['recipe']}, not on {recipe.name}: "
            "train one on this recipe"
        )
    return start_network(run.load_model(), [*lens_fit.fitted_parameters(recipe)], run.targets.names)


def _initial_run(options: RunOptions):
    """The run whose weights training begins with; None without one."""
    if options.initial_run is None:
        return None
    from dlens_tf.training.run_folder import RunFolder

    if Path(options.initial_run).resolve() == Path(options.run_dir).resolve():
        raise UserError(
            f"--initial_run={options.initial_run} is the run itself: choose another --run_dir"
        )
    return RunFolder.open(options.initial_run)


def train_run(options: RunOptions) -> Path:
    """Trains a run, or resumes it; returns its folder.

    Raises:
      UserError: for anything that the user can mend.
      Interrupted: after Ctrl-C, with a checkpoint saved.
    """
    # A mistake that needs no TensorFlow to be seen is told before it is imported.
    get_config(options.dataset, options.config)
    if options.cache == "front_end" and options.strategy == "multi_worker":
        raise UserError(
            "--cache=front_end keeps its files on one machine, so --strategy=multi_worker can't "
            "use it; train on one machine, or leave out --cache"
        )
    simulated, galaxies = simulated_recipe(options.data), None
    if simulated is not None:
        _check_simulated(options, simulated)
        galaxies = GalaxyCatalogue.open(options.galaxies) if simulated.has_galaxies else None
    check_folder(options)
    initial_run = _initial_run(options)

    import keras
    import tensorflow as tf

    from dlens_tf.models import ModelSpec, build_model, fitting, lens_fit, smooth_lens
    from dlens_tf.models.registry import split_at_fit
    from dlens_tf.pipeline import augment
    from dlens_tf.pipeline.batches import BatchSpec, TrainingBatches, load_arrays
    from dlens_tf.pipeline.reading import open_dataset
    from dlens_tf.pipeline.simulated import SimulatedBatches
    from dlens_tf.simulation.engines import ENGINE_VERSIONS
    from dlens_tf.simulation.simulator import SIMULATOR_VERSION
    from dlens_tf.training import front_end, initial_weights, lineage, strategies
    from dlens_tf.training.run_folder import RunFolder, git_commit
    from dlens_tf.training.trainer import Trainer, TrainingPlan

    plan = TrainingPlan(**options.plan)
    strategy = strategies.make_strategy(options.strategy, options.logical_devices)
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    folder = open_dataset(options.dataset, options.config, options.data_dir)
    recipe = get_recipe(folder.metadata["recipe"])
    targets = folder.parameters.select(options.targets)
    augmentation = options.augmentation
    if augmentation == "auto":
        # Simulated images are all new, so there is nothing to be gained by turning them.
        augmentation = "none" if simulated is not None else recipe.symmetry
    classes = list(options.classes) or list(folder.metadata["classes"])
    spec = ModelSpec(**options.model)
    fits, start = {"smooth_residual": smooth_lens, "lens_fit": lens_fit}, None
    if spec.front_end in fits:
        fits[spec.front_end].check_recipe(recipe)
        fitting.check_augmentation(spec.front_end, recipe, augmentation)
    if spec.front_end == "lens_fit":
        start = _start_network(options.start_run, recipe)
    initial = None
    if initial_run is not None:
        galaxies_of_data = folder.metadata.get("galaxies")
        initial_weights.check_initial_run(initial_run, targets, galaxies_of_data, spec)
        initial = initial_run.load_model()
    kept = options.cache == "front_end"
    batch_spec = BatchSpec(
        targets=targets.names,
        batch_size=options.batch_size,
        seed=options.seed,
        augmentation=augmentation,
        cache="none" if kept else options.cache,
        classes=classes,
    )
    data = {
        "recipe": recipe.name,
        "dataset_version": folder.version,
        "dataset_seed": folder.metadata["seed"],
        "image_shape": list(folder.image_shape),
        "classes": classes,
        **{f"dataset_{key}": folder.metadata.get(key) for key in _MADE_BY},
    }
    if simulated is None:
        batches = TrainingBatches(folder, batch_spec)
    else:
        _check_galaxies(galaxies, folder)
        batches = SimulatedBatches(
            recipe, batch_spec, options.examples_per_epoch, options.engine, galaxies
        )
        data["engine"] = options.engine
        data["engine_version"] = ENGINE_VERSIONS[options.engine]
        data["simulator_version"] = SIMULATOR_VERSION
        data["galaxies"] = galaxies.content_id if galaxies else None
    data["training_examples"] = batches.num_examples
    validation = load_arrays(folder, "validation", augment.partners(targets.names), classes).first(
        options.max_validation
    )

    run = RunFolder(options.run_dir)
    _check_data(run, data)
    origins = lineage.describe({"start_run": options.start_run, "initial_run": options.initial_run})
    lineage.check_unchanged(run, origins)
    keras.utils.set_random_seed(options.seed)

    def make_model() -> keras.Model:
        images = batches.sample_images() if spec.front_end == "flux" else None
        model = build_model(spec, recipe, targets, images, start)
        if initial is not None:
            initial_weights.take_over(model, initial, options.initial_run)
        return model

    inputs, part, kept_where = None, {}, {}
    if kept:
        front, _ = split_at_fit(make_model())
        key = {**data, "seed": options.seed, "augmentation": augmentation}
        path = Path(options.front_end_dir or run.path / _FRONT_END)
        batches = front_end.FrontEndBatches(batches, front, path, key)
        inputs = front_end.make_predictor(front)(validation.images)
        kept_where = {
            "front_end_dir": str(path.absolute()),
            "front_end_seconds": batches.fill_seconds,
        }
        part = {"part": lambda model: split_at_fit(model)[1], "validation_inputs": inputs}
    trainer = Trainer(run, strategy, make_model, batches, validation, targets, plan, **part)
    num_parameters = sum(math.prod(w.shape) for w in trainer.model.trainable_weights)
    config = {
        "dataset": options.dataset,
        "config": options.config,
        "data_dir": str(Path(options.data_dir).absolute()),
        "data": options.data,
        **data,
        "instrument": recipe.instrument.name,
        "pixel_scale": recipe.instrument.pixel_scale,
        "targets": targets.to_dicts(),
        "model": dataclasses.asdict(spec),
        "head": spec.head,
        "augmentation": augmentation,
        "cache": options.cache,
        **kept_where,
        **origins,
        "seed": options.seed,
        "git_commit": git_commit(),
        "dlens_tf_version": __version__,
        "num_parameters": num_parameters,
    }
    # Only now, so that nothing is left where the data or the model is at fault.
    if strategies.is_chief(strategy) and not run.config_path.is_file():
        _make_folder(options, config)
    begun = f", from the weights of {initial_run.path}" if initial_run else ""
    print(
        f"{num_parameters:,} parameters, {batches.num_examples:,} "
        f"{'training images' if simulated is None else 'simulated images an epoch'}, "
        f"{trainer.total_steps:,} steps"
        + (f", resumed at step {trainer.step:,}" if trainer.step else begun)
    )
    metrics = trainer.fit()
    print("last validation: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
    return run.path
