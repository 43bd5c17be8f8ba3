"""Models in pure Keras 3; importing this package registers every layer for loading."""

from dlens_tf.models.heads import HEADS, GaussianHead, PointHead
from dlens_tf.models.registry import BACKBONES, ModelSpec, build_model
from dlens_tf.models.smooth_lens import SmoothLensResidual
from dlens_tf.models.stretch import FluxStretch
from dlens_tf.models.vit import PatchEmbedding

__all__ = [
    "BACKBONES",
    "HEADS",
    "FluxStretch",
    "GaussianHead",
    "ModelSpec",
    "PatchEmbedding",
    "PointHead",
    "SmoothLensResidual",
    "build_model",
]
