"""Evaluates a run against the baselines and writes a report into its folder.

    python tools/evaluate.py --run_dir=runs/model_ii_cnn

Prints the tables; the report is <run_dir>/evaluation/<split>.html, with JSON and plots beside it.
With --recalibrate=isotonic it first learns a correction of the run's posteriors on a split of its
own, which the run keeps (recalibration.json); the report shows them before and after.
"""

from absl import flags

from dlens_tf import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("run_dir", None, "Folder of the run, as written by tools/train.py.")
flags.DEFINE_enum(
    "split", "test", ["train", "validation", "test", "calibration"], "Split to evaluate."
)
flags.DEFINE_integer("batch_size", 64, "Images at once.", lower_bound=1)
flags.DEFINE_string("data_dir", None, "Folder under which data sets are kept; default: the run's.")
flags.DEFINE_integer(
    "max_examples", None, "Evaluate only the first ones of the split; default: all.", lower_bound=1
)
flags.DEFINE_enum(
    "recalibrate",
    None,
    ["isotonic", "temperature"],
    "Recalibrate the posteriors first: by the distribution of the truth's probabilities, or by one "
    "factor on their widths; default: as the run's recalibration.json says, if there is one.",
)
flags.DEFINE_enum(
    "calibration_split",
    "calibration",
    ["calibration", "validation"],
    "Split to recalibrate on; the best weights are chosen on validation, so calibration is better.",
)
flags.DEFINE_string(
    "calibration_data_dir",
    None,
    "Folder under which the data set with that split is kept; default: --data_dir.",
)


def main(argv):
    del argv
    cli.require(run_dir=FLAGS.run_dir)
    from dlens_tf.training.run_folder import RunFolder

    RunFolder.open(FLAGS.run_dir)  # a wrong folder is told before TensorFlow is loaded
    from dlens_tf.evaluation.evaluate import evaluate_run, recalibrate_run
    from dlens_tf.evaluation.report import calibration_table, text_table

    if FLAGS.recalibrate:
        recalibrate_run(
            FLAGS.run_dir,
            FLAGS.recalibrate,
            FLAGS.calibration_split,
            FLAGS.batch_size,
            FLAGS.calibration_data_dir or FLAGS.data_dir,
        )
    result = evaluate_run(
        FLAGS.run_dir, FLAGS.split, FLAGS.batch_size, FLAGS.data_dir, FLAGS.max_examples
    )
    dataset = result["dataset"]
    title = f"{dataset['name']}/{dataset['config']}, {FLAGS.split} split"
    tables = [f"{title}, {result['num_examples']} examples", text_table(result)]
    tables += [table for table in [calibration_table(result)] if table]
    print("", *tables, f"report: {result['report']}", sep="\n\n")


entry = cli.program(main)

if __name__ == "__main__":
    entry()
