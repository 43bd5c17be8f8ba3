"""How fast the quickstart's network trains: from cached TFRecords, and on simulated images.

Two trainings of the same network in one process, on all cores, take turns, so that a passing
disturbance does not hit one of them alone.
"""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dlens_tf.benchmarks.data_sets import data_dir, dataset_of
from dlens_tf.benchmarks.report import Report, markdown_table, summary
from tqdm import tqdm

TARGETS = ("log10_m_axion",)
# Those of configs/quickstart.flags.
MODEL: dict[str, Any] = {
    "backbone": "resnet",
    "options": {"width": 16, "depth": 1, "stages": 4, "stem_stride": 2, "dropout": 0.0},
    "head": "gaussian",
    "loss": "beta_nll",
    "front_end": "smooth_residual",
    "front_end_options": {"crop": None, "binning": 1},
    "polar": None,
    "head_options": {},
}
PLAN: dict[str, Any] = {"epochs": 18, "learning_rate": 3e-3, "jit": True}
UNTIMED_STEPS = 6
"""At the start of each turn, while batches are used up that were made during the other's turn."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train on and how often.

    Attributes:
      data_dir: folder under which data sets are kept; None simulates one for this run.
      config: configuration of the data set, of a recipe with a fixed macro-model.
      num_examples: images of each class to simulate if none are given.
      batch_size: images in a batch.
      images: to train on for one measurement, at least one batch.
      repeats: measurements of each training.
    """

    data_dir: str | None = None
    config: str = "model_ii_instrument"
    num_examples: int = 2000
    batch_size: int = 32
    images: int = 1600
    repeats: int = 7


def _make_batches(folder, recipe, options: Options) -> dict[str, Any]:
    """The two sources of batches, by what tools/train.py calls them."""
    from dlens_tf.pipeline.batches import BatchSpec, TrainingBatches
    from dlens_tf.pipeline.simulated import SimulatedBatches

    spec = BatchSpec(
        targets=TARGETS,
        batch_size=options.batch_size,
        augmentation=recipe.symmetry,
        classes=list(folder.metadata["classes"]),
    )
    stored = TrainingBatches(folder, spec)
    fresh = dataclasses.replace(spec, augmentation="none")  # as tools/train.py does by default
    simulated = SimulatedBatches(recipe, fresh, stored.num_examples)
    return {"cached TFRecords": stored, f"simulate:{recipe.name}": simulated}


@contextlib.contextmanager
def _training(batches, folder, recipe, run_dir: Path) -> Iterator[Callable[[], None]]:
    """Gives a function that trains for one step."""
    import tensorflow as tf

    from dlens_tf.models import ModelSpec, build_model, smooth_lens
    from dlens_tf.pipeline.batches import load_arrays
    from dlens_tf.training import strategies
    from dlens_tf.training.run_folder import RunFolder
    from dlens_tf.training.trainer import Trainer, TrainingPlan

    smooth_lens.check_recipe(recipe)
    targets = folder.parameters.select(TARGETS)
    trainer = Trainer(
        RunFolder(run_dir),
        strategies.make_strategy("one_device", 1),
        lambda: build_model(ModelSpec(**MODEL), recipe, targets, batches.sample_images()),
        batches,
        load_arrays(folder, "validation", TARGETS),
        targets,
        TrainingPlan(**PLAN),
    )
    iterators = [iter(batches.dataset())]
    go_on = tf.constant(False)

    def step() -> None:
        with batches.explained_errors():
            images, labels = next(iterators[0])
        trainer.train_step(images, labels, go_on).numpy()

    try:
        yield step
    finally:
        iterators.clear()  # while the interpreter still runs the Python of its threads


def _rate(step: Callable[[], None], steps: int, batch_size: int) -> float:
    """Images a second."""
    for _ in range(UNTIMED_STEPS):
        step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * batch_size / (time.perf_counter() - start)


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Measures both trainings; yields a row for each."""
    with contextlib.ExitStack() as stack:
        data = stack.enter_context(data_dir(options.data_dir, options.config, options.num_examples))
        run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        from dlens_tf.pipeline.reading import open_dataset
        from dlens_tf.simulation.recipes import get_recipe

        folder = open_dataset(dataset_of(options.config), options.config, Path(data))
        recipe = get_recipe(folder.metadata["recipe"])
        sources = _make_batches(folder, recipe, options)
        steps = max(1, options.images // options.batch_size)
        trainings = {
            name: stack.enter_context(_training(batches, folder, recipe, run_dir / str(i)))
            for i, (name, batches) in enumerate(sources.items())
        }
        rates: dict[str, list[float]] = {name: [] for name in trainings}
        progress = stack.enter_context(
            tqdm(total=len(trainings) * (options.repeats + 1), desc="measure", unit="turn")
        )
        for step in trainings.values():
            _rate(step, 1, options.batch_size)  # compiles
            progress.update()
        for _ in range(options.repeats):
            for name, step in trainings.items():
                rates[name].append(_rate(step, steps, options.batch_size))
                progress.update()
        cached = summary(next(iter(rates.values())))["median"]
        for name, values in rates.items():
            row = {"data": name, "images_per_measurement": steps * options.batch_size}
            row |= summary(values)
            yield row | {"loss_percent": 100.0 * (1.0 - row["median"] / cached)}


def table(report: Report) -> str:
    """The rates, and what simulating loses."""
    settings = report.settings
    title = (
        f"The network of the quickstart on {settings['config']}, batches of "
        f"{settings['batch_size']}, {report.rows[0]['images_per_measurement']:,} images per "
        f"measurement, {settings['repeats']} measurements"
    )
    rows = [
        [
            row["data"],
            *(f"{row[key]:,.0f}" for key in ("median", "lowest", "highest")),
            f"{row['loss_percent']:.1f} %" if i else "–",
        ]
        for i, row in enumerate(report.rows)
    ]
    header = ["training images", "images/s, median", "lowest", "highest", "loss"]
    return f"{title}\n\n{markdown_table(header, rows)}"
