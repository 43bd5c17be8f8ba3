import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from dlens_tf.errors import UserError
from dlens_tf.io.files import file_checksum
from dlens_tf.serving.check import check_bundle
from dlens_tf.serving.warmup import write_warmup_requests

GOLDEN = "assets.extra/golden.npz"


@pytest.fixture
def bundle(exported_run, tmp_path):
    return shutil.copytree(exported_run / "export" / "1", tmp_path / "1")


def seal(bundle):
    """Makes the manifest's checksums those of the files."""
    path = bundle / "assets.extra" / "dlens_manifest.json"
    manifest = json.loads(path.read_text())
    manifest["sha256"] = {name: file_checksum(bundle / name) for name in manifest["sha256"]}
    path.write_text(json.dumps(manifest))


def change(bundle, name, amount):
    """Changes what the bundle is expected to answer."""
    with np.load(bundle / GOLDEN) as arrays:
        golden = dict(arrays)
    golden[name][:, 1] += amount
    np.savez(bundle / GOLDEN, **golden)
    seal(bundle)


def test_good_bundle(bundle):
    report = "\n".join(check_bundle(bundle))
    assert "8 signatures" in report and "24 requests replayed" in report
    assert "to 1e-05 of the prior's width" in report


def test_golden_answers_are_the_keras_models(exported_run, bundle):
    import keras

    model = keras.models.load_model(exported_run / "model.keras")
    with np.load(bundle / GOLDEN, allow_pickle=False) as golden:
        outputs = model(golden["image"])
        for name in ("mean", "stddev", "quantiles", "density"):
            np.testing.assert_allclose(golden[name], outputs[name], atol=1e-5)
        features = keras.Model(model.input, model.get_layer("head").input)(golden["image"])
        np.testing.assert_allclose(golden["features"], features, rtol=1e-5)
        assert golden["samples"].shape == (3, 256, 2)


@pytest.mark.parametrize("name", ["mean", "stddev", "quantiles"])
@pytest.mark.parametrize("amount", [2e-5, np.nan])
def test_difference_of_one_output(bundle, name, amount):
    change(bundle, name, 0.7 * amount)  # the second parameter's prior is 0.7 wide
    with pytest.raises(UserError, match=f"export check failed: {name} from serve_bytes of 1"):
        check_bundle(bundle)


def test_tolerance_is_relative_to_the_prior(bundle):
    change(bundle, "stddev", 0.7 * 0.5e-5)
    check_bundle(bundle)


@pytest.mark.parametrize("name", ["density", "features", "samples"])
@pytest.mark.parametrize("amount", [2e-3, np.nan])
def test_difference_of_other_outputs(bundle, name, amount):
    change(bundle, name, 100.0 * amount)
    with pytest.raises(UserError, match=f"export check failed: {name} from serve_"):
        check_bundle(bundle)


def test_missing_output(bundle):
    with np.load(bundle / GOLDEN) as arrays:
        np.savez(bundle / GOLDEN, **{k: v for k, v in arrays.items() if k != "stddev"})
    seal(bundle)
    with pytest.raises(UserError, match=r"gives mean, quantiles, stddev, the model gives mean, q"):
        check_bundle(bundle)


def test_warmup_requests_are_replayed(bundle):
    # Images of another shape than the signature's: only the replay can notice.
    write_warmup_requests(bundle, np.zeros((1, 32, 32, 1), np.float32), ["serving_default"])
    seal(bundle)
    with pytest.raises((UserError, ValueError, tf.errors.OpError)):
        check_bundle(bundle)


@pytest.mark.parametrize("name", ["golden.npz", "tf_serving_warmup_requests"])
def test_missing_and_damaged_files(bundle, name):
    path = bundle / "assets.extra" / name
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(UserError, match=rf"{name} is damaged \(its sha256 differs"):
        check_bundle(bundle)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name} is missing; export the model again"):
        check_bundle(bundle)


def test_manifest_has_to_tell_of_all(bundle):
    path = bundle / "assets.extra" / "dlens_manifest.json"
    manifest = json.loads(path.read_text())
    (bundle / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes\.txt is not among the files of the manifest"):
        check_bundle(bundle)
    (bundle / "notes.txt").unlink()
    path.write_text(json.dumps({**manifest, "sha256": {}}))
    with pytest.raises(UserError, match="is not among the files of the manifest"):
        check_bundle(bundle)
    path.write_text(json.dumps({**manifest, "signatures": {}}))
    with pytest.raises(UserError, match="the signatures are not those of the manifest"):
        check_bundle(bundle)
    path.write_text(json.dumps({**manifest, "instrument": "/home/someone/table.txt"}))
    with pytest.raises(UserError, match="the bundle holds a path of this machine, /home/someone"):
        check_bundle(bundle)


def test_damaged_files(bundle):
    (bundle / GOLDEN).write_bytes(b"PK damaged")
    seal(bundle)
    with pytest.raises(UserError, match=r"golden\.npz is damaged"):
        check_bundle(bundle)
    with open(bundle / "variables" / "variables.data-00000-of-00001", "r+b") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="its sha256 differs"):
        check_bundle(bundle)


def test_warmup_requests_are_complete(bundle):
    path = bundle / "assets.extra" / "tf_serving_warmup_requests"
    path.write_bytes(b"")
    seal(bundle)
    with pytest.raises(UserError, match="no warm-up request of 1 images for serve_bytes"):
        check_bundle(bundle)
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"\xff")
    seal(bundle)
    with pytest.raises(UserError, match="warmup_requests is damaged"):
        check_bundle(bundle)


def test_damaged_weights_whose_checksum_is_right(bundle):
    path = bundle / "variables" / "variables.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:1000])
    seal(bundle)
    with pytest.raises(UserError, match="can't be loaded or asked"):
        check_bundle(bundle)


def test_paths_of_this_machine(bundle):
    with pytest.raises(UserError, match="holds a path of this machine, serving_default"):
        check_bundle(bundle, foreign_paths=("serving_default",))


def replace_graph(bundle, function, tmp_path):
    """Puts another SavedModel into a bundle, with its checksums."""
    module = tf.Module()
    spec = tf.TensorSpec([None, 64, 64, 1], tf.float32, "image")
    serve = tf.function(function, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "new"), signatures={"serving_default": serve})
    for name in (
        "saved_model.pb",
        *(f"variables/variables.{k}" for k in ("index", "data-00000-of-00001")),
    ):
        shutil.copyfile(tmp_path / "new" / name, bundle / name)
    seal(bundle)


def test_python_code_is_refused(bundle, tmp_path):
    def serve(image):
        return {"mean": tf.numpy_function(lambda x: x[:, 0, :2, 0], [image], tf.float32)}

    replace_graph(bundle, serve, tmp_path)
    with pytest.raises(UserError, match="signature serving_default calls Python"):
        check_bundle(bundle)


def test_paths_in_the_graph_are_refused(bundle, tmp_path):
    def serve(image):
        table = tf.constant("/home/someone/data/table.txt")
        return {"mean": image[:, 0, :2, 0] + tf.cast(tf.strings.length(table), tf.float32)}

    replace_graph(bundle, serve, tmp_path)
    with pytest.raises(UserError, match=r"path of this machine, /home/someone/data/table\.txt"):
        check_bundle(bundle)
