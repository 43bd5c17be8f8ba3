import hashlib
import json
import shutil

import pytest

from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import Manifest, find_bundle, versions


@pytest.fixture
def bundle(exported_run, tmp_path):
    """A copy of an exported bundle, to be damaged."""
    return shutil.copytree(exported_run / "export" / "1", tmp_path / "base" / "1")


def test_round_trip(bundle):
    manifest = Manifest.read(bundle)
    again = Manifest.from_dict(json.loads(json.dumps(manifest.to_dict())))
    assert again == manifest
    manifest.verify(bundle)


def test_find_bundle_takes_the_highest_complete_version(bundle):
    base = bundle.parent
    for version in ("2", "10"):
        shutil.copytree(bundle, base / version)
    for other in ("11", "notes", "-3", "12.partial", "²"):
        (base / other).mkdir()
    assert find_bundle(base) == base / "10"
    assert find_bundle(bundle) == bundle
    assert sorted(versions(base)) == [1, 2, 10, 11]


def test_what_is_no_bundle(exported_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "model.keras").write_text("")
    for path in (run, run / "model.keras"):
        with pytest.raises(UserError, match=rf"run tools/export.py --run_dir={run} and give"):
            find_bundle(path)
    with pytest.raises(UserError, match="none does not exist; a model is exported by"):
        find_bundle(tmp_path / "none")
    with pytest.raises(UserError, match="holds no exported model"):
        find_bundle(tmp_path)


def test_damaged_manifest(bundle):
    path = bundle / "assets.extra" / "dlens_manifest.json"
    config = json.loads(path.read_text())
    for content in ("{", "[]", json.dumps({**config, "parameters": 1}), json.dumps({"format": 3})):
        path.write_text(content)
        with pytest.raises(UserError, match="is damaged; export the model again"):
            Manifest.read(bundle)
    path.write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(UserError, match="is of format 99, this version of dlens_tf reads 3"):
        Manifest.read(bundle)
    path.unlink()
    with pytest.raises(UserError, match=r"has no assets\.extra/dlens_manifest\.json"):
        Manifest.read(bundle)


def test_verify_finds_damage(bundle):
    manifest = Manifest.read(bundle)
    path = bundle / "variables" / "variables.data-00000-of-00001"
    assert (
        hashlib.sha256(path.read_bytes()).hexdigest()
        == manifest.sha256["variables/variables.data-00000-of-00001"]
    )
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"variables\.data.* is damaged \(its sha256 differs"):
        manifest.verify(bundle)
    path.unlink()
    with pytest.raises(UserError, match=r"variables\.data.* is missing"):
        manifest.verify(bundle)
