"""Combines trained runs into one whose posterior is the mean of theirs.

    python tools/combine.py --runs=runs/a,runs/b,runs/c --run_dir=runs/ensemble
    python tools/combine.py --runs=runs/a --tta=rot180 --run_dir=runs/a_turned

With --tta each member looks at the image in every turn that leaves such lenses alike. The new
folder is a run as any other: evaluate.py, export.py and predict.py take it.
"""

from absl import flags

from dlens_tf import cli

FLAGS = flags.FLAGS
flags.DEFINE_list("runs", [], "Folders of trained runs, comma-separated.")
flags.DEFINE_enum(
    "tta",
    "none",
    ["none", "rot180", "d4"],
    "Test-time averaging: half turns; or quarter turns and mirror images.",
)
flags.DEFINE_string("run_dir", None, "Folder of the combined run.")


def main(argv):
    del argv
    cli.require(runs=FLAGS.runs, run_dir=FLAGS.run_dir)
    from dlens_tf.training.combine import combine_runs

    path = combine_runs(FLAGS.runs, FLAGS.run_dir, FLAGS.tta)
    print(f"run folder: {path}")
    print(f"evaluate:   {cli.command_line('evaluate', run_dir=path)}")


entry = cli.program(main)

if __name__ == "__main__":
    entry()
