import pytest

from dlens_tf.serving.signatures import served

OUTPUTS = {name: object() for name in ("mean", "stddev", "quantiles", "density", "features")}


@pytest.mark.parametrize(
    ("signature", "names"),
    [
        ("serving_default", ["mean", "stddev", "quantiles"]),
        ("serve_bytes", ["mean", "stddev", "quantiles"]),
        ("serve_density", ["mean", "stddev", "quantiles", "density"]),
    ],
)
def test_each_signature_gives_its_outputs(signature, names):
    assert served(signature, OUTPUTS) == {name: OUTPUTS[name] for name in names}


def test_point_estimates_have_a_mean_only():
    outputs = {name: OUTPUTS[name] for name in ("mean", "features")}
    assert list(served("serve_density", outputs)) == ["mean"]
