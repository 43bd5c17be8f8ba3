"""The registry of models: front end → backbone → head, as one functional Keras model.

Example:
    >>> spec = ModelSpec(backbone="resnet", options={"width": 16}, head="gaussian", loss="nll")
    >>> model = build_model(spec, recipe, targets, sample_images)
    >>> model(images)["mean"]                                      # [N, P], physical units
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from dlens_tf.errors import UserError, choose
from dlens_tf.models.convnext import convnext
from dlens_tf.models.evidence import evidence_features
from dlens_tf.models.heads import HEADS
from dlens_tf.models.hybrid import hybrid_network
from dlens_tf.models.lens_fit import OUTPUTS, LensFit, TemplateStart
from dlens_tf.models.polar import PolarResample
from dlens_tf.models.resnet import residual_cnn
from dlens_tf.models.smooth_lens import SmoothLensResidual
from dlens_tf.models.stretch import FluxStretch
from dlens_tf.models.vit import vision_transformer
from dlens_tf.parameters import ParameterSet
from dlens_tf.simulation.recipes import Recipe

BACKBONES: dict[str, Callable[..., keras.KerasTensor]] = {
    "resnet": residual_cnn,
    "vit": vision_transformer,
    "convnext": convnext,
    "hybrid": hybrid_network,
}


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What a model is made of; JSON-ready through `dataclasses.asdict`.

    Attributes:
      backbone: one of `BACKBONES`.
      options: keyword arguments of the backbone.
      head: one of `HEADS`.
      loss: one of the head's losses.
      front_end: one of `FRONT_ENDS`.
      front_end_options: keyword arguments of the front end: of smooth_residual (crop, binning), of
        lens_fit those of `LensFit.for_recipe`.
      polar: keyword arguments of `PolarResample`, which then stands between front end and
        backbone; None leaves the pixels as they are.
      head_options: keyword arguments of the head's density.
    """

    backbone: str = "resnet"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head: str = "gaussian"
    loss: str = "nll"
    front_end: str = "flux"
    front_end_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    polar: Mapping[str, Any] | None = None
    head_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


FRONT_ENDS = ("flux", "smooth_residual", "lens_fit")
"""flux: the stretched image. smooth_residual: the residual against a fitted source of a fixed lens.
lens_fit: the residual against a fitted lens and source, with the evidence for a vortex in it."""


def given_to(front_end: str, recipe: Recipe) -> str:
    """What a front end knows of a recipe beside the image, in words for readers of its results.

    Args:
      front_end: one of `FRONT_ENDS`.
      recipe: of the images.
    """
    if choose("front end", front_end, FRONT_ENDS) == "flux":
        return "The flux front end is given the image alone, as published networks are."
    if recipe.has_fixed_lens:
        known = "is given the recipe's fixed macro-model and source shape, PSF and noise law"
    else:
        known = (
            "fits lens and source with only their prior; it is given the recipe's PSF and noise law"
        )
    if front_end == "lens_fit":
        known += (
            ", and of the vortex its total mass, its number of beads, that it is straight and "
            "central, and how its length follows from the axion's mass"
        )
    return (
        f"The {front_end} front end {known}. Published networks and the baselines are not given "
        "these."
    )


_JOINED_UNITS = 192
FITTED = "lens_fit"
"""Name of the `LensFit` layer."""

NO_BACKBONE = "none"
"""Backbone that looks at no picture, only at the evidence and facts of lens_fit."""


def _front_end(
    spec: ModelSpec,
    recipe: Recipe,
    sample_images: np.ndarray,
    start: keras.Model | None,
    image: keras.KerasTensor,
) -> tuple[keras.KerasTensor, list[keras.KerasTensor]]:
    """Pictures [N, S, S, C] and further features, each [N, F], of images."""
    match choose("front end", spec.front_end, FRONT_ENDS):
        case "flux":
            return FluxStretch.fitted(sample_images, name="stretch")(image), []
        case "smooth_residual":
            layer = SmoothLensResidual.for_recipe(
                recipe, name="smooth_residual", **spec.front_end_options
            )
            return layer(image), []
        case _:
            layer = LensFit.for_recipe(recipe, name=FITTED, **spec.front_end_options)
            if start is None:
                values = TemplateStart.for_fit(layer, name="start")(image)
            else:
                values = start(image)
            parts = layer(image, values)
            return parts["pictures"], [evidence_features(parts["evidence"]), parts["facts"]]


