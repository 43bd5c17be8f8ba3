"""Residual CNN: pre-activation blocks with group normalisation."""

import math

import keras
from keras import layers


def norm_act(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Group normalisation and ReLU."""
    groups = math.gcd(8, x.shape[-1])
    x = layers.GroupNormalization(groups=groups, name=f"{name}_norm")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)


def residual_block(x: keras.KerasTensor, width: int, stride: int, name: str) -> keras.KerasTensor:
    """Two 3×3 convolutions beside a shortcut, to `width` channels."""
    y = norm_act(x, f"{name}_1")
    shortcut = x
    if stride > 1 or x.shape[-1] != width:
        shortcut = layers.Conv2D(width, 1, strides=stride, use_bias=False, name=f"{name}_shortcut")(
            y
        )
    y = layers.Conv2D(
        width, 3, strides=stride, padding="same", use_bias=False, name=f"{name}_conv1"
    )(y)
    y = norm_act(y, f"{name}_2")
    y = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_conv2")(y)
    return layers.Add(name=f"{name}_add")([shortcut, y])


def residual_cnn(
    x: keras.KerasTensor,
    *,
    width: int = 16,
    depth: int = 2,
    stages: int = 4,
    stem_stride: int = 2,
    dropout: float = 0.0,
) -> keras.KerasTensor:
    """Features of a residual CNN.

    Group normalisation, unlike batch normalisation, gives the same answer on any number of
    devices and for any batch.

    Args:
      x: images after the front end, [N, H, W, C].
      width: channels of the first stage; each stage doubles them.
      depth: blocks per stage.
      stages: stages, each after the first halving the resolution.
      stem_stride: stride of the first convolution.
      dropout: rate before the head.

    Returns:
      Features [N, width × 2^(stages - 1)].

    Reference: He et al. 2016, arXiv:1603.05027; Wu & He 2018, arXiv:1803.08494.
    """
    x = layers.Conv2D(width, 3, strides=stem_stride, padding="same", name="stem")(x)
    for stage in range(stages):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            x = residual_block(x, width * 2**stage, stride, f"stage{stage}_block{block}")
    x = norm_act(x, "final")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return layers.Dropout(dropout, name="dropout")(x)
