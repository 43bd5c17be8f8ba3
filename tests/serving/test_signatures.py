import pytest
from google.protobuf import text_format
from tensorflow.core.framework import function_pb2

from dlens_tf.serving.signatures import _shorten_names, served

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


def test_names_in_a_function_are_numbers_and_all_references_follow():
    text = """
        signature {{ name: "f" input_arg {{ name: "n1" }} input_arg {{ name: "x" }} }}
        node_def {{ name: "{a}" op: "Add" input: "n1" input: "x" }}
        node_def {{ name: "{b}" op: "Split" input: "{a}:z:0" input: "^{a}"
          attr {{ key: "_class" value {{ list {{ s: "loc:@{a}" s: "loc:@x" }} }} }} }}
        ret {{ key: "out" value: "{b}:output:1" }}
        ret {{ key: "same" value: "x" }}
        control_ret {{ key: "done" value: "{b}" }}
    """
    function, expected = (
        text_format.Parse(text.format(**names), function_pb2.FunctionDef())
        for names in ({"a": "model/layer/add", "b": "model/split"}, {"a": "n0", "b": "n2"})
    )
    _shorten_names(function)  # but not to that of an argument
    assert function == expected
