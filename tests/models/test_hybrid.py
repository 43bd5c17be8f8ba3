import keras
import numpy as np
import pytest

from dlens_tf.models.hybrid import hybrid_network

SMALL = {"width": 8, "stages": 2, "attention_width": 16, "attention_depth": 1, "heads": 2}


def test_backbone(check_backbone):
    check_backbone(hybrid_network, 16, 9_808, **SMALL)


def test_every_token_sees_every_other():
    picture = keras.Input((64, 64, 1))
    model = keras.Model(picture, hybrid_network(picture, **SMALL))
    ends = [model.get_layer(name).output for name in ("tokens", "attention0_add2")]
    attention = keras.Model(*ends)
    tokens = np.random.default_rng(0).normal(size=(1, 256, 16)).astype(np.float32)
    changed = tokens.copy()
    changed[0, -1] *= -1.0
    difference = np.abs(attention(changed) - attention(tokens))[0]
    assert (difference.max(axis=-1) > 1e-4).all()


def test_width_that_the_heads_do_not_divide():
    with pytest.raises(ValueError, match="attention_width 10 is not a multiple of heads 4"):
        hybrid_network(keras.Input((16, 16, 1)), attention_width=10)
