"""Draws what a recipe simulates: lenses of each class, critical curves, substructure, residuals.

    python tools/explore.py --recipe=model_ii --output=gallery.png --num=4 --seed=0

No data set is needed.
"""

from pathlib import Path

from absl import flags

from dlens_tf import cli
from dlens_tf.errors import choose
from dlens_tf.simulation.recipes import RECIPES

FORMATS = (".png", ".pdf", ".svg")

FLAGS = flags.FLAGS
flags.DEFINE_enum("recipe", None, sorted(RECIPES), "Recipe to draw.")
flags.DEFINE_string("output", "gallery.png", f"Picture to write: {', '.join(FORMATS)}.")
flags.DEFINE_integer("num", 4, "Lenses of each class.", lower_bound=1, upper_bound=12)
flags.DEFINE_integer("seed", 0, "Seed of the simulation.", lower_bound=0)


def main(argv):
    del argv
    cli.require(recipe=FLAGS.recipe, output=FLAGS.output)
    choose("picture format", Path(FLAGS.output).suffix, FORMATS)
    from dlens_tf.simulation.gallery import save_gallery

    save_gallery(RECIPES[FLAGS.recipe], FLAGS.output, FLAGS.num, FLAGS.seed)
    print(f"wrote {FLAGS.output}")


entry = cli.program(main)

if __name__ == "__main__":
    entry()
