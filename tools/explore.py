"""Draws what a recipe simulates: lenses of each class, critical curves, substructure, residuals.

    python tools/explore.py --recipe=model_ii --output=gallery.png --num=4 --seed=0
    python tools/explore.py --galaxy_sheet --output=galaxies.png --num=10

No data set is needed.
"""

from pathlib import Path

from absl import flags

from dlens_tf import cli
from dlens_tf.errors import UserError, choose
from dlens_tf.simulation.engines import ENGINES
from dlens_tf.simulation.recipes import RECIPES

FORMATS = (".png", ".pdf", ".svg")
MAX_LENSES = 12
"""Of each class, in one picture."""

FLAGS = flags.FLAGS
flags.DEFINE_enum("recipe", None, sorted(RECIPES), "Recipe to draw.")
flags.DEFINE_string("output", "gallery.png", f"Picture to write: {', '.join(FORMATS)}.")
flags.DEFINE_integer("num", 4, "Lenses of each class.", lower_bound=1, upper_bound=40)
flags.DEFINE_integer("seed", 0, "Seed of the simulation.", lower_bound=0)
flags.DEFINE_list("classes", None, "Classes to draw, of those that the recipe has; default: all.")
flags.DEFINE_enum("engine", "lenstronomy", ENGINES, "What renders the images.")
flags.DEFINE_string(
    "galaxies",
    None,
    "Catalogue of real galaxies as sources (GalSim's layout), for recipes that take them; "
    "default: the ten that come with the package.",
)
flags.DEFINE_bool(
    "galaxy_sheet", False, "Draw the galaxies of the catalogue, as stored and cleaned, instead."
)


def main(argv):
    del argv
    cli.require(output=FLAGS.output)
    choose("picture format", Path(FLAGS.output).suffix, FORMATS)
    if FLAGS.galaxy_sheet:
        from dlens_tf.simulation.galaxy_sheet import save_galaxy_sheet

        save_galaxy_sheet(FLAGS.galaxies, FLAGS.output, FLAGS.num)
        print(f"wrote {FLAGS.output}")
        return
    cli.require(recipe=FLAGS.recipe)
    if FLAGS.num > MAX_LENSES:
        raise UserError(f"--num={FLAGS.num} lenses do not fit a picture; {MAX_LENSES} do")
    recipe = RECIPES[FLAGS.recipe]
    for dm_class in FLAGS.classes or ():
        choose("class", dm_class, recipe.classes)
    if FLAGS.galaxies is not None and not recipe.has_galaxies:
        raise UserError(
            f"--galaxies is of no use to {recipe.name}: its sources are Sersic profiles"
        )
    from dlens_tf.simulation.galaxies import GalaxyCatalogue
    from dlens_tf.simulation.gallery import save_gallery

    save_gallery(
        recipe,
        FLAGS.output,
        FLAGS.num,
        FLAGS.seed,
        engine=FLAGS.engine,
        galaxies=GalaxyCatalogue.open(FLAGS.galaxies) if recipe.has_galaxies else None,
        classes=FLAGS.classes,
    )
    print(f"wrote {FLAGS.output}")


entry = cli.program(main)

if __name__ == "__main__":
    entry()
