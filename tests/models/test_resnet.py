import keras
import pytest

from dlens_tf.models.resnet import norm_act, residual_cnn


def test_backbone(check_backbone):
    check_backbone(residual_cnn, 32, 19_536, width=8, depth=1, stages=3, stem_stride=2)


@pytest.mark.parametrize(("width", "groups"), [(4, 4), (8, 8), (12, 4), (15, 1), (48, 8)])
def test_any_width_can_be_normalised(width, groups):
    image = keras.Input((8, 8, width))
    model = keras.Model(image, norm_act(image, "a"))
    assert model.get_layer("a_norm").groups == groups
