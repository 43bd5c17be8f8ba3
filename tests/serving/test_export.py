import json
import os
import shutil
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from tensorflow.core.protobuf import saved_model_pb2

from dlens_tf.errors import UserError
from dlens_tf.inference.bundle import Manifest
from dlens_tf.inference.predictor import Predictor
from dlens_tf.io.files import file_checksum
from dlens_tf.serving import export
from dlens_tf.serving.export import export_run
from dlens_tf.serving.signatures import SIGNATURES

IMAGES = np.random.default_rng(0).normal(size=(7, 64, 64, 1)).astype(np.float32)
ANSWERING = [
    "serving_default",
    "serve_bytes",
    "serve_examples",
    "serve_density",
    "serve_density_bytes",
]
LEVELS = [0.025, 0.16, 0.5, 0.84, 0.975]


@pytest.fixture(scope="module")
def bundle(exported_run):
    return exported_run / "export" / "1"


@pytest.fixture(scope="module")
def expected(exported_run):
    outputs = keras.models.load_model(exported_run / "model.keras")(IMAGES)
    return {name: np.asarray(value) for name, value in outputs.items()}


def inputs(signature: str, batch: int):
    if signature in ("serving_default", "serve_density"):
        return "image", IMAGES[:batch]
    rows = [image.ravel(order="C").astype("<f4").tobytes() for image in IMAGES[:batch]]
    if signature == "serve_examples":
        features = [{"image": bytes_feature(row)} for row in rows]
        rows = [
            tf.train.Example(features=tf.train.Features(feature=f)).SerializeToString()
            for f in features
        ]
        return "examples", np.array(rows, dtype=object)
    return "image_bytes", np.array(rows, dtype=object)


def bytes_feature(value: bytes):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def assert_equal(served, expected, batch, signature="serving_default"):
    has_density = signature.startswith("serve_density")
    assert set(served) == {"mean", "stddev", "quantiles"} | ({"density"} if has_density else set())
    for name, value in served.items():
        assert value.dtype == np.float32
        # The narrower prior is 0.7 wide, so this is 1e-5 of it.
        tolerance = 1e-4 if name == "density" else 7e-6
        np.testing.assert_allclose(value, expected[name][:batch], rtol=0, atol=tolerance)


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("signature", ANSWERING)
def test_python_loader_equals_model(bundle, expected, signature, batch):
    loaded = tf.saved_model.load(str(bundle))
    key, value = inputs(signature, batch)
    served = loaded.signatures[signature](**{key: tf.constant(value)})
    assert_equal({k: v.numpy() for k, v in served.items()}, expected, batch, signature)


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("signature", ANSWERING)
def test_session_loader_equals_model(bundle, expected, signature, batch):
    key, value = inputs(signature, batch)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(bundle))
        definition = graph.signature_def[signature]
        served = session.run(
            {name: output.name for name, output in definition.outputs.items()},
            {definition.inputs[key].name: value},
        )
    assert_equal(served, expected, batch, signature)


@pytest.mark.parametrize("length", [0, 4, 16380, 16388, 32768])
def test_bytes_of_wrong_length_are_a_clear_error(bundle, length):
    loaded = tf.saved_model.load(str(bundle))
    right = bytes(16384)
    for rows in ([bytes(length)], [right, bytes(length)]):
        with pytest.raises(
            tf.errors.InvalidArgumentError,
            match="each string must be the 16384 bytes of a 64×64×1 image in little-endian float32",
        ):
            loaded.signatures["serve_bytes"](image_bytes=tf.constant(rows))


def test_bytes_of_wrong_length_in_a_session(bundle):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(bundle))
        definition = graph.signature_def["serve_bytes"]
        with pytest.raises(tf.errors.InvalidArgumentError, match="must be the 16384 bytes"):
            session.run(
                definition.outputs["mean"].name,
                {definition.inputs["image_bytes"].name: [bytes(16384), bytes(4)]},
            )


def test_records_of_a_data_set_are_examples(bundle, tiny_data_dir):
    [path, *_] = sorted(tiny_data_dir.glob("deeplense/model_ii_instrument/1.0.0/*test*tfrecord*"))
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    loaded = tf.saved_model.load(str(bundle))
    served = loaded.signatures["serve_examples"](examples=tf.constant(records))
    images = [
        np.frombuffer(
            tf.train.Example.FromString(r).features.feature["image"].bytes_list.value[0], "<f4"
        ).reshape(64, 64, 1)
        for r in records
    ]
    expected = loaded.signatures["serving_default"](image=tf.constant(np.stack(images)))
    np.testing.assert_array_equal(served["mean"], expected["mean"])


