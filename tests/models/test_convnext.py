import keras
import numpy as np
import pytest

from dlens_tf.models.convnext import convnext


def test_backbone(check_backbone):
    check_backbone(convnext, 16, 4_336, width=8, depth=1, stages=2, patch_size=4, kernel_size=5)


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_depthwise_kernels_mix_no_channels(kernel_size):
    picture = keras.Input((16, 16, 1))
    model = keras.Model(picture, convnext(picture, width=8, depth=1, kernel_size=kernel_size))
    kernel = model.get_layer("stage0_block0_depthwise").kernel
    assert kernel.shape == (kernel_size, kernel_size, 8, 1)
    assert np.prod(kernel.shape) == 8 * kernel_size**2
