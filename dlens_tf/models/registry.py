"""The registry of models: front end → backbone → head, as one functional Keras model.

Example:
    >>> spec = ModelSpec(backbone="resnet", options={"width": 16}, head="gaussian", loss="nll")
    >>> model = build_model(spec, recipe, targets, sample_images)
    >>> model(images)["mean"]                                      # [N, P], physical units
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from dlens_tf.errors import UserError, choose
from dlens_tf.models.heads import HEADS
from dlens_tf.models.resnet import residual_cnn
from dlens_tf.models.smooth_lens import SmoothLensResidual
from dlens_tf.models.stretch import FluxStretch
from dlens_tf.models.vit import vision_transformer
from dlens_tf.parameters import ParameterSet
from dlens_tf.simulation.recipes import Recipe

BACKBONES: dict[str, Callable[..., keras.KerasTensor]] = {
    "resnet": residual_cnn,
    "vit": vision_transformer,
}


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What a model is made of; JSON-ready through `dataclasses.asdict`.

    Attributes:
      backbone: "resnet" or "vit".
      options: keyword arguments of the backbone.
      head: "point" or "gaussian".
      loss: one of the head's losses.
      front_end: "flux" (arcsinh stretch) or "smooth_residual" (fitted smooth lens).
      front_end_options: keyword arguments of the smooth_residual front end (crop, binning).
    """

    backbone: str = "resnet"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head: str = "gaussian"
    loss: str = "nll"
    front_end: str = "flux"
    front_end_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _front_end(spec: ModelSpec, recipe: Recipe, sample_images: np.ndarray) -> keras.layers.Layer:
    match choose("front end", spec.front_end, ["flux", "smooth_residual"]):
        case "flux":
            return FluxStretch.fitted(sample_images, name="stretch")
        case _:
            return SmoothLensResidual.for_recipe(
                recipe, name="smooth_residual", **spec.front_end_options
            )


def build_model(
    spec: ModelSpec, recipe: Recipe, targets: ParameterSet, sample_images: np.ndarray
) -> keras.Model:
    """Builds a model.

    Args:
      spec: its parts.
      recipe: image shape and, for the smooth_residual front end, the macro-model.
      targets: parameters to infer, in the order of the outputs.
      sample_images: training images [N, H, W, C] that the flux front end is fitted to.

    Returns:
      A model from `image` float32 [N, H, W, C] in raw flux to the head's dict of [N, P].

    Raises:
      UserError: if a part is unknown or does not fit the recipe or the other parts.
    """
    backbone = BACKBONES[choose("backbone", spec.backbone, BACKBONES)]
    head = HEADS[choose("head", spec.head, HEADS)].for_targets(targets, spec.loss, name="head")
    image = keras.Input(recipe.image_shape, name="image")
    try:
        features = backbone(_front_end(spec, recipe, sample_images)(image), **spec.options)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"backbone '{spec.backbone}' can't be built: {reason}") from error
    return keras.Model(image, head(features), name=f"dlens_{spec.backbone}")
