import pickle
import shutil

import numpy as np
import pytest
from astropy.io import fits

from dlens_tf.errors import UserError
from dlens_tf.simulation.galaxies import BUNDLED, MAX_SIDE, SPLITS, GalaxyCatalogue

NOISE = 0.003
COLUMNS = {"IDENT": "J", "GAL_FILENAME": "20A", "GAL_HDU": "J", "PIXEL_SCALE": "D"}
COLUMNS |= {"NOISE_MEAN": "D"}


def write(folder, pictures, idents=None, without=(), **changed):
    """A catalogue in GalSim's layout, all pictures in one file."""
    count = len(pictures)
    values = {
        "IDENT": range(1, count + 1) if idents is None else idents,
        "GAL_FILENAME": ["images.fits"] * count,
        "GAL_HDU": range(count),
        "PIXEL_SCALE": [0.03] * count,
        "NOISE_MEAN": [0.0] * count,
    } | changed
    columns = [
        fits.Column(name, form, array=list(values[name]))
        for name, form in COLUMNS.items()
        if name not in without
    ]
    table = fits.BinTableHDU.from_columns(columns)
    table.writeto(folder / "real_galaxy_catalog_25.2.fits", overwrite=True)
    images = [fits.PrimaryHDU, *[fits.ImageHDU] * (count - 1)]
    fits.HDUList([kind(p) for kind, p in zip(images, pictures, strict=True)]).writeto(
        folder / "images.fits", overwrite=True
    )
    return folder


def light(shape, center, sigma, ratio=0.6, angle=0.5):
    """An elliptical Gaussian of flux 1; center in pixels from the middle, (x, y)."""
    y, x = np.indices(shape, float)
    x -= 0.5 * (shape[1] - 1) + center[0]
    y -= 0.5 * (shape[0] - 1) + center[1]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    profile = np.exp(-0.5 * (u**2 * ratio + v**2 / ratio) / sigma**2)
    return profile / profile.sum()


def noisy(shape, seed=0):
    return NOISE * np.random.default_rng(seed).standard_normal(shape)


def some(count, shape=(40, 41)):
    return [20.0 * light(shape, (1.0, 0.0), 3.0) + noisy(shape, i) for i in range(count)]


def distances(pixels):
    y, x = np.indices(pixels.shape) - 0.5 * (pixels.shape[0] - 1)
    return np.hypot(x, y)


def half_light_radius(pixels):
    order = np.argsort(distances(pixels).ravel(), kind="stable")
    grown = np.cumsum(pixels.ravel()[order].astype(float))
    return np.interp(0.5 * grown[-1], grown, distances(pixels).ravel()[order])


def check_cleaned(galaxy):
    pixels = galaxy.pixels
    n = pixels.shape[0]
    assert pixels.dtype == np.float32 and pixels.shape == (n, n)
    assert n % 2 == 1 and n <= MAX_SIDE
    assert pixels.min() >= 0.0 and not pixels.flags.writeable
    assert pixels.sum(dtype=float) == pytest.approx(1.0, abs=1e-6)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert border.max() == 0.0
    centroid = np.indices(pixels.shape).reshape(2, -1) @ pixels.ravel().astype(float)
    np.testing.assert_allclose(centroid, 0.5 * (n - 1), atol=0.01)
    # No hard edge: two pixels from the border there is next to nothing of the peak left.
    assert pixels[[1, -2]].max() < 0.01 * pixels.max()
    assert pixels[:, [1, -2]].max() < 0.01 * pixels.max()


def test_bundled_galaxies():
    galaxies = GalaxyCatalogue.open(None)
    assert len(galaxies) == 10 and galaxies.names[0] == "141190"
    for row in range(10):
        galaxy = galaxies.image(row)
        check_cleaned(galaxy)
        assert galaxy.name == galaxies.names[row]
        # The one picture of 233 pixels is binned.
        assert galaxy.scale == pytest.approx(0.06 if row == 0 else 0.03, rel=1e-6)


