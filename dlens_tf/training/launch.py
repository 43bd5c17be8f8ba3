"""From resolved options to a trained run: what tools/train.py calls."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlens_tf import __version__
from dlens_tf.errors import UserError
from dlens_tf.simulation.recipes import get_recipe


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Everything that defines a run; the fields of `model` and `plan` are theirs.

    Attributes:
      dataset, config, data_dir: the data set.
      run_dir: folder of the run.
      targets: names of the inferred parameters.
      classes: classes of substructure to keep; empty keeps all.
      batch_size: examples in a global batch.
      augmentation: "auto" for the recipe's own symmetry, or one of `augment.AUGMENTATIONS`.
      cache: "memory" or "none".
      max_validation: validation examples used at most.
      seed: of initial weights, order and augmentation.
      strategy, logical_devices: see `strategies.make_strategy`.
      deterministic: whether every operation gives the same bits each time, at some cost.
      model: keyword arguments of `models.ModelSpec`.
      plan: keyword arguments of `trainer.TrainingPlan`.
      flags: the resolved flags, name to text, written to flags.cfg; a run folder with others is
        refused.
      harmless_flags: flags that may differ on resuming.
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
    flags: Mapping[str, str]
    harmless_flags: Sequence[str] = ()


def check_same_flags(run, flags: Mapping[str, str], harmless: Sequence[str]) -> None:
    """Raises a `UserError` if the run folder was made by other flags."""
    recorded = dict(
        line.removeprefix("--").split("=", 1)
        for line in run.flags_path.read_text().splitlines()
        if line.startswith("--")
    )
    for name in sorted(recorded.keys() | flags.keys()):
        if name not in harmless and recorded.get(name) != flags.get(name):
            raise UserError(
                f"{run.path} was made with --{name}={recorded.get(name)}, not "
                f"{flags.get(name)}: choose another --run_dir, or run it with its own flags "
                f"(--flagfile={run.flags_path})"
            )


def _prepare_folder(options: RunOptions, config: dict[str, Any]):
    """Makes the run's folder, or checks that an existing one is of the same run."""
    from dlens_tf.training.run_folder import RunFolder, environment, write_json

    run = RunFolder(options.run_dir)
    if run.config_path.is_file():
        check_same_flags(run, options.flags, options.harmless_flags)
        return run
    if run.path.exists() and any(run.path.iterdir()):
        raise UserError(f"{run.path} exists and is not a run folder; choose another --run_dir")
    run.path.mkdir(parents=True, exist_ok=True)
    run.flags_path.write_text(
        "".join(f"--{name}={value}\n" for name, value in options.flags.items())
    )
    write_json(run.environment_path, environment())
    write_json(run.config_path, config)
    return run


def train_run(options: RunOptions) -> Path:
    """Trains a run, or resumes it; returns its folder.

    Raises:
      UserError: for anything that the user can mend.
      Interrupted: after Ctrl-C, with a checkpoint saved.
    """
    import keras
    import tensorflow as tf

    from dlens_tf.models import ModelSpec, build_model
    from dlens_tf.pipeline import augment
    from dlens_tf.pipeline.batches import BatchSpec, TrainingBatches, load_arrays
    from dlens_tf.pipeline.reading import open_dataset
    from dlens_tf.training import strategies
    from dlens_tf.training.run_folder import git_commit
    from dlens_tf.training.trainer import Trainer, TrainingPlan, save_model

    strategy = strategies.make_strategy(options.strategy, options.logical_devices)
    keras.utils.set_random_seed(options.seed)
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    folder = open_dataset(options.dataset, options.config, options.data_dir)
    recipe = get_recipe(folder.metadata["recipe"])
    targets = folder.parameters.select(options.targets)
    augmentation = options.augmentation
    if augmentation == "auto":
        augmentation = recipe.symmetry
    classes = list(options.classes) or list(folder.metadata["classes"])
    spec = ModelSpec(**options.model)
    batches = TrainingBatches(
        folder,
        BatchSpec(
            targets=targets.names,
            batch_size=options.batch_size,
            seed=options.seed,
            augmentation=augmentation,
            cache=options.cache,
            classes=classes,
        ),
    )
    validation = load_arrays(
        folder, "validation", augment.partners(targets.names), classes
    ).first(options.max_validation)

    def make_model() -> keras.Model:
        return build_model(spec, recipe, targets, batches.sample_images())

    config = {
        "dataset": options.dataset,
        "config": options.config,
        "data_dir": str(Path(options.data_dir).absolute()),
        "dataset_version": folder.version,
        "dataset_seed": folder.metadata["seed"],
        "recipe": recipe.name,
        "instrument": recipe.instrument.name,
        "pixel_scale": recipe.instrument.pixel_scale,
        "image_shape": list(folder.image_shape),
        "classes": classes,
        "targets": targets.to_dicts(),
        "model": dataclasses.asdict(spec),
        "head": spec.head,
        "augmentation": augmentation,
        "training_examples": batches.num_examples,
        "seed": options.seed,
        "git_commit": git_commit(),
        "dlens_tf_version": __version__,
    }
    plan = TrainingPlan(**options.plan)
    # Built once before the folder is made, so that a model that can't be built leaves nothing.
    config["num_parameters"] = sum(int(tf.size(w)) for w in make_model().trainable_weights)
    keras.utils.set_random_seed(options.seed)
    run = _prepare_folder(options, config)
    trainer = Trainer(run, strategy, make_model, batches, validation, targets, plan)
    print(
        f"{config['num_parameters']:,} parameters, {batches.num_examples:,} training images, "
        f"{trainer.total_steps:,} steps"
        + (f", resumed at step {trainer.step:,}" if trainer.step else "")
    )
    metrics = trainer.fit()
    if not run.model_path.is_file() and strategies.is_chief(strategy):
        save_model(trainer.averaged, run)
    print("last validation: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
    return run.path
