import shutil
import weakref

import numpy as np
import pytest

from dlens_tf.serving.server import models
from dlens_tf.serving.server.errors import ServingError
from dlens_tf.serving.server.models import ModelStore, ServedModel
from dlens_tf.serving.server.options import ModelConfig

IMAGES = np.ones((1, 64, 64, 1), np.float32)


@pytest.fixture(scope="module")
def kept(write_version, tmp_path_factory):
    """Versions 1 to 3, to be copied."""
    base = tmp_path_factory.mktemp("kept")
    for version in (1, 2, 3):
        write_version(base, version)
    return base


@pytest.fixture
def base(kept, tmp_path):
    """A folder with version 1."""
    add(kept, tmp_path / "base", 1)
    return tmp_path / "base"


def add(kept, base, version):
    shutil.copytree(kept / str(version), base / f".copy-{version}")
    (base / f".copy-{version}").rename(base / str(version))


def asked(store, *which):
    """The version that answers, as it says itself."""
    with store.get("m", *which) as model:
        outputs = model.run("serving_default", {"image": IMAGES})
        assert outputs["mean"][0, 1] == 4096.0
        assert outputs["mean"][0, 0] == model.version
        return model.version


def states(store):
    return {status.version: status.state for status in store.statuses("m")}


def test_a_new_version_takes_over_when_the_last_request_is_answered(kept, base):
    store = ModelStore([ModelConfig("m", base)])
    assert not store.ready
    with pytest.raises(ServingError, match="no version in service") as caught:
        asked(store)
    assert caught.value.code == "NOT_FOUND"
    store.refresh()
    assert store.ready and asked(store) == 1
    with store.get("m") as old:
        add(kept, base, 2)
        store.refresh()
        assert states(store) == {1: "UNLOADING", 2: "AVAILABLE"}
        assert asked(store) == 2
        assert old.run("serving_default", {"image": IMAGES})["mean"][0, 0] == 1.0
    assert states(store) == {1: "END", 2: "AVAILABLE"}
    with pytest.raises(ServingError, match="no version 1 in service"):
        asked(store, 1)


def test_the_memory_of_a_version_is_free_after_its_last_request(kept, base, monkeypatch):
    store = ModelStore([ModelConfig("m", base)])
    store.refresh()
    freed = []
    free = models._free_memory
    monkeypatch.setattr(models, "_free_memory", lambda: (free(), freed.append(True)))
    with store.get("m") as old:
        contents = weakref.ref(old._saved_model)
        add(kept, base, 2)
        store.refresh()
    del old
    store.refresh()
    assert contents() is None
    store.refresh()
    assert len(freed) == 1  # not at each look


def test_labels_and_policies(kept, base):
    add(kept, base, 2)
    add(kept, base, 3)
    store = ModelStore([ModelConfig("m", base, labels={"stable": 1})])
    store.refresh()
    assert states(store) == {1: "AVAILABLE", 3: "AVAILABLE"}
    assert (asked(store), asked(store, None, "stable"), asked(store, 1)) == (3, 1, 1)
    with store.get("m", label="stable") as model:
        assert model.labels == ["stable"]
    with pytest.raises(ServingError, match="no label 'x'") as caught:
        store.status("m", label="x")
    assert caught.value.code == "INVALID_ARGUMENT"
    assert [status.version for status in store.status("m", label="stable")] == [1]
    store = ModelStore([ModelConfig("m", base, versions=frozenset({2, 7}))])
    store.refresh()
    assert asked(store) == 2
    assert states(store) == {2: "AVAILABLE", 7: "END"}
    assert store.status("m", 7)[0].code == "NOT_FOUND"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_broken_version_is_reported_and_the_old_one_stays(kept, base, caplog):
    store = ModelStore([ModelConfig("m", base)])
    store.refresh()
    (base / "notes").mkdir()
    (base / ".partial-4").mkdir()
    (base / "5").mkdir()  # being copied
    add(kept, base, 2)
    (base / "2" / "variables" / "variables.index").unlink()
    (base / "4").mkdir()
    (base / "4" / "saved_model.pb").write_bytes(b"\xff\xff")
    for _ in range(2):
        store.refresh()
    assert asked(store) == 1
    assert states(store) == {1: "AVAILABLE", 4: "END"}
    assert "has no assets.extra/dlens_manifest.json" in store.status("m", 4)[0].message
    assert len(caplog.records) == 1  # not at each look
    shutil.rmtree(base / "4")
    store.refresh()
    assert asked(store) == 1
    assert states(store) == {1: "AVAILABLE", 2: "END"}  # and no word of 4 any more
    broken = store.status("m", 2)[0]
    assert (broken.state, broken.code) == ("END", "UNKNOWN")
    assert broken.message and "\n" not in broken.message
    shutil.rmtree(base / "2")
    add(kept, base, 2)  # mended
    store.refresh()
    assert asked(store) == 2


@pytest.mark.parametrize("damage", [b"no archive", "cut", "other", None])
def test_damaged_golden_answers_keep_no_model_out(bundle, tmp_path, damage, caplog):
    shutil.copytree(bundle, tmp_path / "1")
    golden = tmp_path / "1" / "assets.extra" / "golden.npz"
    if damage == "cut":
        golden.write_bytes(golden.read_bytes()[:-100])
    elif damage == "other":
        np.savez(golden, image=np.zeros((3, 5, 5, 1), np.float32))
    elif damage is None:
        golden.unlink()
    else:
        golden.write_bytes(damage)
    store = ModelStore([ModelConfig("m", tmp_path)])
    store.refresh()
    with store.get("m") as model:
        assert model.examples.shape == (0, 64, 64, 1)
    assert ("golden.npz" in caplog.text) == (damage is not None)


def test_what_vanishes_stays_in_service(kept, base, caplog):
    store = ModelStore([ModelConfig("m", base)])
    store.refresh()
    shutil.rmtree(base)
    store.refresh()
    assert asked(store) == 1
    (status,) = store.status("m")
    assert (status.state, status.code) == ("AVAILABLE", "NOT_FOUND")
    assert status.message == "its folder is gone; it stays in service from memory"
    assert "is gone" in caplog.text
    add(kept, base, 1)
    store.refresh()
    assert store.status("m")[0].code == "OK"


def test_a_failed_warm_up_keeps_a_version_out(kept, base, bundle):
    add(kept, base, 2)
    extra = "assets.extra/tf_serving_warmup_requests"
    shutil.copy(bundle / extra, base / "2" / extra)  # asks signatures that it has not
    store = ModelStore([ModelConfig("m", base)])
    store.refresh()
    assert states(store) == {2: "END"}
    assert not store.ready


def test_loading_can_be_stopped(kept, base, bundle, monkeypatch):
    configs = [ModelConfig(name, bundle.parent) for name in ("warm", "next")]
    store = ModelStore([*configs, ModelConfig("m", base)])
    calls = []
    monkeypatch.setattr(ServedModel, "run", lambda *_: (calls.append(True), store.stop()))
    store.refresh()
    assert len(calls) == 1  # of many warm-up requests
    assert not any(store.in_service(name) for name in store.names())
