"""Models in pure Keras 3; importing this package registers every layer for loading."""

from dlens_tf.models.ensemble import EnsembleHead, Turn
from dlens_tf.models.heads import (
    HEADS,
    CovarianceHead,
    DensityHead,
    FlowHead,
    GaussianHead,
    MixtureHead,
    PointHead,
    SplineHead,
)
from dlens_tf.models.lens_fit import LensFit, TemplateStart
from dlens_tf.models.polar import PolarResample
from dlens_tf.models.registry import BACKBONES, ModelSpec, build_model
from dlens_tf.models.smooth_lens import SmoothLensResidual
from dlens_tf.models.stretch import FluxStretch
from dlens_tf.models.vit import PatchEmbedding

__all__ = [
    "BACKBONES",
    "HEADS",
    "CovarianceHead",
    "DensityHead",
    "EnsembleHead",
    "FlowHead",
    "FluxStretch",
    "GaussianHead",
    "LensFit",
    "MixtureHead",
    "ModelSpec",
    "PatchEmbedding",
    "PointHead",
    "PolarResample",
    "SmoothLensResidual",
    "SplineHead",
    "TemplateStart",
    "Turn",
    "build_model",
]
