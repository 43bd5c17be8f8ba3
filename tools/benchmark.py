"""Measures speeds, recipes' information limits and models' scores, and prints Markdown tables.

    python tools/benchmark.py --suite=simulation --output=simulation.json

Suites: how fast lenses are simulated, read and trained on, how fast a model answers (serving), the
least error that any network can reach (information_limit), and whether models notice unlike images
(out_of_distribution). Each has its flags; --render prints the tables of an earlier run's JSON file.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from absl import flags
from dlens_tf.benchmarks import SUITES

from dlens_tf import cli
from dlens_tf.errors import UserError
from dlens_tf.io.files import check_writable
from dlens_tf.simulation.catalogue import all_configs

FLAGS = flags.FLAGS
flags.DEFINE_enum("suite", None, SUITES, "What to measure.")
flags.DEFINE_string("output", None, "JSON file for the results.")
flags.DEFINE_string("render", None, "JSON file of an earlier run: print its tables, no more.")
flags.DEFINE_integer(
    "images",
    None,
    "simulation: images in a batch (64); reading, training: images in a measurement (20000, 1600); "
    "information_limit, out_of_distribution: images of each recipe or case (200).",
    lower_bound=1,
)
flags.DEFINE_integer(
    "repeats", None, "Measurements (simulation, serving: 3; reading, training: 7).", lower_bound=1
)
# Simulation.
flags.DEFINE_list(
    "recipes",
    None,
    "simulation, information_limit: recipes, comma-separated (all; for limits model_i_legacy and "
    "Models II and III with noise).",
)
flags.DEFINE_list("classes", None, "simulation: classes (each recipe's first with substructure).")
flags.DEFINE_list("engines", None, "simulation: engines (lenstronomy,fast).")
flags.DEFINE_list("cores", None, "simulation: numbers of cores to measure on (1,2).")
flags.DEFINE_float(
    "seconds",
    None,
    "simulation, serving: that a measurement lasts at least (0.3, 2).",
    lower_bound=0.0,
)
# Reading and training.
flags.DEFINE_string(
    "data_dir", None, "reading, training: folder of data sets; default: simulate one for this run."
)
flags.DEFINE_enum(
    "config",
    None,
    all_configs(),
    "reading, training: configuration of the data set (model_ii_legacy, model_ii_instrument).",
)
flags.DEFINE_integer(
    "num_examples",
    None,
    "reading, training: images to simulate if none are given (2000).",
    lower_bound=1,
)
flags.DEFINE_integer(
    "batch_size", None, "reading, training: images in a batch (64, 32).", lower_bound=1
)
flags.DEFINE_integer("core", None, "reading: core to run on (the last one).", lower_bound=0)
# Serving.
flags.DEFINE_string(
    "model",
    None,
    "serving: a ready-to-use model, or an exported one's folder in its run folder "
    "(axion_model_ii).",
)
flags.DEFINE_list(
    "concurrency", None, "serving: numbers of clients that ask at the same time (1,4,16)."
)
flags.DEFINE_list("batch_sizes", None, "serving: numbers of images in a request (1,8,32).")
# Information limit and out-of-distribution scores.
flags.DEFINE_integer(
    "seed",
    None,
    "information_limit, out_of_distribution: of the images (0, 10000).",
    lower_bound=0,
)
flags.DEFINE_list(
    "models",
    None,
    "out_of_distribution: models, comma-separated, by name or folder (all ready-to-use ones).",
)
flags.DEFINE_string(
    "real_lenses",
    None,
    "out_of_distribution: folder of .npy images of real lenses (in a checkout, the tests').",
)

_SUITE_FLAGS = (
    "images", "repeats", "recipes", "classes", "engines", "cores", "seconds", "data_dir", "config",
    "num_examples", "batch_size", "core", "model", "concurrency", "batch_sizes", "seed", "models",
    "real_lenses",
)  # fmt: skip


def _options() -> Any:
    """The `Options` of the suite, from the flags that were given."""
    given = {name: FLAGS[name].value for name in _SUITE_FLAGS}
    given = {name: value for name, value in given.items() if value is not None}
    suite = importlib.import_module(f"dlens_tf.benchmarks.{FLAGS.suite}")
    known = {field.name for field in dataclasses.fields(suite.Options)}
    for name in given:
        if name not in known:
            raise UserError(f"--{name} is no flag of --suite={FLAGS.suite}; leave it out")
    for name in ("cores", "concurrency", "batch_sizes"):
        if name in given:
            try:
                given[name] = tuple(map(int, given[name]))
            except ValueError:
                raise UserError(f"--{name} needs whole numbers, for example 1,2") from None
    return suite.Options(**given)


def main(argv):
    del argv
    from dlens_tf.benchmarks.report import Report, measure

    if FLAGS.render is not None:
        print(Report.read(Path(FLAGS.render)).markdown())
        return 0
    cli.require(suite=FLAGS.suite)
    options = _options()
    output = Path(FLAGS.output) if FLAGS.output else None
    if output:
        check_writable(output)
    report = measure(FLAGS.suite, options, output)
    if report.rows:
        print(f"\n{report.markdown()}")
    if not report.complete:
        raise KeyboardInterrupt
    return 0


entry = cli.program(main)

if __name__ == "__main__":
    entry()