def all_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers of a model and of the models inside it, but not these themselves."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)
        else:
            yield layer


def fits_lenses(model: keras.Model) -> bool:
    """Whether there is a `LensFit` in a model, or in one inside it."""
    return any(isinstance(layer, LensFit) for layer in all_layers(model))


def split_at_fit(model: keras.Model) -> tuple[keras.Model, Callable[..., dict]]:
    """A model with a `LensFit` in two: what no training changes, and the network behind it.

    Args:
      model: from images to a head's outputs.

    Returns:
      A model from images to the fit's outputs, by name; and a function of these (and of
      `training`) that gives the head's outputs. They share the model's weights.
    """
    parts = list(model.get_layer(FITTED).output)
    network = keras.Model(parts, model.output)

    def behind(outputs: Mapping, training: bool = False) -> dict:
        return network([outputs[name] for name in OUTPUTS], training=training)

    return keras.Model(model.input, dict(zip(OUTPUTS, parts, strict=True))), behind


def start_network(model: keras.Model, names: Sequence[str], targets: Sequence[str]) -> keras.Model:
    """A trained regressor of a lens's parameters as a frozen network that a fit starts from.

    Args:
      model: from images to a head's outputs.
      names: what is to be fitted, in order.
      targets: what the model predicts, in order.

    Returns:
      A model from images to values [N, K].

    Raises:
      UserError: if the model lacks a parameter that is to be fitted.
    """
    missing = [name for name in names if name not in targets]
    if missing:
        raise UserError(
            f"the network to start from predicts no {', '.join(missing)}; train it with "
            f"--targets={','.join(names)}"
        )
    order = [list(targets).index(name) for name in names]
    values = keras.ops.take(model.output["mean"], np.array(order, np.int32), axis=1)
    network = keras.Model(model.input, values, name="start")
    # Each layer by itself: a clone or copy from disk does not remember it of the whole.
    for layer in network.layers:
        layer.trainable = False
    return network


def build_model(
    spec: ModelSpec,
    recipe: Recipe,
    targets: ParameterSet,
    sample_images: np.ndarray,
    start: keras.Model | None = None,
) -> keras.Model:
    """Builds a model.

    Args:
      spec: its parts.
      recipe: image shape and, for the smooth_residual front end, the macro-model.
      targets: parameters to infer, in the order of the outputs.
      sample_images: training images [N, H, W, C] that the flux front end is fitted to.
      start: network that lens_fit starts from, see `start_network`; None for templates, where
        only the source's position and the exposure are free.

    Returns:
      A model from `image` float32 [N, H, W, C] in raw flux to the head's dict of [N, P].

    Raises:
      UserError: if a part is unknown or does not fit the recipe or the other parts.
    """
    choose("backbone", spec.backbone, [*BACKBONES, NO_BACKBONE])
    if spec.backbone == NO_BACKBONE and spec.front_end != "lens_fit":
        raise UserError("backbone 'none' needs --front_end=lens_fit, it looks at no picture")
    head = HEADS[choose("head", spec.head, HEADS)].for_targets(
        targets, spec.loss, name="head", **spec.head_options
    )
    image = keras.Input(recipe.image_shape, name="image")
    with _explained(f"front end '{spec.front_end}'"):
        pictures, features = _front_end(spec, recipe, sample_images, start, image)
    if spec.polar is not None:
        with _explained("the polar resampling"):
            pictures = PolarResample(**spec.polar, name="polar")(pictures)
    if spec.backbone != NO_BACKBONE:
        with _explained(f"backbone '{spec.backbone}'"):
            features = [BACKBONES[spec.backbone](pictures, **spec.options), *features]
    return keras.Model(image, head(_joined(features)), name=f"dlens_{spec.backbone}")


@contextlib.contextmanager
def _explained(part: str) -> Iterator[None]:
    """Turns what a part of the model raises at its options into a `UserError`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        # Of a bad layer Keras tells more than one line.
        reason = str(error).splitlines()[0]
        raise UserError(f"{part} can't be built: {reason}") from error


def _joined(features: list[keras.KerasTensor]) -> keras.KerasTensor:
    """Features of several kinds as one [N, F], after a perceptron that weighs them together."""
    if len(features) == 1:
        return features[0]
    x = layers.Concatenate(name="features")(features)
    for i in range(2):
        x = layers.Dense(_JOINED_UNITS, activation="relu", name=f"joined{i}")(x)
    return x
