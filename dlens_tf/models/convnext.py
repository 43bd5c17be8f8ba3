"""ConvNeXt-like CNN: depthwise convolutions with a wide kernel, and perceptrons on channels."""

import keras
from keras import layers

from dlens_tf.models.vit import tanh_gelu


def _block(x, width: int, kernel_size: int, dropout: float, name: str):
    """A depthwise convolution and a two-layer perceptron beside a shortcut."""
    y = layers.DepthwiseConv2D(kernel_size, padding="same", name=f"{name}_depthwise")(x)
    y = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm")(y)
    y = layers.Dense(4 * width, activation=tanh_gelu, name=f"{name}_mlp1")(y)
    y = layers.Dense(width, name=f"{name}_mlp2")(y)
    y = layers.Dropout(dropout, name=f"{name}_dropout")(y)
    return layers.Add(name=f"{name}_add")([x, y])


def convnext(
    x: keras.KerasTensor,
    *,
    width: int = 24,
    depth: int = 2,
    stages: int = 3,
    patch_size: int = 4,
    kernel_size: int = 7,
    dropout: float = 0.0,
) -> keras.KerasTensor:
    """Features of a ConvNeXt-like CNN, of few enough layers to do without layer scale.

    XLA runs wide depthwise convolutions several times slower than TensorFlow does on the CPU:
    leave out --jit there.

    Args:
      x: images after the front end, [N, H, W, C].
      width: channels of the first stage; each stage doubles them.
      depth: blocks per stage.
      stages: stages, each after the first halving the resolution.
      patch_size: pixels per side of a patch of the stem; sides that it does not divide are
        padded with zeros.
      kernel_size: pixels per side of the depthwise kernels.
      dropout: rate in the perceptrons.

    Returns:
      Features [N, width × 2^(stages - 1)].

    Reference: Liu et al. 2022, arXiv:2201.03545.
    """
    x = layers.Conv2D(width, patch_size, strides=patch_size, padding="same", name="stem")(x)
    x = layers.LayerNormalization(epsilon=1e-6, name="stem_norm")(x)
    for stage in range(stages):
        channels = width * 2**stage
        if stage > 0:
            x = layers.LayerNormalization(epsilon=1e-6, name=f"stage{stage}_norm")(x)
            x = layers.Conv2D(channels, 2, strides=2, padding="same", name=f"stage{stage}_halve")(x)
        for block in range(depth):
            x = _block(x, channels, kernel_size, dropout, f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return layers.LayerNormalization(epsilon=1e-6, name="final_norm")(x)