def test_half_light_radii_are_those_of_the_survey():
    # SExtractor's flux_radius in the COSMOS catalogue, pixels of 0.03". Two galaxies of low surface
    # brightness lose their faintest parts.
    galaxies = GalaxyCatalogue.open(None)
    table = fits.getdata(BUNDLED / "real_galaxy_catalog_23.5_fits.fits", 1)
    ratios = [
        half_light_radius(galaxies.image(row).pixels) * galaxies.image(row).scale / 0.03 / radius
        for row, radius in enumerate(table["flux_radius"])
    ]
    assert np.median(np.abs(np.array(ratios) - 1.0)) < 0.06
    assert min(ratios) > 0.75 and max(ratios) < 1.1


def test_cleaning_leaves_the_galaxy_and_nothing_else(tmp_path):
    shape, center, sky = (90, 84), (4.3, -3.7), 0.02
    truth = light(shape, center, 5.0)
    neighbour = 8.0 * light(shape, (-32.0, 33.0), 2.0, ratio=1.0)
    picture = 30.0 * truth + neighbour + noisy(shape) + sky
    write(tmp_path, [picture] * 3, NOISE_MEAN=[sky] * 3)
    galaxy = GalaxyCatalogue.open(tmp_path).image(0)
    check_cleaned(galaxy)
    n = galaxy.pixels.shape[0]
    expected = light((n, n), (0.0, 0.0), 5.0)
    error = np.abs(galaxy.pixels - expected).sum()
    raw = np.abs(30.0 * light(shape, center, 5.0) - (picture - sky))[20:70, 20:64].sum() / 30.0
    assert error < 0.08  # of the flux
    assert error < 0.5 * raw
    assert half_light_radius(galaxy.pixels) == pytest.approx(half_light_radius(expected), rel=0.03)


def test_large_pictures_are_binned(tmp_path):
    truth = light((301, 300), (10.0, -20.0), 30.0)
    write(tmp_path, [2e3 * truth + noisy(truth.shape)] * 3)
    galaxy = GalaxyCatalogue.open(tmp_path).image(1)
    check_cleaned(galaxy)
    assert galaxy.scale == pytest.approx(0.09)
    expected = light((901, 901), (0.0, 0.0), 30.0)
    assert half_light_radius(galaxy.pixels) * 3 == pytest.approx(
        half_light_radius(expected), rel=0.02
    )


def test_galaxy_too_faint_to_be_detected_is_still_cut_out(tmp_path):
    shape = (60, 60)
    write(tmp_path, [0.15 * light(shape, (0.0, 0.0), 3.0) + noisy(shape)] * 3)
    check_cleaned(GalaxyCatalogue.open(tmp_path).image(0))


def test_noise_free_pictures(tmp_path):
    write(tmp_path, [light((60, 61), (0.0, 0.0), 4.0)] * 3)
    galaxy = GalaxyCatalogue.open(tmp_path).image(0)
    check_cleaned(galaxy)
    n = galaxy.pixels.shape[0]
    assert np.abs(galaxy.pixels - light((n, n), (0.0, 0.0), 4.0)).sum() < 0.02


def test_scaled_pictures_are_read_as_astropy_does(tmp_path):
    pictures = some(3)
    write(tmp_path, pictures)
    expected = GalaxyCatalogue.open(tmp_path).image(1).pixels
    (tmp_path / "scaled").mkdir()
    write(tmp_path / "scaled", pictures)
    hdus = [fits.PrimaryHDU(pictures[0]), *map(fits.ImageHDU, pictures[1:])]
    hdus[1].scale("int16", bscale=1e-4, bzero=1.0)
    fits.HDUList(hdus).writeto(tmp_path / "scaled" / "images.fits", overwrite=True)
    actual = GalaxyCatalogue.open(tmp_path / "scaled").image(1).pixels
    np.testing.assert_allclose(actual, expected, atol=1e-3 * expected.max())


