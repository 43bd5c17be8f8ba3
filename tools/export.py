"""Exports a trained model as a SavedModel bundle that TensorFlow Serving and predict.py load.

    python tools/export.py --run_dir=runs/first

Writes <output>/<version>/, the next free version, after checking that it answers as the model.
"""

from absl import flags

from dlens_tf import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("run_dir", None, "Folder of the training run.")
flags.DEFINE_string("output", None, "Base folder of the versions; default: <run_dir>/export.")


def main(argv):
    del argv
    cli.require(run_dir=FLAGS.run_dir)
    from dlens_tf.training.run_folder import RunFolder

    RunFolder.open(FLAGS.run_dir)  # a wrong folder is told before TensorFlow is imported
    from dlens_tf.serving.export import export_run

    print(f"wrote {export_run(FLAGS.run_dir, FLAGS.output)}")


entry = cli.program(main)

if __name__ == "__main__":
    entry()
