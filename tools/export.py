"""Exports a trained model as a SavedModel bundle that TensorFlow Serving and predict.py load.

    python tools/export.py --run_dir=runs/first

Writes <output>/<version>/, the next free version, after checking that it answers as the model.

    python tools/export.py --check=runs/first/export/1

checks a bundle again, wherever it is: files, signatures, warm-up, and the answers stored in it.
"""

from absl import flags

from dlens_tf import cli
from dlens_tf.errors import UserError

FLAGS = flags.FLAGS
flags.DEFINE_string("run_dir", None, "Folder of the training run.")
flags.DEFINE_string("output", None, "Base folder of the versions; default: <run_dir>/export.")
flags.DEFINE_string("check", None, "Bundle, or base folder of versions, to check; writes nothing.")


def main(argv):
    del argv
    if FLAGS.check:
        if FLAGS.run_dir or FLAGS.output:
            raise UserError("--check takes an exported bundle; leave out --run_dir and --output")
        from dlens_tf.inference.bundle import find_bundle

        bundle = find_bundle(FLAGS.check)
        from dlens_tf.serving.check import check_bundle, check_with_cli

        print("\n".join([*check_bundle(bundle), check_with_cli(bundle)]))
        print(f"{bundle} is good")
        return
    cli.require(run_dir=FLAGS.run_dir)
    from dlens_tf.training.run_folder import RunFolder

    RunFolder.open(FLAGS.run_dir)  # a wrong folder is told before TensorFlow is imported
    from dlens_tf.serving.export import export_run

    print(f"wrote {export_run(FLAGS.run_dir, FLAGS.output)}")


entry = cli.program(main)

if __name__ == "__main__":
    entry()