def test_stack():
    galaxies = GalaxyCatalogue.open(None)
    stack = galaxies.stack()
    assert stack.pixels.dtype == stack.scales.dtype == np.float32
    side = max(galaxies.image(row).pixels.shape[0] for row in range(10))
    assert stack.pixels.shape == (10, side, side)
    some = galaxies.stack([4, 0], side=MAX_SIDE)
    assert some.pixels.shape == (2, MAX_SIDE, MAX_SIDE)
    for target, scale, row in zip(*some, [4, 0], strict=True):
        galaxy = galaxies.image(row)
        margin = (MAX_SIDE - galaxy.pixels.shape[0]) // 2
        np.testing.assert_array_equal(target[margin:-margin, margin:-margin], galaxy.pixels)
        assert target.sum(dtype=float) == pytest.approx(1.0, abs=1e-6)
        assert scale == np.float32(galaxy.scale)


def test_splits_are_disjoint_and_fixed():
    galaxies = GalaxyCatalogue.open(None)
    rows = {split: galaxies.split(split).tolist() for split in SPLITS}
    assert sorted(row for split in SPLITS for row in rows[split]) == list(range(10))
    names = {split: [galaxies.names[row] for row in rows[split]] for split in SPLITS}
    assert names["test"] == ["176290", "9205"]
    assert names["validation"] == ["166341", "110283"]


@pytest.mark.parametrize("count", [3, 4, 7, 40, 199, 200, 500])
def test_every_split_has_galaxies(tmp_path, count):
    write(tmp_path, some(1) * count)
    galaxies = GalaxyCatalogue.open(tmp_path)
    sizes = {split: len(galaxies.split(split)) for split in SPLITS}
    assert sum(sizes.values()) == count and min(sizes.values()) >= 1
    assert sizes["train"] >= sizes["validation"]
    if count > 100:
        assert 0.10 < sizes["test"] / count < 0.20


def test_split_of_a_large_catalogue_is_the_galaxys_own(tmp_path):
    def split_of(idents):
        galaxies = GalaxyCatalogue(
            write(tmp_path, some(1) * len(idents), idents) / "real_galaxy_catalog_25.2.fits"
        )
        return {galaxies.names[row]: s for s in SPLITS for row in galaxies.split(s)}

    few, more = split_of(range(1000, 1300)), split_of(range(1299, 899, -1))
    assert all(more[name] == split for name, split in few.items())


def test_same_galaxy_twice_is_in_one_split(tmp_path):
    idents = [*range(1, 11), *range(1, 11)]
    galaxies = GalaxyCatalogue.open(write(tmp_path, some(1) * 20, idents))
    for split in SPLITS:
        rows = galaxies.split(split)
        assert set(rows % 10) == set(rows[rows < 10])


