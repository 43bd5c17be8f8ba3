import h5py
import numpy as np
import pytest

from dlens_tf.errors import UserError
from dlens_tf.io.contract import ImageContract
from dlens_tf.io.hdf5 import read_hdf5

IMAGE = np.arange(12.0).reshape(3, 4)


@pytest.fixture
def write(tmp_path):
    def write(datasets=None, attributes=None):
        path = tmp_path / "x.h5"
        with h5py.File(path, "w") as file:
            for name, value in (datasets or {}).items():
                file[name] = value
            file.attrs.update(attributes or {})
        return path

    return write


@pytest.mark.parametrize("name", ["image", "images", "image_data"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8", "<i2"])
def test_usual_names(write, name, dtype):
    raw = read_hdf5(write({"noise": IMAGE + 1, name: IMAGE.astype(dtype)}))
    np.testing.assert_array_equal(raw.array, IMAGE)
    assert raw.pixel_scale is None


def test_named(write):
    path = write({"image": IMAGE, "group/mine": IMAGE + 1})
    np.testing.assert_array_equal(read_hdf5(path, "group/mine").array, IMAGE + 1)
    for name in ("theirs", "group"):
        message = f"no data set '{name}'; --hdf5_dataset names another of: group/mine, image$"
        with pytest.raises(UserError, match=message):
            read_hdf5(path, name)


def test_no_usual_name(write):
    message = r"no data set 'image' or 'images' or 'image_data'; .* of: flux$"
    with pytest.raises(UserError, match=message):
        read_hdf5(write({"flux": IMAGE}))


def test_pixel_scale(write):
    assert read_hdf5(write({"image": IMAGE}, {"pixel_scale": 0.08})).pixel_scale == 0.08
    assert read_hdf5(write({"image": IMAGE, "pixel_scale": 0.08})).pixel_scale == 0.08
    # lenstronomy's matrix: 0.08" pixels turned by 30 degrees, east to the left.
    turn = np.array([[-np.cos(0.5), np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    path = write({"image_data": IMAGE, "transform_pix2angle": 0.08 * turn})
    assert read_hdf5(path).pixel_scale == pytest.approx(0.08)
    with h5py.File(path, "a") as file:
        file["image_data"].attrs["pixel_scale"] = 0.05
    assert read_hdf5(path).pixel_scale == 0.05
    with pytest.raises(UserError, match="its pixel_scale is not a number"):
        read_hdf5(write({"image": IMAGE}, {"pixel_scale": "0.08 arcsec"}))


def test_objects_are_not_read(write):
    path = write()
    with h5py.File(path, "a") as file:
        file.create_dataset("image", (3,), dtype=h5py.vlen_dtype(np.float64))
        file.create_dataset("images", (3,), dtype=h5py.string_dtype())
    for name in ("image", "images"):
        assert read_hdf5(path, name).array.dtype.kind == "O"  # which the contract refuses
        assert read_hdf5(path, name).array.size == 0


def test_damaged_files(write):
    path = write({"image": np.random.default_rng(0).normal(size=(64, 64))})
    whole = path.read_bytes()
    for content in (b"", b"not HDF5", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.h5: not a whole HDF5 file: ") as caught:
            read_hdf5(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pixel_scale", "its pixel_scale is not a number"),
        ("transform_pix2angle", "its transform_pix2angle is not a 2×2 matrix of numbers"),
    ],
)
def test_pixel_scale_of_the_wrong_kind(write, name, message):
    for value in ("text", np.zeros(3)):
        with pytest.raises(UserError, match=message):
            read_hdf5(write({"image": IMAGE, name: value}))
    path = write({"image": IMAGE})
    with h5py.File(path, "a") as file:
        file.create_group(name)
    assert read_hdf5(path).pixel_scale is None


def test_no_data_set_at_all(write):
    with pytest.raises(UserError, match=r"x\.h5: there is no data set in this HDF5 file$"):
        read_hdf5(write())


def test_declared_but_not_stored(write):
    """A small file may declare terabytes, which HDF5 would read as zeros."""
    contract = ImageContract((64, 64, 1), pixel_scale=0.1)
    for chunks in (None, (1, 64, 64)):
        path = write()
        with h5py.File(path, "a") as file:
            data = file.create_dataset("image", (1_000_000, 64, 64), np.float64, chunks=chunks)
            if chunks:
                data[7] = 1.0
        assert path.stat().st_size < 100_000
        with pytest.raises(UserError, match=r"declares 4096000000 values, but they are not all"):
            read_hdf5(path, contract=contract)


def test_shape_is_checked_before_reading(write):
    path = write()
    with h5py.File(path, "a") as file:
        file.create_dataset("image", (1_000_000, 65, 64), np.float64)
    with pytest.raises(UserError, match=r"x\.h5: shape \[1000000, 65, 64\], but the model"):
        read_hdf5(path, contract=ImageContract((64, 64, 1), pixel_scale=0.1))


@pytest.mark.parametrize("options", [{"chunks": (2, 3)}, {"compression": "gzip"}, {}])
def test_every_kind_of_storage(write, options):
    path = write()
    with h5py.File(path, "a") as file:
        file.create_dataset("image", data=IMAGE, **options)
    np.testing.assert_array_equal(read_hdf5(path).array, IMAGE)