def test_samples_depend_on_their_own_seed_alone_and_follow_the_posterior(bundle):
    draw = tf.saved_model.load(str(bundle)).signatures["serve_samples"]
    images, seeds = tf.constant(np.repeat(IMAGES, 16, axis=0)), tf.range(112, dtype=tf.int64)
    samples = draw(image=images, seed=seeds)["samples"].numpy()
    assert samples.shape == (112, 256, 2) and samples.dtype == np.float32
    alone = draw(image=images[5:6], seed=seeds[5:6])["samples"]
    np.testing.assert_allclose(samples[5:6], alone, atol=1e-4)
    posterior = Predictor.load(bundle).predict(IMAGES)
    for row in range(7):
        for p in range(2):
            drawn = np.sort(samples[16 * row : 16 * row + 16, :, p].ravel())
            levels = posterior.select([row]).cdf(
                np.repeat(drawn[:, np.newaxis, np.newaxis], 2, axis=-1)
            )[:, 0, p]
            assert stats.kstest(levels, "uniform").pvalue > 1e-4


def test_manifest_in_the_graph_is_the_bundles(bundle):
    loaded = tf.saved_model.load(str(bundle))
    served = loaded.signatures["serve_manifest"](key=tf.constant([b"", b"x"]))["manifest"].numpy()
    assert served.shape == (2,)
    manifest, whole = Manifest.from_served(served[1]), Manifest.read(bundle)
    assert manifest.parameters == whole.parameters and manifest.image == whole.image
    assert manifest.signatures == {} and manifest.sha256 == {}
    for text in (b"{", b"[]", b'{"format": 3}'):
        with pytest.raises(UserError, match="the model's served manifest is damaged"):
            Manifest.from_served(text)


def test_graph_holds_no_more_than_loaders_need(bundle):
    saved_model = saved_model_pb2.SavedModel.FromString((bundle / "saved_model.pb").read_bytes())
    functions = saved_model.meta_graphs[0].graph_def.library.function
    assert sum(len(function.node_def) for function in functions) > 100
    for function in functions:
        names = [node.name for node in function.node_def]
        assert len(set(names)) == len(names)
        assert all(len(name) <= 6 for name in names)
        assert not any("_output_shapes" in node.attr for node in function.node_def)


def test_layout_and_manifest(exported_run, bundle):
    files = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert files == {
        "saved_model.pb",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
        "assets.extra/dlens_manifest.json",
        "assets.extra/tf_serving_warmup_requests",
        "assets.extra/golden.npz",
    }
    manifest = json.loads((bundle / "assets.extra" / "dlens_manifest.json").read_text())
    run = json.loads((exported_run / "run.json").read_text())
    assert manifest["parameters"] == run["targets"]
    assert [p["unit"] for p in manifest["parameters"]] == ["log10(eV)", "arcsec"]
    assert manifest["quantile_levels"] == LEVELS
    assert manifest["head"] == {"kind": "gaussian"}
    assert manifest["recalibration"] is None
    assert manifest["image"]["shape"] == [64, 64, 1]
    assert manifest["image"]["pixel_scale"] == 0.101
    assert manifest["instrument"] == "euclid_vis_2021"
    assert manifest["recipe"] == "model_ii_instrument"
    assert manifest["dataset"] == {
        "name": "deeplense",
        "config": "model_ii_instrument",
        "version": "1.0.0",
        "classes": ["axion"],
    }
    assert manifest["git_commit"] == "0" * 40
    assert manifest["metrics"] is None
    assert set(manifest["signatures"]) == set(SIGNATURES)
    assert manifest["tolerance"] == 1e-5 and manifest["ood"] is None
    density = manifest["signatures"]["serve_density"]["outputs"]["density"]
    assert density == {"dtype": "float32", "shape": [None, 4]}
    assert manifest["signatures"]["serve_bytes"] == {
        "inputs": {"image_bytes": {"dtype": "string", "shape": [None]}},
        "outputs": {
            "mean": {"dtype": "float32", "shape": [None, 2]},
            "quantiles": {"dtype": "float32", "shape": [None, 2, 5]},
            "stddev": {"dtype": "float32", "shape": [None, 2]},
        },
    }
    assert str(exported_run).encode() not in b"".join(
        p.read_bytes() for p in bundle.rglob("*") if p.is_file()
    )


