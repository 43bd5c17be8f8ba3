"""Vision transformer for images of any size."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="dlens_tf")
class PatchEmbedding(layers.Layer):
    """Cuts images into patches, projects each, and adds a learned position.

    Sides that the patch does not divide are padded with zeros, equally on both sides.

    Args:
      patch_size: pixels per side of a patch.
      width: size of the embedding.

    Input [N, H, W, C], output [N, T, width] with T = ceil(H / patch) × ceil(W / patch).

    Reference: Dosovitskiy et al. 2021, arXiv:2010.11929.
    """

    def __init__(self, patch_size: int, width: int, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = patch_size
        self.width = width
        self.project = layers.Conv2D(width, patch_size, strides=patch_size, name="project")

    def _padding(self, side: int) -> tuple[int, int]:
        missing = -side % self.patch_size
        return (missing // 2, missing - missing // 2)

    def _grid(self, input_shape) -> tuple[int, int]:
        return tuple(-(-side // self.patch_size) for side in input_shape[1:3])

    def build(self, input_shape):
        self.paddings = [(0, 0), *(self._padding(side) for side in input_shape[1:3]), (0, 0)]
        rows, columns = self._grid(input_shape)
        side = self.patch_size
        self.project.build((input_shape[0], rows * side, columns * side, input_shape[3]))
        self.position = self.add_weight(
            name="position",
            shape=(1, rows * columns, self.width),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )

    def call(self, images):
        tokens = self.project(ops.pad(images, self.paddings))
        shape = ops.shape(tokens)
        return ops.reshape(tokens, (shape[0], shape[1] * shape[2], self.width)) + self.position

    def compute_output_shape(self, input_shape):
        rows, columns = self._grid(input_shape)
        return (input_shape[0], rows * columns, self.width)

    def get_config(self):
        return {**super().get_config(), "patch_size": self.patch_size, "width": self.width}


@keras.saving.register_keras_serializable(package="dlens_tf")
def tanh_gelu(x):
    """The tanh form of GELU, which every inference runtime supports."""
    return ops.gelu(x, approximate=True)


def encoder_block(
    x: keras.KerasTensor, width: int, heads: int, dropout: float, name: str
) -> keras.KerasTensor:
    """Pre-norm self-attention and a two-layer perceptron, each around a shortcut."""
    y = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm1")(x)
    y = layers.MultiHeadAttention(heads, width // heads, dropout=dropout, name=f"{name}_attention")(
        y, y
    )
    x = layers.Add(name=f"{name}_add1")([x, y])
    y = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm2")(x)
    y = layers.Dense(4 * width, name=f"{name}_mlp1")(y)
    y = layers.Activation(tanh_gelu, name=f"{name}_gelu")(y)
    y = layers.Dense(width, name=f"{name}_mlp2")(y)
    y = layers.Dropout(dropout, name=f"{name}_dropout")(y)
    return layers.Add(name=f"{name}_add2")([x, y])


def vision_transformer(
    x: keras.KerasTensor,
    *,
    patch_size: int = 8,
    width: int = 96,
    depth: int = 6,
    heads: int = 4,
    dropout: float = 0.0,
) -> keras.KerasTensor:
    """Features of a vision transformer: the mean over its tokens after the last block.

    Args:
      x: images after the front end, [N, H, W, C].
      patch_size: pixels per side of a patch; sides it does not divide are padded.
      width: size of a token; `heads` divides it.
      depth: encoder blocks.
      heads: attention heads.
      dropout: rate in attention and perceptrons.

    Returns:
      Features [N, width].

    Reference: Dosovitskiy et al. 2021, arXiv:2010.11929.
    """
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")
    x = PatchEmbedding(patch_size, width, name="patches")(x)
    for block in range(depth):
        x = encoder_block(x, width, heads, dropout, f"block{block}")
    x = layers.LayerNormalization(epsilon=1e-6, name="final_norm")(x)
    return layers.GlobalAveragePooling1D(name="pool")(x)
