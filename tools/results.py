"""Prints the tables of docs/results.md from the results that are kept beside it.

    python tools/results.py --add=runs/model_i_legacy_cnn --as=model_i_legacy/cnn
    python tools/results.py

The first keeps the result of an evaluated run in docs/results/, and prints all tables, as the
second does. --check says whether they are what would be printed.
"""

from absl import flags

from dlens_tf import cli
from dlens_tf.errors import UserError

FLAGS = flags.FLAGS
flags.DEFINE_string("add", None, "Folder of an evaluated run whose result to keep.")
flags.DEFINE_string("as", None, "What to keep it as: <configuration of the data set>/<row>.")
flags.DEFINE_bool("check", False, "Only say whether the document is what would be printed.")
flags.DEFINE_string("results", "docs/results", "Folder of the results.")
flags.DEFINE_string("document", "docs/results.md", "The document.")


def main(argv):
    del argv
    cli.require(results=FLAGS.results, document=FLAGS.document)
    name = FLAGS["as"].value
    if bool(FLAGS.add) != bool(name):
        raise UserError("--add and --as belong together; see --help")
    if FLAGS.check and FLAGS.add:
        raise UserError("--check and --add don't go together")
    from dlens_tf.evaluation import results

    if FLAGS.check:
        results.check_results(FLAGS.results, FLAGS.document)
        print(f"{FLAGS.document} is up to date")
        return
    if FLAGS.add:
        print(f"wrote {results.add_result(FLAGS.add, name, FLAGS.results)}")
    for path in results.print_results(FLAGS.results, FLAGS.document):
        print(f"wrote {path}")


entry = cli.program(main)

if __name__ == "__main__":
    entry()
