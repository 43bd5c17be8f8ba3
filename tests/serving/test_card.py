from dlens_tf.models import HEADS
from dlens_tf.models.ensemble import EnsembleHead
from dlens_tf.serving import card


def test_every_head_has_words():
    assert set(card._HEADS) == {*HEADS, EnsembleHead.kind}
