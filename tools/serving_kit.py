"""Writes what TensorFlow Serving is run with: its configurations, compose and Kubernetes files.

    python tools/serving_kit.py --models=saved_models --output=serving --replace
    python tools/serving_kit.py --models=models --output=serving --replace --canary=dlens:2

The stable version of a model is its highest, or the highest below the canary. --check says whether
the files are what would be written. docs/tf_serving.md explains them.
"""

from absl import flags

from dlens_tf import cli
from dlens_tf.errors import UserError

FLAGS = flags.FLAGS
flags.DEFINE_string("models", "saved_models", "Folder that holds the models' folders.")
flags.DEFINE_string("output", "serving", "Folder of the files.")
flags.DEFINE_list("stable", [], "<model>:<version>, …: versions that shall be stable.")
flags.DEFINE_list("canary", [], "<model>:<version>, …: versions to try beside the stable ones.")
flags.DEFINE_integer("cpus", 4, "Cores of a server.", lower_bound=1)
flags.DEFINE_integer("memory_gib", 4, "Memory of a server, GiB.", lower_bound=1)
flags.DEFINE_bool("replace", False, "Replace files that differ.")
flags.DEFINE_bool("check", False, "Only say whether the files are what would be written.")


def main(argv):
    del argv
    cli.require(models=FLAGS.models, output=FLAGS.output)
    if FLAGS.check and FLAGS.replace:
        raise UserError("--check and --replace don't go together")
    # All input is checked before TensorFlow is imported.
    from dlens_tf.serving import kit

    stable = kit.parse_versions("stable", FLAGS.stable)
    canary = kit.parse_versions("canary", FLAGS.canary)
    models = kit.find_models(FLAGS.models, stable, canary)
    from dlens_tf.inference.bundle import WARMUP_BATCH_SIZES

    files = kit.kit_files(
        models,
        kit.path_between(FLAGS.output, FLAGS.models),
        kit.Settings(WARMUP_BATCH_SIZES, cpus=FLAGS.cpus, memory_gib=FLAGS.memory_gib),
    )
    if FLAGS.check:
        kit.check_kit(files, FLAGS.output)
        print(f"{FLAGS.output} is up to date")
        return
    written = kit.write_kit(files, FLAGS.output, FLAGS.replace)
    for path in written:
        print(f"wrote {path}")
    if not written:
        print(f"{FLAGS.output} is up to date")


entry = cli.program(main)

if __name__ == "__main__":
    entry()
