"""How fast a data set is read from its TFRecords, on one core: our reader beside TFDS's own.

Without a data set a small one is simulated in a temporary folder first. The files are read from
the operating system's cache.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import logging
from dlens_tf.benchmarks import cores
from dlens_tf.benchmarks.data_sets import data_dir, dataset_of
from dlens_tf.benchmarks.report import Report, markdown_table, summary

TARGET = "log10_m_axion"


@dataclasses.dataclass(frozen=True)
class Options:
    """What to read and how often.

    Attributes:
      data_dir: folder under which data sets are kept; None simulates one for this run.
      config: configuration of the data set.
      num_examples: images of each class to simulate if none are given.
      batch_size: images in a batch.
      images: to read for one measurement, at least one pass.
      repeats: measurements of each reader.
      core: to run on; None for the last one.
    """

    data_dir: str | None = None
    config: str = "model_ii_legacy"
    num_examples: int = 2000
    batch_size: int = 64
    images: int = 20_000
    repeats: int = 7
    core: int | None = None


def _readers(folder, batch_size: int) -> dict[str, Callable]:
    """By name, functions that open the training split as batches."""
    import tensorflow_datasets as tfds

    from dlens_tf.pipeline.reading import read_batches

    # TFDS would keep small data sets decoded in memory, which is not reading.
    read_config = tfds.ReadConfig(try_autocache=False)

    def tfds_batches(decoders=None):
        builder = tfds.builder_from_directory(folder.path)
        examples = builder.as_dataset(split="train", decoders=decoders, read_config=read_config)
        return examples.batch(batch_size)

    # Configurations of several classes, and populations, have no axion mass: their label stands
    # for it.
    feature, partial = "label", {"image": True, "label": True}
    if folder.has(f"parameters/{TARGET}"):
        feature, partial = f"parameters/{TARGET}", {"image": True, "parameters": {TARGET}}
    return {
        "dlens_tf, all features": lambda: read_batches(folder, "train", batch_size),
        "dlens_tf, image and target": lambda: read_batches(
            folder, "train", batch_size, features=[feature]
        ),
        "TFDS as_dataset, all features": tfds_batches,
        "TFDS as_dataset, image and target": lambda: tfds_batches(
            tfds.decode.PartialDecoding(partial)
        ),
    }


def _rate(batches, passes: int, images: int) -> float:
    """Images a second over some passes of a split."""
    start = time.perf_counter()
    read = sum(int(batch["image"].shape[0]) for batch in batches.repeat(passes))
    seconds = time.perf_counter() - start
    if read != passes * images:
        raise RuntimeError(f"read {read} images instead of {passes * images}")
    return read / seconds


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Measures every reader; yields a row for each."""
    logging.set_verbosity(logging.ERROR)  # TFDS warns of its own deprecated names
    core = cores.available()[0] if options.core is None else cores.check(options.core)
    with data_dir(options.data_dir, options.config, options.num_examples) as data:
        cores.bind([core])
        from dlens_tf.pipeline.reading import open_dataset

        folder = open_dataset(dataset_of(options.config), options.config, Path(data))
        images = folder.num_examples("train")
        passes = max(1, options.images // images)
        readers = _readers(folder, options.batch_size)
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for reader in readers.values():
            _rate(reader(), 1, images)  # fills the file cache and traces the functions
        # In turns, so that a passing disturbance does not hit one reader alone.
        for _ in range(options.repeats):
            for name, reader in readers.items():
                rates[name].append(_rate(reader(), passes, images))
        for name, values in rates.items():
            yield {
                "reader": name,
                "core": core,
                "images": images,
                "images_read": passes * images,
                "image_shape": list(folder.image_shape),
                **summary(values),
            }


def table(report: Report) -> str:
    """What was read, and the rate of each reader."""
    settings = report.settings
    first = report.rows[0]
    shape = "×".join(map(str, first["image_shape"]))
    title = (
        f"{settings['config']}: {first['images']:,} images of {shape}, {first['images_read']:,} "
        f"read per measurement, batches of {settings['batch_size']}, core {first['core']}, "
        f"{settings['repeats']} measurements"
    )
    rows = [
        [row["reader"], *(f"{row[key]:,.0f}" for key in ("median", "lowest", "highest"))]
        for row in report.rows
    ]
    header = ["reader", "images/s, median", "lowest", "highest"]
    return f"{title}\n\n{markdown_table(header, rows)}"
