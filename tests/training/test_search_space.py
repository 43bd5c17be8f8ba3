"""Search spaces as a user writes them."""

import dataclasses

import pytest
from absl import flags

from dlens_tf.errors import UserError
from dlens_tf.training.launch import RunOptions
from dlens_tf.training.search_space import Dimension, check_space, flag_text, parse_dimension


@pytest.fixture(scope="module")
def known() -> flags.FlagValues:
    known = flags.FlagValues()
    flags.DEFINE_integer("width", 16, "", lower_bound=1, flag_values=known)
    flags.DEFINE_float("rate", 1e-3, "", lower_bound=0.0, flag_values=known)
    flags.DEFINE_bool("polar", False, "", flag_values=known)
    flags.DEFINE_enum("model", "resnet", ["resnet", "vit"], "", flag_values=known)
    flags.DEFINE_integer("seed", 0, "", flag_values=known)
    return known


SEARCHABLE = ["width", "rate", "polar", "model"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("width=16|24|32", Dimension("width", (16, 24, 32))),
        ("width=8:64", Dimension("width", bounds=(8, 64))),
        ("width=8:64:log", Dimension("width", bounds=(8, 64), log=True)),
        ("rate=1e-3:5e-3:log", Dimension("rate", bounds=(0.001, 0.005), log=True)),
        ("rate=0:1", Dimension("rate", bounds=(0.0, 1.0))),
        ("polar=true|false", Dimension("polar", (True, False))),
        ("model=vit|resnet", Dimension("model", ("vit", "resnet"))),
    ],
)
def test_dimensions(known, text, expected):
    dimension = parse_dimension(text, known, SEARCHABLE)
    assert dimension == expected
    values = dimension.values or dimension.bounds
    assert dimension.extremes == (values[0], values[-1])
    # As text, a value is the flag's again.
    for value in values:
        assert known[dimension.name].parser.parse(flag_text(value)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width", "is not flag=values; for example resnet_width=16"),
        ("width=", "is not flag=values"),
        ("height=1|2", "'height' can't be searched; valid: width, rate, polar, model"),
        ("seed=1|2", "'seed' can't be searched"),
        ("width=16|wide", "--width can't be 'wide'"),
        ("width=0|16", "--width can't be '0'"),
        ("width=16", "at least two values, all different"),
        ("width=16|16", "at least two values, all different"),
        ("width=1.5:3", "--width can't be '1.5'"),
        ("rate=nan|1", "--rate can't be 'nan'"),
        ("rate=1:inf", "--rate can't be 'inf': it must be finite"),
        ("rate=3:1", r"3\.0 is not below 1\.0"),
        ("rate=0:1:log", r"a logarithmic range begins above 0, not at 0\.0"),
        ("rate=0:1:linear", "neither low:high nor low:high:log"),
        ("rate=0:1:log:2", "neither low:high nor low:high:log"),
        ("model=resnet:vit", "--model is no number; give its values as a|b"),
        ("model=resnet|unet", "--model can't be 'unet'"),
        ("polar=yes|true", "--polar can't be 'yes'"),
    ],
)
def test_mistakes_are_one_line(known, text, message):
    with pytest.raises(UserError, match=message) as info:
        parse_dimension(text, known, SEARCHABLE)
    assert f"--search={text}" in str(info.value) and "\n" not in str(info.value)


@pytest.fixture
def options_with(make_options, tmp_path):
    """A run whose width is the ResNet's or the ViT's, as the flag model says."""

    def make(chosen) -> RunOptions:
        values = {"model": "resnet", "resnet_width": "16", "vit_width": "96", "rate": "1", **chosen}
        model = {"backbone": values["model"], "width": values[f"{values['model']}_width"]}
        plan = {"learning_rate": values["rate"]}
        flags = {name: [value] for name, value in values.items()}
        return dataclasses.replace(make_options(tmp_path), model=model, plan=plan, flags=flags)

    return make


VIT_WIDTH = Dimension("vit_width", (32, 64))


def test_flag_of_a_choice_belongs_to_it(options_with):
    models = Dimension("model", ("resnet", "vit"))
    check_space([VIT_WIDTH, models, Dimension("rate", bounds=(1.0, 2.0))], options_with)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ([], "flag --search is missing"),
        ([VIT_WIDTH], "--search=vit_width=… changes nothing beside the other flags"),
        ([VIT_WIDTH, VIT_WIDTH], "names 'vit_width' twice"),
        ([Dimension("rate", bounds=(1.0, 2.0)), VIT_WIDTH], "--search=vit_width=… changes nothing"),
    ],
)
def test_useless_spaces(options_with, space, message):
    with pytest.raises(UserError, match=message):
        check_space(space, options_with)
