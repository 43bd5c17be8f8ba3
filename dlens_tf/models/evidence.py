"""A small network on maps of evidence over length and angle, as `LensFit` gives them."""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="dlens_tf")
class PadAngles(layers.Layer):
    """Pads maps [N, masses, angles, C] for convolutions: angles periodically, masses with zeros.

    Args:
      reach: rows and columns that are added on each side.
    """

    def __init__(self, reach: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.reach = reach

    def call(self, maps):
        reach = self.reach
        maps = ops.concatenate([maps[:, :, -reach:], maps, maps[:, :, :reach]], axis=2)
        return ops.pad(maps, [(0, 0), (reach, reach), (0, 0), (0, 0)])

    def compute_output_shape(self, input_shape):
        number, masses, angles, channels = input_shape
        return (number, masses + 2 * self.reach, angles + 2 * self.reach, channels)

    def get_config(self):
        return {**super().get_config(), "reach": self.reach}


@keras.saving.register_keras_serializable(package="dlens_tf")
class PoolAngles(layers.Layer):
    """Largest and mean value over the angles of maps [N, masses, angles, C]: [N, 2 masses C]."""

    def call(self, maps):
        pooled = ops.concatenate([ops.max(maps, axis=2), ops.mean(maps, axis=2)], axis=-1)
        return ops.reshape(pooled, (-1, pooled.shape[1] * pooled.shape[2]))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 2 * input_shape[1] * input_shape[3])


def evidence_features(
    maps: keras.KerasTensor, *, width: int = 24, depth: int = 2, units: int = 192
) -> keras.KerasTensor:
    """Features of maps of evidence.

    Turning the vortex shifts the map along its angles; what the convolutions find is pooled over
    the angles, so the features don't depend on where these start.

    Args:
      maps: [N, masses, angles, C].
      width: channels of the convolutions.
      depth: convolutions.
      units: features.

    Returns:
      [N, units].
    """
    x = maps
    for i in range(depth):
        x = PadAngles(name=f"evidence_pad{i}")(x)
        x = layers.Conv2D(width, 3, activation="relu", name=f"evidence_conv{i}")(x)
    x = PoolAngles(name="evidence_pool")(x)
    return layers.Dense(units, activation="relu", name="evidence_dense")(x)
