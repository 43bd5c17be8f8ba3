import os
import re
import socket

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from dlens_tf.inference.predictor import Predictor
from dlens_tf.serving.server.app import running
from dlens_tf.serving.server.options import ModelConfig, ServerOptions

IMAGES = np.random.default_rng(0).normal(size=(14, 64, 64)).astype(np.float32)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(folder / "a.npy", IMAGES[0])
    np.save(folder / "b.npy", np.array([IMAGES[1], 1e-23], dtype=object), allow_pickle=True)
    with h5py.File(folder / "c.h5", "w") as file:
        file["image"] = IMAGES[2:13]
    fits.PrimaryHDU(IMAGES[13], fits.Header({"PIXSCALE": 0.1})).writeto(folder / "d.fits")
    return folder


def test_predicts_every_format(run_tool, exported_run, images, tmp_path):
    output = tmp_path / "out.ecsv"
    done = run_tool(
        "predict",
        f"--model={exported_run / 'export'}",
        f"--images={images}/*.npy,{images}/c.h5,{images}/d.fits,",
        f"--output={output}",
        "--batch_size=4",
    )
    assert done.returncode == 0
    # The one line on stderr: three of the files do not state their pixel scale.
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        f"warning: {images}/a.npy and 2 more: pixel scale unknown, taken to be the model's 0.101"
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith(f"{images}/a.npy[0]  log10_m_axion = -2")
    number = r"-?\d+\.\d{3} \(\+\d\.\d{3} -\d\.\d{3}\)"
    assert re.search(rf" = {number} log10\(eV\), source_x = {number} arcsec$", lines[0])
    assert lines[-2:] == ["… and 4 more", f"wrote {output}"]
    table = Table.read(output)
    assert len(table) == 14
    assert list(table["index"]) == [0, 0, *range(11), 0]
    expected = Predictor.load(exported_run / "export").predict(IMAGES)
    np.testing.assert_allclose(table["log10_m_axion_mean"], expected.mean[:, 0], rtol=1e-6)
    np.testing.assert_allclose(
        table["source_x_q975"], expected.quantiles()[:, 1, -1], rtol=1e-5, atol=1e-5
    )


def test_ready_to_use_model_by_its_name(run_tool, tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).poisson(20.0, (150, 150)))
    done = run_tool(
        "predict",
        "--model=axion_model_i",
        f"--images={tmp_path / 'a.npy'}",
        "--pixel_scale=0.05",
        f"--output={tmp_path / 'out.ecsv'}",
    )
    assert (done.returncode, done.stderr) == (0, "")
    table = Table.read(tmp_path / "out.ecsv")
    assert -25.0 < table["log10_m_axion_mean"][0] < -21.0
    assert re.search(r"axion_model_i/\d+$", table.meta["model"])


@pytest.mark.parametrize("scheme", ["http", pytest.param("grpc", marks=pytest.mark.slow)])
def test_server_gives_the_same(run_tool, exported_run, images, tmp_path, scheme):
    model = ModelConfig("lenses", exported_run / "export")
    options = ServerOptions([model], rest_port=0, grpc_port=0, poll_seconds=0.0)
    with running(options) as server:
        port = server.rest_port if scheme == "http" else server.grpc_port
        url = f"{scheme}://127.0.0.1:{port}"
        done = run_tool(
            "predict",
            f"--server={url}",
            "--model=lenses",
            f"--images={images}/*.npy,{images}/c.h5,{images}/d.fits",
            f"--output={tmp_path / 'out.ecsv'}",
            "--pixel_scale=0.101",
            "--batch_size=5",
            "--timeout=60",
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith(f"{images}/a.npy[0]  log10_m_axion = -2")
    table = Table.read(tmp_path / "out.ecsv")
    assert list(table["index"]) == [0, 0, *range(11), 0]
    predictor = Predictor.load(exported_run / "export")
    columns = predictor.predict(IMAGES).columns()
    assert table.colnames == ["file", "index", *(column.name for column in columns)]
    for column in columns:
        np.testing.assert_allclose(table[column.name], column.values, rtol=1e-5, atol=1e-5)
    assert table.meta["model"] == f"{url}, model 'lenses', version 1"
    assert table.meta["recipe"] == predictor.manifest.recipe


def test_server_that_does_not_answer_is_one_line(run_tool, images, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, but not listening
        for change, message in [
            ({}, f"{nobody}, model 'lenses': not reachable (Connection refused); see that"),
            ({"server": "localhost:8501"}, "'localhost:8501' is not a server's URL; valid are"),
            ({"model": ""}, "flag --model is missing"),
            ({"timeout": 0}, "flag --timeout=0"),
        ]:
            flags = {
                "server": nobody,
                "model": "lenses",
                "images": images / "a.npy",
                "output": tmp_path / "out.csv",
                **change,
            }
            done = run_tool("predict", *(f"--{name}={value}" for name, value in flags.items()))
            assert done.returncode == 2
            assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
            assert done.stdout == ""
    assert not list(tmp_path.glob("*out*"))


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_bad_input_is_one_line_and_writes_nothing(run_tool, exported_run, images, tmp_path):
    marker = tmp_path / "ran"
    hostile = np.array([IMAGES[0], Hostile(marker)], dtype=object)
    np.save(images / "hostile.npy", hostile, allow_pickle=True)
    np.save(images / "nan.npy", np.full((64, 64), np.nan))
    np.save(images / "large.npy", np.zeros((150, 150)))
    good = {
        "model": exported_run / "export",
        "images": images / "a.npy",
        "output": tmp_path / "out.csv",
    }
    for change, message in [
        ({"model": ""}, "flag --model is missing"),
        ({"images": ""}, "flag --images is missing"),
        ({"output": ""}, "flag --output is missing"),
        ({"model": exported_run}, "is not an exported model; run tools/export.py"),
        ({"model": "axion_model_0"}, "unknown model 'axion_model_0'; ready to use are axion_model"),
        ({"images": images / "z*.npy"}, "no file matches the pattern"),
        ({"images": images / "hostile.npy"}, "its pickled content is refused"),
        ({"images": images / "nan.npy"}, "4096 of 4096 values are NaN"),
        ({"images": images / "large.npy"}, "shape [150, 150], but the model takes [64, 64, 1]"),
        ({"output": tmp_path / "out.txt"}, "unknown kind of catalogue; valid: .csv, .ecsv, .h5"),
        ({"output": tmp_path / "none" / "out.csv"}, "there is no folder"),
        ({"pixel_scale": 0.05}, "--pixel_scale: 0.05 arcsec per pixel, but the model"),
        ({"batch_size": 0}, "flag --batch_size=0"),
        ({"label": "stable"}, "--timeout, --model_version and --label go with --server"),
        ({"images": ","}, "flag --images is missing"),
        ({"images": images / "c.h5", "output": images / "c.h5"}, "it is one of the inputs"),
    ]:
        flags = {**good, **change}
        done = run_tool("predict", *(f"--{name}={value}" for name, value in flags.items()))
        assert done.returncode == 2, message
        assert message in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert done.stdout == ""
    assert not marker.exists()
    assert not list(tmp_path.glob("*out*"))
    with h5py.File(images / "c.h5") as file:
        np.testing.assert_array_equal(file["image"], IMAGES[2:13])
