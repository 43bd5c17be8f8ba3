"""The restricted unpickler reads what numpy wrote for DeepLense, and runs nothing."""

import io
import os
import pickle
import pickletools

import numpy as np
import pytest

from dlens_tf.errors import UserError
from dlens_tf.io import unpickling
from dlens_tf.io.unpickling import read_labelled_image

IMAGE = np.linspace(-1.0, 2.0, 12).reshape(3, 4)
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"


def pair(first, *labels) -> np.ndarray:
    array = np.empty(1 + len(labels), object)
    array[0] = first
    array[1:] = labels
    return array


def read(content: bytes) -> np.ndarray:
    return read_labelled_image(io.BytesIO(content), "x.npy")


@pytest.mark.parametrize("writer", ["numpy 2", "numpy 1"])
@pytest.mark.parametrize("label", [1e-23, np.float64(1e-23), np.float32(1e-23), 7])
def test_deeplense_pairs(writer, label):
    content = pickle.dumps(pair(IMAGE, label), protocol=4 if writer == "numpy 2" else 3)
    if writer == "numpy 1":
        assert b"cnumpy._core." in content
        content = content.replace(b"cnumpy._core.", b"cnumpy.core.")
    image = read(content)
    assert image.dtype == np.float64
    np.testing.assert_array_equal(image, IMAGE)


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f8", "<i8", ">u2", "u1"])
def test_types_and_orders(dtype):
    image = np.arange(12).reshape(3, 4).astype(dtype)
    for array in (image, np.asfortranarray(image), image[::2, ::-1]):
        np.testing.assert_array_equal(read(pickle.dumps(pair(array), protocol=4)), array)


class Runs:
    """Unpickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile_pickles(function, *arguments) -> dict[str, bytes]:
    payload = Runs(function, *arguments)
    state = (1, (1,), np.dtype("f8"), False, payload)
    as_state = (
        pickle.PROTO
        + b"\x02"
        + RECONSTRUCT
        + b"("
        + NDARRAY
        + b"(I0\ntC\x01btR"
        + pickle.dumps(state, protocol=2)[2:-1]
        + b"b."
    )
    return {
        "alone": pickle.dumps(payload),
        "as image": pickle.dumps(pair(payload, 1.0), protocol=4),
        "as label": pickle.dumps(pair(IMAGE, payload), protocol=4),
        "nested array": pickle.dumps(pair(IMAGE, pair(payload)), protocol=4),
        "old protocol": pickle.dumps(pair(IMAGE, payload), protocol=0),
        "as content": as_state,
        "behind the image": pickle.dumps([pair(IMAGE, 1.0), payload], protocol=4),
    }


@pytest.mark.parametrize("name", hostile_pickles(print))
@pytest.mark.parametrize("function", [os.system, eval, exec])
def test_hostile_pickles_are_refused_and_not_run(name, function, tmp_path):
    marker = tmp_path / "ran"
    argument = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w')"
    content = hostile_pickles(function, argument)[name]
    with pytest.raises(UserError, match=r"^x\.npy: its pickled content is refused: it asks for"):
        read(content)
    assert not marker.exists()


def test_the_payload_would_run_in_an_ordinary_unpickler(tmp_path):
    marker = tmp_path / "ran"
    for name, content in hostile_pickles(os.system, f"touch {marker}").items():
        try:
            pickle.loads(content)  # noqa: S301 (our own payload: the control of the test above)
        except (ValueError, TypeError):
            assert name == "as content"
        assert marker.exists(), name
        marker.unlink()


@pytest.mark.parametrize(
    "content",
    [
        # An array of another class than ndarray.
        RECONSTRUCT + b"(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
        RECONSTRUCT + b"(" + RECONSTRUCT + b"(I0\ntS'b'\ntR.",
        # numpy.ndarray(shape): unset memory, as much as one likes.
        NDARRAY + b"((L1099511627776L\nttR.",
        NDARRAY + b"(I4\nt\x81.",
        # No state at all, and states that are no array's.
        RECONSTRUCT + b"(" + NDARRAY + b"(I0\ntS'b'\ntR.",
        RECONSTRUCT + b"(" + NDARRAY + b"(I0\ntS'b'\ntR(I1\n(I-4\ntcnumpy\ndtype\n"
        b"(S'f8'\ntRI00\nS''\ntb.",
        RECONSTRUCT + b"(" + NDARRAY + b"(I0\ntS'b'\ntR(dS'state'\nI1\nsb.",
        # Names inside the admitted classes, and modules behind numpy.
        b"cnumpy\nndarray.tofile\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.lib.npyio\nload\n.",
        b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.",
        b"cnumpy.f2py.crackfortran\nmyeval\n.",
        # Attributes set on what the names stand for.
        b"cnumpy\ndtype\n(dS'resolve'\nI1\nsb.",
        b"cnumpy\nndarray\n(N(dS'state'\nI1\nstb.",
        # Types that are no numbers.
        RECONSTRUCT + b"(" + NDARRAY + b"(I0\ntS'b'\ntR(I1\n(I1\ntcnumpy\ndtype\n"
        b"(S'V8'\ntRI00\nS''\ntb.",
        # Not a whole pickle.
        b"", b"\x80\x04", b"garbage", b"\x80\x04N.", b"I1\n.", b"(lp0\n.",
        pickle.dumps(pair(IMAGE, 1.0), protocol=4)[:-20],
        b"Pid\n.", b"\x82\x01.",
    ],
)  # fmt: skip
def test_abuse_of_the_admitted_names(content):
    before = {name: dict(vars(record)) for name, record in unpickling._NAMES.items()}
    with pytest.raises(UserError, match=r"^x\.npy: its pickled content is refused: "):
        read(content)
    assert {name: dict(vars(record)) for name, record in unpickling._NAMES.items()} == before


def test_content_and_size_must_agree():
    content = pickle.dumps(pair(IMAGE, 1.0), protocol=4)
    whole = IMAGE.tobytes()
    assert whole in content
    position = content.index(whole) - 1
    assert content[position] == len(whole)
    short = content[:position] + bytes([len(whole) - 8]) + whole[8:] + content[position + 97 :]
    # Python frames protocol 4; without its frame the pickle is as valid.
    frame = next(arg for op, arg, _ in pickletools.genops(content) if op.name == "FRAME")
    short = short.replace(b"\x95" + frame.to_bytes(8, "little"), b"", 1)
    with pytest.raises(UserError, match="whose size and content differ"):
        read(short)


@pytest.mark.parametrize(
    "array",
    [
        pair("text", 1.0),
        pair(IMAGE, "text"),
        pair(IMAGE, IMAGE),
        pair(pair(IMAGE, 1.0), 1.0),
        pair(IMAGE.astype("U3")),
        pair(IMAGE.astype(complex)),
        np.array([[1.0, 2.0]], object),
        np.empty(0, object),
    ],
)
def test_other_object_arrays_are_refused(array):
    with pytest.raises(UserError, match="its pickled content is refused"):
        read(pickle.dumps(array, protocol=4))
