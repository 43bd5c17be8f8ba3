"""dlens_tf.load and what it finds."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dlens_tf
from dlens_tf import hub
from dlens_tf.errors import UserError

SAVED_MODELS = Path(__file__).resolve().parents[1] / "saved_models"


@pytest.fixture
def folder(exported_run, tmp_path, monkeypatch):
    """A folder with one model, `tiny`, in place of the package's."""
    model = tmp_path / "saved_models" / "tiny"
    shutil.copytree(exported_run / "export", model)
    (model / "README.md").write_text("# tiny\n")
    (model / "model.keras").write_text("weights")
    hub.write_checksums(model)
    monkeypatch.setattr(hub, "_FOLDERS", (tmp_path / "none", tmp_path / "saved_models"))
    return tmp_path / "saved_models"


def test_import_and_listing_need_no_tensorflow():
    code = (
        "import sys, dlens_tf\n"
        "print(sorted({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))\n"
        "print(*dlens_tf.available_models())\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))\n"
        "print({'load', 'available_models'} <= set(dir(dlens_tf)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    at_import, names, at_listing, are_listed = done.stdout.splitlines()
    assert (at_import, at_listing, are_listed) == ("[]", "[]", "True")
    assert set(names.split()) == {p.parent.name for p in SAVED_MODELS.glob("*/README.md")}


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="module 'dlens_tf' has no attribute 'lod'"):
        dlens_tf.lod  # noqa: B018


def test_load_answers_as_the_bundle(folder, exported_run):
    from dlens_tf.inference.predictor import Predictor

    images = np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32)
    predictor = dlens_tf.load("tiny")
    assert predictor.bundle == folder / "tiny" / "1"
    assert predictor.card == "# tiny\n"
    expected = Predictor.load(exported_run / "export").predict(images)
    np.testing.assert_array_equal(predictor.predict(images).mean, expected.mean)
    by_path = dlens_tf.load(exported_run / "export")
    assert by_path.bundle == exported_run / "export" / "1"
    with pytest.raises(UserError, match=r"export/README\.md does not exist; tools/publish\.py"):
        _ = by_path.card


def test_listing(folder):
    (folder / ".partial-1" / "1").mkdir(parents=True)
    (folder / "notes").mkdir()
    models = dlens_tf.available_models()
    assert list(models) == hub.model_names() == ["tiny"]
    tiny = models["tiny"]
    assert tiny.targets == ("log10_m_axion", "source_x")
    assert (tiny.recipe, tiny.instrument) == ("model_ii_instrument", "euclid_vis_2021")
    assert tiny.image_shape == (64, 64, 1)
    assert tiny.test_mae == {}
    assert tiny.card == "# tiny\n"
    text = (
        "log10_m_axion, source_x from 64×64 images at 0.101 arcsec per pixel, recipe "
        "model_ii_instrument"
    )
    assert tiny.description == text
    assert repr(tiny) == f"tiny: {text}"


def test_test_error_is_listed():
    model = hub.available_models(SAVED_MODELS)["axion_model_i"]
    assert model.test_mae["log10_m_axion"]["standard_error"] > 0.0
    value = model.test_mae["log10_m_axion"]["value"]
    assert repr(model).endswith(f"; test MAE log10_m_axion {value:.3f} dex")


def test_unknown_name_lists_the_known(folder):
    with pytest.raises(UserError, match=r"^unknown model 'tinny'; ready to use are tiny; one of"):
        dlens_tf.load("tinny")
    with pytest.raises(UserError, match="runs/tiny does not exist"):
        dlens_tf.load("runs/tiny")


def test_path_that_exists_wins(folder, exported_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported_run / "export", tmp_path / "tiny")
    assert hub.find_model("tiny") == Path("tiny") / "1"


@pytest.mark.parametrize(
    "name", ["model.keras", "1/variables/variables.index", "1/assets.extra/dlens_manifest.json"]
)
def test_damage_is_found(folder, name):
    path = folder / "tiny" / name
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    with pytest.raises(UserError, match=rf"{name} is damaged \(its sha256 differs"):
        dlens_tf.load("tiny")
    path.unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        dlens_tf.load("tiny")


def test_checksums_are_those_of_sha256sum(folder):
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=folder / "tiny",
        capture_output=True,
        text=True,
        check=True,
    )
    files = {
        p.relative_to(folder / "tiny").as_posix()
        for p in (folder / "tiny").rglob("*")
        if p.is_file()
    }
    lines = checked.stdout.splitlines()
    assert {line.removesuffix(": OK") for line in lines} == files - {"README.md", "SHA256SUMS"}
    for content, message in [(b"abc\n", "is damaged"), (None, "is missing")]:
        path = folder / "tiny" / "SHA256SUMS"
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=f"SHA256SUMS {message}"):
            dlens_tf.load("tiny")


def test_installation_without_models(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_FOLDERS", (tmp_path / "none",))
    with pytest.raises(UserError, match="has no saved_models"):
        dlens_tf.available_models()
