import keras
import pytest

from dlens_tf.models.vit import vision_transformer


def test_backbone(check_backbone):
    check_backbone(vision_transformer, 16, 6_720, patch_size=8, width=16, depth=1, heads=2)


def test_width_that_the_heads_do_not_divide():
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4"):
        vision_transformer(keras.Input((16, 16, 1)), width=10, heads=4)
