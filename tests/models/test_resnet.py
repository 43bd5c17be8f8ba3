from dlens_tf.models.resnet import residual_cnn


def test_backbone(check_backbone):
    check_backbone(residual_cnn, 32, 19_536, width=8, depth=1, stages=3, stem_stride=2)
