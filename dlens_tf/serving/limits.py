"""Limits of use of a model, in words: what its training data can't have taught it.

They follow from the recipe, so that every card says the same of the same recipe.
"""

from collections.abc import Sequence

from dlens_tf.inference.out_of_distribution import FALSE_ALARMS
from dlens_tf.inference.posterior import OOD_THRESHOLD
from dlens_tf.models.registry import given_to
from dlens_tf.simulation.recipes import Recipe
from dlens_tf.simulation.substructure import Vortex

_CLASS_NAMES = {
    "no_sub": "without substructure",
    "axion": "with an axion vortex",
    "cdm": "with subhalos of cold dark matter",
    "wdm": "with subhalos of warm dark matter",
    "sidm": "with subhalos of self-interacting dark matter",
    "uldm": "with subhalos of ultralight dark matter",
}


def limits_of_use(
    recipe: Recipe, classes: Sequence[str], front_end: str, has_score: bool = False
) -> list[str]:
    """Sentences that a user of a model has to know.

    Args:
      recipe: of the images that it was trained on.
      classes: classes of substructure that it was trained on.
      front_end: its front end.
      has_score: whether it gives an out-of-distribution score.
    """
    limits = []
    if recipe.has_fixed_lens:
        limits.append(
            "It knows one lens. Macro-model, source shape and brightness are those of the recipe: "
            "only the source's position varies. It says nothing about real lenses."
        )
    else:
        limits.append(
            "It knows the recipe's priors. A lens, source or instrument outside them, or light of "
            "the lens, neighbours or masked pixels that the simulations lack, make its answer "
            "meaningless."
        )
    limits.append(given_to(front_end, recipe))
    match recipe.noise:
        case "none_doubled":
            limits.append(
                "Its images have no noise, as the published data set: any noise is unlike them."
            )
        case "deeplense_counts":
            limits.append(
                "Its images are photon counts with the published recipe's noise, shot noise drawn "
                "twice and no sky: no telescope's images are like them."
            )
        case _:
            limits.append(
                "Noise, pixels and point spread function are those of the instrument "
                f"`{recipe.instrument.name}`; images have to be in its flux unit, not stretched."
            )
    kinds = " and ".join(_CLASS_NAMES[name] for name in classes)
    limits.append(f"It was shown lenses {kinds} only, and answers for any other all the same.")
    if any(isinstance(recipe.substructure[name], Vortex) for name in classes):
        limits.append(
            "The vortex is a toy: one straight line of point masses through the lens's centre, "
            "whose mass does not depend on the axion's."
        )
    if has_score:
        limits.append(
            f"An `ood_score` above {OOD_THRESHOLD:g} tells that an image is unlike the training "
            f"images; {FALSE_ALARMS:.0%} of images like them have one too. A lower one is no "
            "proof: a lens that the recipe lacks may look like those that it has."
        )
    else:
        limits.append("Nothing in an answer tells that an image is unlike the training images.")
    return limits
