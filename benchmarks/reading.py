"""How fast a data set is read from its TFRecords, on one core: our reader beside TFDS's own.

    python benchmarks/reading.py

Prints images a second, the median over repeats. Without --data_dir a small data set is
simulated in a temporary folder first. The files are read from the operating system's cache.
"""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags, logging

from dlens_tf import cli
from dlens_tf.errors import UserError
from dlens_tf.simulation.catalogue import CONFIGS

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "data_dir", None, "Folder under which data sets are kept; default: simulate one for this run."
)
flags.DEFINE_enum("config", "model_ii_legacy", sorted(CONFIGS), "Configuration of the data set.")
flags.DEFINE_integer("num_examples", 2000, "Images to simulate if none are given.", lower_bound=1)
flags.DEFINE_integer("batch_size", 64, "Images in a batch.", lower_bound=1)
flags.DEFINE_integer("images", 20_000, "Images to read for one measurement.", lower_bound=1)
flags.DEFINE_integer("repeats", 7, "Measurements of each reader.", lower_bound=1)
flags.DEFINE_integer("core", None, "Core to run on; default: the last one.", lower_bound=0)

TARGET = "log10_m_axion"


@contextlib.contextmanager
def _data_dir() -> Iterator[str]:
    """The given folder, or a temporary one with a data set of --num_examples training images."""
    if FLAGS.data_dir is not None:
        yield FLAGS.data_dir
        return
    from dlens_tf.pipeline.build import build_dataset

    with tempfile.TemporaryDirectory() as folder:
        sizes = {"train": FLAGS.num_examples, "validation": 1, "test": 1}
        build_dataset("deeplense", FLAGS.config, folder, sizes=sizes, workers=2)
        yield folder


def _use_one_core() -> int:
    """Binds this process to one core, and TensorFlow to one thread; returns the core.

    To be called before TensorFlow makes its thread pools, which inherit the binding.
    """
    import tensorflow as tf

    cores = os.sched_getaffinity(0)
    core = max(cores) if FLAGS.core is None else FLAGS.core
    if core not in cores:
        raise UserError(f"there is no core {core} to use; valid: {', '.join(map(str, cores))}")
    os.sched_setaffinity(0, {core})
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return core


def _readers(folder) -> dict[str, Callable]:
    """By name, functions that open the training split as batches."""
    import tensorflow_datasets as tfds

    from dlens_tf.pipeline.reading import read_batches

    # TFDS would keep small data sets decoded in memory, which is not reading.
    read_config = tfds.ReadConfig(try_autocache=False)

    def tfds_batches(decoders=None):
        builder = tfds.builder_from_directory(folder.path)
        examples = builder.as_dataset(split="train", decoders=decoders, read_config=read_config)
        return examples.batch(FLAGS.batch_size)

    # Configurations of several classes have no axion mass: their label stands for it.
    feature, partial = "label", {"image": True, "label": True}
    if folder.has(f"parameters/{TARGET}"):
        feature, partial = f"parameters/{TARGET}", {"image": True, "parameters": {TARGET}}
    return {
        "dlens_tf, all features": lambda: read_batches(folder, "train", FLAGS.batch_size),
        "dlens_tf, image and target": lambda: read_batches(
            folder, "train", FLAGS.batch_size, features=[feature]
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


def main(argv):
    del argv
    logging.set_verbosity(logging.ERROR)  # TFDS warns of its own deprecated names
    with _data_dir() as data_dir:
        core = _use_one_core()
        from dlens_tf.pipeline.reading import open_dataset

        folder = open_dataset("deeplense", FLAGS.config, Path(data_dir))
        images = folder.num_examples("train")
        passes = max(1, FLAGS.images // images)
        readers = _readers(folder)
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for reader in readers.values():
            _rate(reader(), 1, images)  # fills the file cache and traces the functions
        # In turns, so that a passing disturbance does not hit one reader alone.
        for _ in range(FLAGS.repeats):
            for name, reader in readers.items():
                rates[name].append(_rate(reader(), passes, images))
    shape = "×".join(map(str, folder.image_shape))
    print(
        f"\n{FLAGS.config}: {images:,} images of {shape}, {passes * images:,} read per "
        f"measurement, batches of {FLAGS.batch_size}, core {core}\n"
    )
    print("| reader | images/s, median | lowest | highest |")
    print("|---|---|---|---|")
    for name, values in rates.items():
        print(
            f"| {name} | {statistics.median(values):,.0f} | {min(values):,.0f} "
            f"| {max(values):,.0f} |"
        )


entry = cli.program(main)

if __name__ == "__main__":
    entry()
