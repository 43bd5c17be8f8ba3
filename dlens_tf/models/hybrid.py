"""Hybrid network: residual convolutions for what is near, self-attention for what is far."""

import keras
from keras import layers

from dlens_tf.models.resnet import norm_act, residual_block
from dlens_tf.models.vit import PatchEmbedding, encoder_block


def hybrid_network(
    x: keras.KerasTensor,
    *,
    width: int = 16,
    depth: int = 1,
    stages: int = 3,
    stem_stride: int = 2,
    attention_width: int = 64,
    attention_depth: int = 2,
    heads: int = 4,
    dropout: float = 0.0,
) -> keras.KerasTensor:
    """Features of a residual CNN whose last feature map is read by a transformer.

    The convolutions see local structure from the first step on, which a vision transformer has
    to learn; the attention compares distant parts of an arc, which a CNN of this size does not.

    Args:
      x: images after the front end, [N, H, W, C].
      width: channels of the first convolutional stage; each stage doubles them.
      depth: residual blocks per stage.
      stages: convolutional stages, each after the first halving the resolution.
      stem_stride: stride of the first convolution.
      attention_width: size of a token; `heads` divides it.
      attention_depth: encoder blocks.
      heads: attention heads.
      dropout: rate in attention and perceptrons.

    Returns:
      Features [N, attention_width]: the mean over the tokens after the last block.

    Reference: Wu et al. 2021, arXiv:2103.15808; Xiao et al. 2021, arXiv:2106.14881.
    """
    if attention_width % heads:
        raise ValueError(f"attention_width {attention_width} is not a multiple of heads {heads}")
    x = layers.Conv2D(width, 3, strides=stem_stride, padding="same", name="stem")(x)
    for stage in range(stages):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            x = residual_block(x, width * 2**stage, stride, f"stage{stage}_block{block}")
    x = norm_act(x, "convolutions")
    x = PatchEmbedding(1, attention_width, name="tokens")(x)
    for block in range(attention_depth):
        x = encoder_block(x, attention_width, heads, dropout, f"attention{block}")
    x = layers.LayerNormalization(epsilon=1e-6, name="final_norm")(x)
    return layers.GlobalAveragePooling1D(name="pool")(x)
