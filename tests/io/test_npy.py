import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from dlens_tf.errors import UserError
from dlens_tf.io.npy import read_npy

DEEPLENSE = Path(__file__).parents[1] / "data" / "deeplense_model_ii"


def test_plain_arrays(tmp_path):
    path = tmp_path / "x.npy"
    for array in (np.eye(3), np.arange(6, dtype=">i2").reshape(2, 3), np.zeros((0, 4))):
        np.save(path, array)
        raw = read_npy(path)
        np.testing.assert_array_equal(raw.array, array)
        assert raw.array.dtype == array.dtype
        assert raw.pixel_scale is None


def test_real_deeplense_image():
    label = json.loads((DEEPLENSE / "label.json").read_text())
    array = read_npy(DEEPLENSE / "image.npy").array
    assert list(array.shape) == label["shape"]
    # The brightest pixel is on the ring, within the source's offset of theta_E = 1.28".
    row, column = np.unravel_index(np.argmax(array), array.shape)
    radius = 0.101 * np.hypot(row - 31.5, column - 31.5)
    assert abs(radius - 1.28) < 0.35


def test_official_object_array(tmp_path):
    path = tmp_path / "axion.npy"
    image = np.load(DEEPLENSE / "image.npy")
    np.save(path, np.array([image, 1e-23], dtype=object), allow_pickle=True)
    np.testing.assert_array_equal(read_npy(path).array, image)


def test_hostile_file(tmp_path):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    path = tmp_path / "x.npy"
    np.save(path, np.array([np.eye(3), Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"x\.npy: its pickled content is refused: it asks for"):
        read_npy(path)
    assert not marker.exists()
    np.load(path, allow_pickle=True)  # the control: the payload is alive
    assert marker.exists()


def saved(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUM",
        b"not an array at all",
        b"\x80\x04cos\nsystem\n.",
        b"PK\x03\x04 a zip",
        saved(np.eye(64))[:100],
        saved(np.eye(64))[:-8],
        # A header that promises more than any memory holds.
        saved(np.eye(64)).replace(b"(64, 64), }" + 8 * b" ", b"(640000000, 64), }  "[:19]),
        saved(np.eye(64)).replace(b"'<f8'", b"'<q9'"),
        saved(np.eye(64)).replace(b"\x93NUMPY\x01", b"\x93NUMPY\x09"),
        saved(np.eye(64)).replace(b"(64, 64)", b"(64, 6\x00)"),
        saved(np.eye(64)).replace(b"(64, 64), }" + 24 * b" ", b"(64, " + 29 * b"9" + b"),}"),
        saved(np.eye(64)).replace(b"{'descr'", b"{{'desc'"),
        saved(np.eye(64)).replace(b"False", b"((((("),
    ],
)
def test_damaged_files(tmp_path, content):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.npy: not a whole \.npy file: ") as caught:
        read_npy(path)
    assert "\n" not in str(caught.value)


def test_objects_inside_structures(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(saved(np.zeros(3, dtype=[("a", "O")])))
    with pytest.raises(UserError, match="Python objects"):
        read_npy(path)


def test_fuzzed_headers_give_one_line(tmp_path):
    path = tmp_path / "x.npy"
    whole = saved(np.eye(8))
    rng = np.random.default_rng(0)
    for _ in range(400):
        content = bytearray(whole)
        for position in rng.integers(6, 128, size=rng.integers(1, 4)):
            content[position] = rng.integers(256)
        path.write_bytes(bytes(content))
        try:
            read_npy(path)  # a change may be harmless
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
