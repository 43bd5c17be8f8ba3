from pathlib import Path

import pytest

from dlens_tf.errors import UserError
from dlens_tf.serving.server.options import ModelConfig, find_models, read_models_config


def make_version(base: Path, version: str) -> Path:
    folder = base / version
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").touch()
    return folder


def test_finds_one_model_and_folders_of_models(tmp_path):
    for name in ("a", "b", ".hidden"):
        make_version(tmp_path / "models" / name, "1")
    (tmp_path / "models" / "notes").mkdir()
    (tmp_path / "models" / "README.md").touch()
    make_version(tmp_path / "one", "7")
    found = find_models([tmp_path / "models", tmp_path / "one"])
    assert found == [
        ModelConfig("a", tmp_path / "models" / "a"),
        ModelConfig("b", tmp_path / "models" / "b"),
        ModelConfig("one", tmp_path / "one"),
    ]
    assert find_models([tmp_path / "one"], "other")[0].name == "other"


def test_wrong_folders_are_one_line(tmp_path):
    make_version(tmp_path / "x" / "a", "1")
    make_version(tmp_path / "y" / "a", "1")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for bases, name, message in [
        (["none"], None, "does not exist"),
        (["file"], None, "is a file"),
        (["empty"], None, "holds no exported model"),
        (["x/a/1"], None, f"name the folder of versions, {tmp_path}/x/a"),
        (["x", "y"], None, "are both named 'a'"),
        (["x", "y"], "name", "2 models can't all be named 'name'"),
    ]:
        with pytest.raises(UserError, match=message):
            find_models([tmp_path / base for base in bases], name)


def test_which_versions_are_wanted():
    base = Path("base")
    found = [3, 10, 2]
    assert ModelConfig("m", base).wanted(found) == {10}
    assert ModelConfig("m", base, num_latest=2).wanted(found) == {3, 10}
    assert ModelConfig("m", base, num_latest=None).wanted(found) == {2, 3, 10}
    assert ModelConfig("m", base, frozenset({2, 4})).wanted(found) == {2, 4}
    assert ModelConfig("m", base, labels={"stable": 3}).wanted(found) == {3, 10}
    assert ModelConfig("m", base).wanted([]) == set()


CONFIG = """
model_config_list {
  config { name: "a" base_path: "models/a" model_platform: "tensorflow" }
  config {
    name: "b" base_path: "%s/models/b"
    model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels { key: "stable" value: 1 }
    version_labels { key: "canary" value: 2 }
  }
  config { name: "c" base_path: "models/b" model_version_policy { latest { num_versions: 3 } } }
  config { name: "d" base_path: "models/b" model_version_policy { all { } } }
}
"""


def test_models_config(tmp_path):
    for name in "ab":
        make_version(tmp_path / "models" / name, "1")
    path = tmp_path / "models.config"
    path.write_text(CONFIG % tmp_path)
    a, b = tmp_path / "models" / "a", tmp_path / "models" / "b"
    assert read_models_config(path) == [
        ModelConfig("a", a),
        ModelConfig("b", b, frozenset({1, 2}), labels={"stable": 1, "canary": 2}),
        ModelConfig("c", b, num_latest=3),
        ModelConfig("d", b, num_latest=None),
    ]


def test_the_models_of_a_container_are_looked_for_elsewhere(tmp_path):
    make_version(tmp_path / "saved" / "a", "1")
    path = tmp_path / "models.config"
    path.write_text('model_config_list { config { name: "a" base_path: "/models/a" } }')
    found = read_models_config(path, tmp_path / "saved")
    assert found == [ModelConfig("a", tmp_path / "saved" / "a")]
    with pytest.raises(UserError, match=r"none/a is no folder; .* by --models_root"):
        read_models_config(path, tmp_path / "none")


@pytest.mark.parametrize(
    "config, message",
    [
        ("model", "is no ModelServerConfig"),
        ("", "has no model_config_list"),
        ('name: "a"', "needs a name and a base_path"),
        ('name: "a" base_path: "none"', "is no folder"),
        ('name: "a" base_path: "." model_platform: "other"', "of platform 'other'"),
        ('name: "a" base_path: "." logging_config { }', "has a logging_config"),
    ],
)
def test_wrong_models_config_is_one_line(tmp_path, config, message):
    path = tmp_path / "models.config"
    path.write_text(
        f"model_config_list {{ config {{ {config} }} }}" if "name" in config else config
    )
    with pytest.raises(UserError, match=message) as caught:
        read_models_config(path)
    assert "\n" not in str(caught.value)
