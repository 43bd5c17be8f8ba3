import numpy as np
import pytest

from dlens_tf.errors import UserError
from dlens_tf.io.contract import ImageContract

ONE = ImageContract((6, 4, 1), pixel_scale=0.1)
THREE = ImageContract((6, 4, 3), pixel_scale=0.1)


@pytest.mark.parametrize(
    ("contract", "shape", "batch"),
    [
        (ONE, (6, 4), 1),
        (ONE, (6, 4, 1), 1),
        (ONE, (5, 6, 4), 5),
        (ONE, (6, 6, 4), 6),
        (ONE, (5, 6, 4, 1), 5),
        (THREE, (6, 4, 3), 1),
        (THREE, (2, 6, 4, 3), 2),
    ],
)
def test_layouts(contract, shape, batch):
    array = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    images = contract.arrange(array, "x")
    assert images.shape == (batch, *contract.shape)
    assert images.dtype == np.float32
    # In every layout the values keep their order in memory.
    np.testing.assert_array_equal(images.ravel(), np.arange(images.size))


@pytest.mark.parametrize("dtype", ["<f2", ">f4", ">f8", ">i2", "u1", "<f4"])
def test_numbers_of_any_kind_and_byte_order(dtype):
    values = np.linspace(0.0, 100.0, 24).reshape(6, 4).astype(dtype)
    images = ONE.arrange(values, "x")
    assert images.dtype == np.dtype(np.float32) and images.dtype.isnative
    np.testing.assert_array_equal(images[0, :, :, 0], values.astype(float).astype(np.float32))


def test_result_shares_no_memory():
    values = np.zeros((6, 4), np.float32)
    assert not np.shares_memory(ONE.arrange(values, "x"), values)


@pytest.mark.parametrize(
    ("contract", "shape", "message"),
    [
        (
            ONE,
            (4, 6),
            r"x: shape \[4, 6\], but the model takes \[6, 4, 1\] at 0.1 arcsec per pixel",
        ),
        (ONE, (281, 281), r"cut out or rebin to 6×4 pixels"),
        (ONE, (2, 5, 5), r"shape \[2, 5, 5\]"),
        (ONE, (6, 4, 3), r"x: 3 channels \(shape \[6, 4, 3\]\), but the model takes \[6, 4, 1\]"),
        (ONE, (2, 6, 4, 3), r"3 channels .* but the model takes \[6, 4, 1\], 1 channel$"),
        (THREE, (6, 4), r"1 channel \(shape \[6, 4\]\), but the model takes \[6, 4, 3\]"),
        (THREE, (6, 4, 1), r"1 channel "),
        (THREE, (5, 6, 4), r"shape \[5, 6, 4\]"),
        (ONE, (24,), r"an array of shape \[24\] is not an image"),
        (ONE, (), r"an array of shape \[\] is not an image"),
        (ONE, (1, 1, 6, 4, 1), "is not an image"),
        (ONE, (0, 6, 4), "there is no image in it"),
    ],
)
def test_wrong_shape_says_both(contract, shape, message):
    with pytest.raises(UserError, match=message):
        contract.arrange(np.zeros(shape), "x")


@pytest.mark.parametrize("dtype", ["c8", "U3", "S3", "?", "O", "M8[s]", "i4,f4"])
def test_wrong_type(dtype):
    with pytest.raises(UserError, match=r"x: values are of type .* needs float or integer"):
        ONE.arrange(np.zeros((6, 4), dtype), "x")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_not_finite_says_how_many_and_where(value):
    array = np.zeros((5, 6, 4))
    array[3, 2, 1] = array[4, 0, 0] = value
    message = (
        rf"x: 2 of 120 values are NaN, infinite or too large for float32, the first \({value}\) in "
        "image 3 at row 2, column 1, channel 0"
    )
    with pytest.raises(UserError, match=message.replace("+", r"\+")):
        ONE.arrange(array, "x")


def test_pixel_scale():
    for scale in (0.1, 0.0985, 0.1015):
        ONE.check_pixel_scale(scale, "x")
    for scale in (0.05, 0.0975, 0.1025):
        with pytest.raises(UserError, match=rf"x: {scale} arcsec .* the model was trained at 0.1;"):
            ONE.check_pixel_scale(scale, "x")
    for scale in (0.0, -0.1, np.nan, np.inf):
        with pytest.raises(UserError, match="is not a pixel scale"):
            ONE.check_pixel_scale(scale, "x")
