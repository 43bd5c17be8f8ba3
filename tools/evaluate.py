"""Evaluates a run against the baselines and writes a report into its folder.

    python tools/evaluate.py --run_dir=runs/model_ii_cnn

Prints the table; the report is <run_dir>/evaluation/<split>.html, with JSON and plots beside it.
"""

from absl import flags

from dlens_tf import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("run_dir", None, "Folder of the run, as written by tools/train.py.")
flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Split to evaluate.")
flags.DEFINE_integer("batch_size", 64, "Images at once.", lower_bound=1)
flags.DEFINE_string("data_dir", None, "Folder under which data sets are kept; default: the run's.")
flags.DEFINE_integer(
    "max_examples", None, "Evaluate only the first ones of the split; default: all.", lower_bound=1
)


def main(argv):
    del argv
    cli.require(run_dir=FLAGS.run_dir)
    from dlens_tf.training.run_folder import RunFolder

    RunFolder.open(FLAGS.run_dir)  # a wrong folder is told before TensorFlow is loaded
    from dlens_tf.evaluation.evaluate import evaluate_run
    from dlens_tf.evaluation.report import text_table

    result = evaluate_run(
        FLAGS.run_dir, FLAGS.split, FLAGS.batch_size, FLAGS.data_dir, FLAGS.max_examples
    )
    dataset = result["dataset"]
    print(
        f"\n{dataset['name']}/{dataset['config']}, {FLAGS.split} split, "
        f"{result['num_examples']} examples\n\n{text_table(result)}\n\nreport: {result['report']}"
    )


entry = cli.program(main)

if __name__ == "__main__":
    entry()