def test_content_id_follows_the_pixels(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(BUNDLED, here)
    shutil.copytree(BUNDLED, there)
    name = "real_galaxy_images_23.5_n1.fits"
    with fits.open(there / name, mode="update") as hdus:
        hdus[3].data[5, 5] += 1e-4
    bundled = GalaxyCatalogue.open(None).content_id
    assert len(bundled) == 12
    assert GalaxyCatalogue.open(here).content_id == bundled
    assert GalaxyCatalogue.open(there).content_id != bundled


def test_opening_is_cached_and_survives_pickling():
    galaxies = GalaxyCatalogue.open(None)
    assert GalaxyCatalogue.open(BUNDLED) is galaxies
    assert GalaxyCatalogue.open(str(BUNDLED / "real_galaxy_catalog_23.5.fits")) is galaxies
    assert pickle.loads(pickle.dumps(galaxies)) is galaxies  # noqa: S301


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_paths_that_are_no_catalogue(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such file"):
        GalaxyCatalogue.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no real_galaxy_catalog\*\.fits"):
        GalaxyCatalogue.open(tmp_path)
    text = tmp_path / "galaxies.csv"
    text.write_text("IDENT,MAG\n1,20\n")
    with pytest.raises(UserError, match="is not a FITS file"):
        GalaxyCatalogue.open(text)
    with pytest.raises(UserError, match="layout: no column IDENT nor GAL_FILENAME"):
        GalaxyCatalogue.open(BUNDLED / "real_galaxy_images_23.5_n1.fits")
    for name in ("real_galaxy_catalog_1.fits", "real_galaxy_catalog_2.fits"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"has several catalogues \(real_galaxy_catalog_1.fits, "):
        GalaxyCatalogue.open(tmp_path)


def test_missing_column(tmp_path):
    write(tmp_path, some(3), without=["GAL_HDU", "PIXEL_SCALE"])
    with pytest.raises(UserError, match="no column GAL_HDU nor PIXEL_SCALE") as error:
        GalaxyCatalogue.open(tmp_path)
    one_line(error)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_galaxies(tmp_path, count):
    with pytest.raises(UserError, match=f"has {count} galaxies; at least 3 are needed"):
        GalaxyCatalogue.open(write(tmp_path, some(count)))


def test_empty_catalogue(tmp_path):
    write(tmp_path, some(3))
    path = tmp_path / "real_galaxy_catalog_25.2.fits"
    with fits.open(path) as hdus:
        fits.BinTableHDU(hdus[1].data[:0]).writeto(tmp_path / "real_galaxy_catalog_0.fits")
    path.unlink()
    with pytest.raises(UserError, match="has no galaxies; at least 3 are needed"):
        GalaxyCatalogue.open(tmp_path)


def test_impossible_values(tmp_path):
    write(tmp_path, some(3), PIXEL_SCALE=[0.03, 0.0, 0.03])
    with pytest.raises(UserError, match=r"galaxy 2 of .* has PIXEL_SCALE 0"):
        GalaxyCatalogue.open(tmp_path)
    write(tmp_path, some(3), NOISE_MEAN=[0.0, 0.0, np.nan])
    with pytest.raises(UserError, match=r"galaxy 3 of .* has NOISE_MEAN nan"):
        GalaxyCatalogue.open(tmp_path)


def test_missing_pictures(tmp_path):
    write(tmp_path, some(3), GAL_HDU=[0, 1, 7])
    galaxies = GalaxyCatalogue.open(tmp_path)
    with pytest.raises(UserError, match=r"galaxy 3 of .*: images\.fits has no HDU 7"):
        galaxies.image(2)
    (tmp_path / "images.fits").unlink()
    with pytest.raises(UserError, match=r"can't read .*images\.fits"):
        galaxies.image(1)


def test_missing_file_of_pictures(tmp_path):
    write(tmp_path, some(3), GAL_FILENAME=["images.fits", "gone.fits", "images.fits"])
    with pytest.raises(UserError, match=r"gone\.fits: no such file"):
        GalaxyCatalogue.open(tmp_path)


def test_bad_pictures(tmp_path):
    broken, dark = some(2)
    broken[3, 4] = np.inf
    write(tmp_path, [broken, 0.0 * dark - 1.0, np.ones(5)])
    galaxies = GalaxyCatalogue.open(tmp_path)
    with pytest.raises(UserError, match=r"galaxy 1 of .*not finite") as error:
        galaxies.image(0)
    one_line(error)
    with pytest.raises(UserError, match=r"galaxy 2 of .* shows no galaxy"):
        galaxies.image(1)
    with pytest.raises(UserError, match=r"galaxy 3 of .*: HDU 2 of images\.fits is not a picture"):
        galaxies.image(2)


def test_unknown_split():
    with pytest.raises(UserError, match="unknown split 'val'; valid: train, validation, test"):
        GalaxyCatalogue.open(None).split("val")