def test_versions_metrics_and_output_folder(write_run, tmp_path):
    run = write_run(tmp_path / "run", head="point")
    (run / "evaluation").mkdir()
    evaluation = {
        "split": "test",
        "num_examples": 9,
        "num_available": 10,
        "run": {"model_sha256": file_checksum(run / "model.keras")},
        "recalibration": None,
        "parameters": {"source_x": {"metrics": {"mae": 1}}},
    }
    (run / "evaluation" / "test.json").write_text(json.dumps(evaluation))
    base = tmp_path / "served"
    (base / "4").mkdir(parents=True)
    (base / "notes").mkdir()
    bundle = export_run(run, base)
    assert bundle == base / "5"
    assert sorted(p.name for p in base.iterdir()) == ["4", "5", "notes"]
    manifest = json.loads((bundle / "assets.extra" / "dlens_manifest.json").read_text())
    assert manifest["metrics"] == {
        "split": "test",
        "num_examples": 9,
        "parameters": {"source_x": {"mae": 1}},
    }
    assert manifest["quantile_levels"] == []
    assert set(manifest["signatures"]["serving_default"]["outputs"]) == {"mean"}
    evaluation["run"]["model_sha256"] = "0" * 64
    (run / "evaluation" / "test.json").write_text(json.dumps(evaluation))
    with pytest.raises(UserError, match=r"test\.json is of another model than"):
        export_run(run, base)
    (run / "evaluation" / "test.json").write_text("{")
    with pytest.raises(UserError, match=r"test\.json is damaged"):
        export_run(run, base)
    assert sorted(p.name for p in base.iterdir()) == ["4", "5", "notes"]


def test_failed_check_leaves_nothing(write_run, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run")
    write = export.write_saved_model

    def write_another(model, *arguments):
        other = keras.models.clone_model(model)
        other.set_weights([w * 1.01 for w in model.get_weights()])
        write(other, *arguments)

    monkeypatch.setattr(export, "write_saved_model", write_another)
    with pytest.raises(UserError, match=r"export check failed: \w+ from serve_bytes of 1 images"):
        export_run(run)
    assert sorted(p.name for p in run.iterdir()) == ["model.keras", "run.json"]


def test_stale_partial_folders_are_removed(write_run, tmp_path):
    base = tmp_path / "served"
    for name, hours in (("killed", 2), ("working", 0.1)):
        folder = base / f".partial-{name}"
        (folder / "variables").mkdir(parents=True)
        os.utime(folder, 2 * (time.time() - 3600 * hours,))
    assert export_run(write_run(tmp_path / "run", head="point"), base) == base / "1"
    assert sorted(p.name for p in base.iterdir()) == [".partial-working", "1"]


def test_full_disk_is_told_without_node_names(write_run, tmp_path, monkeypatch):
    def full(*_):
        raise tf.errors.ResourceExhaustedError(
            None,
            None,
            "{{function_node __wrapped__SaveV2_dtypes_9_device_/job:localhost/CPU:0}} "
            "/x/variables; No space left on device [Op:SaveV2]",
        )

    monkeypatch.setattr(export, "write_saved_model", full)
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        export_run(run)
    assert str(caught.value) == (
        f"can't export to {run / 'export'}: /x/variables; No space left on device"
    )
    assert not (run / "export").exists()


def test_bad_folders(write_run, tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        export_run(tmp_path)
    run = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"can't export to .*file"):
        export_run(run, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"
    (run / "model.keras").unlink()
    with pytest.raises(UserError, match=r"has no model\.keras yet"):
        export_run(run)


@pytest.mark.slow
def test_saved_model_cli(bundle, expected, tmp_path):
    cli = shutil.which("saved_model_cli", path=sys.exec_prefix + "/bin")

    def saved_model_cli(*arguments):
        done = subprocess.run(
            [cli, *arguments], capture_output=True, text=True, timeout=300, check=True
        )
        return done.stdout

    text = saved_model_cli("show", "--dir", str(bundle), "--all")
    for name in SIGNATURES:
        assert f"signature_def['{name}']" in text
    assert "shape: (-1, 64, 64, 1)" in text
    np.save(tmp_path / "images.npy", IMAGES)
    saved_model_cli(
        "run", "--dir", str(bundle), "--tag_set", "serve", "--signature_def", "serving_default",
        "--inputs", f"image={tmp_path / 'images.npy'}", "--outdir", str(tmp_path),
    )  # fmt: skip
    served = {name: np.load(tmp_path / f"{name}.npy") for name in ("mean", "stddev", "quantiles")}
    assert_equal(served, expected, 7)
