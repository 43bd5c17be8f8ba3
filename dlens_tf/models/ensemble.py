"""Ensembles: one Keras model that gives the equally weighted mixture of several posteriors.

Members are trained models, or one model that looks at the image turned in several ways, or both.

Example:
    >>> model = build_ensemble([first, second], TURNS["d4"], targets)
    >>> model(images)["quantiles"]                        # of 16 posteriors' mixture
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from dlens_tf.errors import UserError
from dlens_tf.models.heads import DensityHead
from dlens_tf.models.lens_fit import LensFit
from dlens_tf.models.registry import FITTED, split_at_fit
from dlens_tf.parameters import ParameterSet

TURNS: dict[str, list[tuple[bool, int]]] = {
    "none": [(False, 0)],
    "rot180": [(False, 0), (False, 2)],
    "d4": [(mirror, quarters) for mirror in (False, True) for quarters in range(4)],
}
"""All turns of an augmentation: whether mirrored first, and the quarter turns that follow."""


@keras.saving.register_keras_serializable(package="dlens_tf")
class Turn(keras.layers.Layer):
    """Turns images [N, H, W, C] as `pipeline.augment.turn_images` does.

    Args:
      mirror: whether x, the second axis, changes its sign.
      quarters: quarter turns from +x towards +y that follow; of square images if odd.
    """

    def __init__(self, mirror: bool, quarters: int, **kwargs):
        super().__init__(**kwargs)
        self.mirror = mirror
        self.quarters = quarters % 4

    def call(self, images):
        if self.mirror:
            images = ops.flip(images, axis=2)
        for _ in range(self.quarters):
            images = ops.flip(ops.transpose(images, (0, 2, 1, 3)), axis=2)
        return images

    def compute_output_shape(self, input_shape):
        number, height, width, channels = input_shape
        is_odd = self.quarters % 2 == 1
        return (number, width, height, channels) if is_odd else tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "mirror": self.mirror, "quarters": self.quarters}


@keras.saving.register_keras_serializable(package="dlens_tf")
class EnsembleHead(DensityHead):
    """The equally weighted mixture of its members' posteriors; it has no weights.

    Option: `members`, see `densities.EnsembleDensity`.

    Input: the members' `density`, a list of [N, D_m].

    Reference: Lakshminarayanan et al. 2017, arXiv:1612.01474.
    """

    kind = "ensemble"

    def _make_dense(self, units):
        del units

    def build(self, input_shape):
        del input_shape

    def call(self, densities):
        return self.answers(ops.concatenate(densities, axis=-1))

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(input_shape[0])


def check_turns(turns: Sequence[tuple[bool, int]], targets: ParameterSet) -> None:
    """Raises a `UserError` if a parameter changes when the image is turned.

    The mixture of turned posteriors is simple only of parameters that stay what they are.
    """
    changing = [p.name for p in targets if p.spin or p.period is not None]
    if len(turns) > 1 and changing:
        raise UserError(
            f"'{changing[0]}' turns with the image, and posteriors of it can't be averaged over "
            "turns; leave out --tta, or train a model without it"
        )


def _split(
    models: Sequence[keras.Model],
) -> tuple[keras.Model | None, Sequence[Callable[..., dict]]]:
    """The fit that all models begin with, and what each makes of it: it costs more than they do.

    None and the models themselves, if they don't begin alike.
    """
    for i, model in enumerate(models):
        model.name = f"member{i}"
    if not all(isinstance(_layer(model, FITTED), LensFit) for model in models):
        return None, models
    fronts, networks = zip(*map(split_at_fit, models), strict=True)
    first = fronts[0]
    for front in fronts[1:]:
        ours, theirs = first.get_weights(), front.get_weights()
        same_fit = front.get_layer(FITTED).get_config() == first.get_layer(FITTED).get_config()
        same_number = len(ours) == len(theirs)
        if not (same_fit and same_number and all(map(np.array_equal, ours, theirs))):
            return None, models
    return first, networks


def _layer(model: keras.Model, name: str) -> keras.layers.Layer | None:
    return next((layer for layer in model.layers if layer.name == name), None)


def build_ensemble(
    models: Sequence[keras.Model], turns: Sequence[tuple[bool, int]], targets: ParameterSet
) -> keras.Model:
    """One model of several.

    Args:
      models: trained models of the same targets and image shape, each with a layer "head" that
        gives a density.
      turns: of the image, each as (mirror, quarters); see `TURNS`.
      targets: the parameters they infer.

    Returns:
      A model from `image` to the outputs of the mixture of len(models) × len(turns) posteriors,
      with the models inside.

    Raises:
      UserError: if a model gives no density, or a parameter turns with the image.
    """
    check_turns(turns, targets)
    heads = [model.get_layer("head") for model in models]
    for head in heads:
        if not isinstance(head, DensityHead):
            raise UserError("a model with a point head has no posterior to be mixed")
    image = keras.Input(models[0].input_shape[1:], name="image")
    turned = [
        Turn(mirror, quarters, name=f"turn{i}")(image) if mirror or quarters else image
        for i, (mirror, quarters) in enumerate(turns)
    ]
    front, networks = _split(models)
    inputs = [front(picture) for picture in turned] if front else turned
    densities, members = [], []
    for network, head in zip(networks, heads, strict=True):
        densities += [network(x)["density"] for x in inputs]
        members += [head.density_config] * len(turned)
    mixture = EnsembleHead.for_targets(targets, "nll", members=members, name="head")
    return keras.Model(image, mixture(densities), name="dlens_ensemble")
