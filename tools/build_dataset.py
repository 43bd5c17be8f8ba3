"""Simulates a data set and writes it as sharded TFRecords that `tfds.load` reads.

    python tools/build_dataset.py --dataset=deeplense --config=model_ii_instrument \\
        --data_dir=data --num_examples=2000 --workers=2

The same command after an interruption goes on where it stopped and gives the same bytes.
"""

from absl import flags

from dlens_tf import cli
from dlens_tf.simulation.catalogue import CONFIGS, DEFAULT_SIZES

FLAGS = flags.FLAGS
flags.DEFINE_enum("dataset", "deeplense", ["deeplense"], "Data set to build.")
flags.DEFINE_enum("config", None, sorted(CONFIGS), "Configuration: recipe and classes.")
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
flags.DEFINE_integer("num_shards", 8, "TFRecord files per split.", lower_bound=1)
flags.DEFINE_integer("workers", 2, "Processes that simulate.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of the simulation.", lower_bound=0, upper_bound=2**63 - 1)
flags.DEFINE_bool("overwrite", False, "Build again where a data set exists already.")


def main(argv):
    del argv
    cli.require(config=FLAGS.config, data_dir=FLAGS.data_dir)
    sizes = {
        "train": FLAGS.num_examples,
        "validation": FLAGS.num_validation or max(1, FLAGS.num_examples // 10),
        "test": FLAGS.num_test or max(1, FLAGS.num_examples // 6),
    }
    from dlens_tf.pipeline.build import build_dataset

    build_dataset(
        FLAGS.dataset,
        FLAGS.config,
        FLAGS.data_dir,
        sizes=sizes,
        num_shards=FLAGS.num_shards,
        workers=FLAGS.workers,
        seed=FLAGS.seed,
        overwrite=FLAGS.overwrite,
    )


entry = cli.program(main)

if __name__ == "__main__":
    entry()
