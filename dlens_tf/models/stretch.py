"""Raw flux in, numbers of order one out: the stretch lives inside the model."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="dlens_tf")
class FluxStretch(keras.layers.Layer):
    """Arcsinh stretch of flux: linear below `softening`, logarithmic above.

        y = (arcsinh(x / softening) - shift) / scale

    Args:
      softening: flux at which the stretch turns logarithmic, in the image's unit; positive.
      shift: subtracted after the arcsinh.
      scale: divides after the shift; positive.

    Reference: Lupton, Gunn & Szalay 1999, arXiv:astro-ph/9903081.
    """

    def __init__(self, softening: float, shift: float = 0.0, scale: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        if not (softening > 0.0 and scale > 0.0):
            raise ValueError(f"softening and scale must be positive, got {softening}, {scale}")
        self.softening = softening
        self.shift = shift
        self.scale = scale

    @classmethod
    def fitted(cls, images: np.ndarray, **kwargs) -> "FluxStretch":
        """A stretch that fits these images, [N, H, W, C], to mean 0 and deviation 1.

        The softening is the scatter of the images' border pixels or a hundredth of their
        median peak, whichever is larger: noise stays linear, arcs do not saturate.
        """
        border = np.concatenate([images[:, [0, -1]].ravel(), images[:, :, [0, -1]].ravel()])
        peak = np.median(images.max(axis=(1, 2, 3)))
        softening = float(max(border.std(), 0.01 * peak))
        stretched = np.arcsinh(images / softening)
        return cls(softening, float(stretched.mean()), float(stretched.std()), **kwargs)

    def call(self, images):
        return (ops.arcsinh(images / self.softening) - self.shift) / self.scale

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "softening": self.softening,
            "shift": self.shift,
            "scale": self.scale,
        }
