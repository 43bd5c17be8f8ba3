"""Makes a ready-to-use model of an evaluated run: bundle, weights, checksums and model card.

    python tools/publish.py --run_dir=runs/model_ii_cnn --name=axion_model_ii

dlens_tf.load and predict.py then take it by its name. Evaluate the run on its test split before.
"""

from absl import flags

from dlens_tf import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("run_dir", None, "Folder of the run, evaluated by tools/evaluate.py.")
flags.DEFINE_string("name", None, "Name of the model: lower-case letters, digits, underscores.")
flags.DEFINE_string("output", "saved_models", "Folder of the ready-to-use models.")
flags.DEFINE_bool("replace", False, "Replace a model of this name.")


def main(argv):
    del argv
    cli.require(run_dir=FLAGS.run_dir, name=FLAGS.name, output=FLAGS.output)
    from dlens_tf.training.run_folder import RunFolder

    RunFolder.open(FLAGS.run_dir)  # a wrong folder is told before TensorFlow is imported
    from dlens_tf.serving.publish import publish_run

    print(f"wrote {publish_run(FLAGS.run_dir, FLAGS.name, FLAGS.output, FLAGS.replace)}")


entry = cli.program(main)

if __name__ == "__main__":
    entry()
