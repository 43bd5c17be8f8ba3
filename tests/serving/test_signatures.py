import pytest

from dlens_tf.serving.signatures import served

OUTPUTS = {
    name: object() for name in ("mean", "stddev", "quantiles", "density", "features", "ood_score")
}


@pytest.mark.parametrize(
    ("signature", "names"),
    [
        ("serving_default", ["mean", "stddev", "quantiles", "ood_score"]),
        ("serve_bytes", ["mean", "stddev", "quantiles", "ood_score"]),
        ("serve_density", ["mean", "stddev", "quantiles", "ood_score", "density"]),
        ("serve_features", ["features", "ood_score"]),
    ],
)
def test_each_signature_gives_its_outputs(signature, names):
    assert served(signature, OUTPUTS) == {name: OUTPUTS[name] for name in names}


def test_point_estimates_have_a_mean_only():
    outputs = {name: OUTPUTS[name] for name in ("mean", "features")}
    assert list(served("serve_density", outputs)) == ["mean"]
