"""Simulates a data set and writes it as sharded TFRecords that `tfds.load` reads.

    python tools/build_dataset.py --dataset=deeplense --config=model_ii_instrument \\
        --data_dir=data --num_examples=2000 --workers=2

The same command after an interruption goes on where it stopped and gives the same bytes.
"""

from absl import flags

from dlens_tf import cli
from dlens_tf.simulation.catalogue import DATASETS, DEFAULT_SIZES, get_config
from dlens_tf.simulation.engines import ENGINES

FLAGS = flags.FLAGS
flags.DEFINE_enum("dataset", "deeplense", list(DATASETS), "Data set to build.")
flags.DEFINE_string("config", None, "Configuration of the data set: recipe and classes.")
flags.DEFINE_string("data_dir", "data", "Folder under which data sets are kept.")
flags.DEFINE_integer(
    "num_examples", DEFAULT_SIZES["train"], "Training examples per class.", lower_bound=1
)
flags.DEFINE_integer(
    "num_validation",
    None,
    "Validation examples per class; default: a tenth of num_examples.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "num_test", None, "Test examples per class; default: a sixth of num_examples.", lower_bound=1
)
flags.DEFINE_integer(
    "num_calibration",
    None,
    "Examples per class of a split to recalibrate posteriors on; default: no such split.",
    lower_bound=1,
)
flags.DEFINE_integer("num_shards", 8, "TFRecord files per split, at most.", lower_bound=1)
flags.DEFINE_enum(
    "engine",
    None,
    ENGINES,
    "What renders: the reference, or batches in TensorFlow; default: "
    + ", ".join(f"{spec.engine} ({name})" for name, spec in DATASETS.items()),
)
flags.DEFINE_string(
    "galaxies", None, "Catalogue that real sources are taken from; default: the bundled galaxies."
)
flags.DEFINE_integer("workers", 2, "Processes that simulate, without Beam.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of the simulation.", lower_bound=0, upper_bound=2**63 - 1)
flags.DEFINE_bool("overwrite", False, "Build again where a data set exists already.")
flags.DEFINE_string(
    "beam_runner", None, "Apache Beam runner to generate on: DirectRunner, DataflowRunner, …"
)
flags.DEFINE_list(
    "beam_options", [], "Its pipeline options: direct_num_workers=4,direct_running_mode=…"
)


def main(argv):
    del argv
    cli.require(config=FLAGS.config, data_dir=FLAGS.data_dir)
    get_config(FLAGS.dataset, FLAGS.config)  # before TensorFlow takes its seconds
    sizes = {
        "train": FLAGS.num_examples,
        "validation": FLAGS.num_validation or max(1, FLAGS.num_examples // 10),
        "test": FLAGS.num_test or max(1, FLAGS.num_examples // 6),
    }
    if FLAGS.num_calibration:
        sizes["calibration"] = FLAGS.num_calibration
    from dlens_tf.pipeline.build import build_dataset

    build_dataset(
        FLAGS.dataset,
        FLAGS.config,
        FLAGS.data_dir,
        sizes=sizes,
        num_shards=FLAGS.num_shards,
        workers=FLAGS.workers,
        seed=FLAGS.seed,
        engine=FLAGS.engine,
        galaxies=FLAGS.galaxies,
        overwrite=FLAGS.overwrite,
        beam_runner=FLAGS.beam_runner,
        beam_options=FLAGS.beam_options,
    )


entry = cli.program(main)

if __name__ == "__main__":
    entry()
