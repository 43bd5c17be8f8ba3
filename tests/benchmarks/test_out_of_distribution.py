import json
import types

import numpy as np
import pytest
from dlens_tf.benchmarks import out_of_distribution as suite
from dlens_tf.benchmarks.out_of_distribution import (
    ALIKE,
    CASES,
    REAL,
    Lenses,
    Options,
    auroc,
    draw_scenes,
    fitted,
    read_real_lenses,
)
from dlens_tf.benchmarks.report import Report, measure
from scipy import stats

from dlens_tf.errors import UserError
from dlens_tf.simulation.engines import make_engine
from dlens_tf.simulation.recipes import get_recipe

RECIPE = get_recipe("model_ii_instrument")
SCALE = RECIPE.instrument.pixel_scale


@pytest.fixture(scope="module", autouse=True)
def one_by_one():
    """The engine that need not be compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "_engine", lambda recipe: make_engine("lenstronomy", recipe))
        yield


def simulate(recipe, number=2):
    return Lenses.simulate(recipe, draw_scenes(recipe, ("axion",), 3, number), 3)


@pytest.fixture(scope="module")
def lenses():
    return simulate(RECIPE)


def radii(images, center_x=0.0, center_y=0.0):
    """Flux-weighted mean and rms radius of images [N, H, W, 1] in pixels."""
    axis = np.arange(images.shape[1]) - 0.5 * (images.shape[1] - 1)
    x = axis[None, None, :] - np.reshape(center_x, (-1, 1, 1))
    y = axis[None, :, None] - np.reshape(center_y, (-1, 1, 1))
    weights = images[..., 0] / images[..., 0].sum(axis=(1, 2), keepdims=True)
    square = x**2 + y**2
    return (weights * np.sqrt(square)).sum((1, 2)), np.sqrt((weights * square).sum((1, 2)))


def noise_free(case, lenses, monkeypatch):
    """What a case makes of lenses, without noise."""
    monkeypatch.setattr(suite, "observe", lambda model, recipe, rng: types.SimpleNamespace(
        image=model, exposure_time=1.0
    ))  # fmt: skip
    return CASES[case](lenses)


def test_wider_pixels_show_the_same_lens_smaller(lenses, monkeypatch):
    wide = noise_free("pixels × 1.5", lenses, monkeypatch)
    assert wide.shape == lenses.images.shape
    before, after = radii(lenses.means)[0], radii(wide)[0]
    np.testing.assert_allclose(before / after, 1.5, rtol=0.02)
    np.testing.assert_allclose(wide.sum((1, 2, 3)), lenses.means.sum((1, 2, 3)), rtol=0.01)


def test_wider_pixels_have_more_sky(lenses):
    border = CASES["pixels × 1.5"](lenses)[:, :8].std()
    sky = RECIPE.instrument.background_rms
    assert border > 1.2 * sky and lenses.images[:, :8].std() == pytest.approx(sky, rel=0.1)


def test_without_a_lens_there_is_the_source(lenses, monkeypatch):
    images = noise_free("no lens", lenses, monkeypatch)
    # Magnitude 20 at zero point 24; an exponential disk of half-light radius 0.25 arcsec.
    np.testing.assert_allclose(images.sum((1, 2, 3)), 10.0 ** (0.4 * 4.0), rtol=0.01)
    place = [[s.parameters[n] / SCALE for s in lenses.scenes] for n in ("source_x", "source_y")]
    rms = radii(images, *place)[1] * SCALE
    sigma = RECIPE.instrument.psf_fwhm / 2.3548
    np.testing.assert_allclose(rms, np.sqrt(6.0 * (0.25 / 1.6783) ** 2 + 2.0 * sigma**2), rtol=0.05)
    assert (lenses.means.sum((1, 2, 3)) > 2.0 * images.sum((1, 2, 3))).all()  # magnified


@pytest.mark.parametrize("name", ["model_ii_instrument", "model_ii_legacy"])
def test_blank_sky_and_more_noise_have_the_instruments_noise(name):
    lenses, sky = simulate(get_recipe(name)), RECIPE.instrument.background_rms
    blank = CASES["blank sky"](lenses)
    assert blank.std() == pytest.approx(sky, rel=0.05) and abs(blank.mean()) < 0.05 * sky
    border = (CASES["noise × 5"](lenses) - lenses.means)[:, :6]
    assert border.std() == pytest.approx(5.0 * sky, rel=0.1)


def test_counts_keep_their_mean_with_more_noise():
    lenses = simulate(get_recipe("model_i_legacy"), 1)
    before, after = lenses.images[:, :20], CASES["noise × 5"](lenses)[:, :20]
    error = before.std() / np.sqrt(before.size)
    assert abs(after.mean() - before.mean()) < 5.0 * 5.0 * error
    assert after.std() == pytest.approx(5.0 * before.std(), rel=0.02)
    blank = CASES["blank sky"](lenses)
    assert (blank == np.round(blank)).all() and blank.min() == 0.0


def test_saturation_cuts_the_brightest_pixels_alone(lenses):
    images = CASES["cut at 30 %"](lenses)
    for image, before in zip(images, lenses.images, strict=True):
        assert image.max() == pytest.approx(0.3 * before.max())
        faint = before < 0.3 * before.max()
        assert (image[faint] == before[faint]).all() and 0.5 < faint.mean() < 0.99


def test_dead_columns_are_those_in_the_middle(lenses):
    images, size = CASES["4 dead columns"](lenses), lenses.images.shape[2]
    dead = np.arange(size // 2 - 2, size // 2 + 2)
    assert (images[:, :, dead] == 0.0).all()
    alive = np.delete(np.arange(size), dead)
    np.testing.assert_array_equal(images[:, :, alive], lenses.images[:, :, alive])


def test_images_are_fitted_by_their_centre():
    image = np.arange(25.0).reshape(5, 5)
    np.testing.assert_array_equal(fitted(image, (3, 3, 1), 0)[..., 0], image[1:4, 1:4])
    quiet = np.random.default_rng(0).normal(7.0, 0.5, (60, 60))
    quiet[20:40, 20:40] = 1000.0
    large = fitted(quiet, (100, 80, 2), 0)
    np.testing.assert_array_equal(large[20:80, 10:70, 1], quiet)
    around = large[:20, :, 0]
    assert around.mean() == pytest.approx(7.0, abs=0.1)
    assert around.std() == pytest.approx(0.5, rel=0.2)


def test_real_lenses_of_the_checkout():
    images = read_real_lenses(suite._REAL_LENSES)
    assert len(images) >= 5
    for image in images:
        assert image.dtype == np.float32 and max(image.shape) <= 150 and np.isfinite(image).all()
        middle = np.abs(np.argwhere(image == image.max())[0] - np.array(image.shape) / 2.0)
        assert (middle < 0.15 * np.array(image.shape)).all()  # the lens galaxy


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    unlike, alike = rng.integers(2, 12, 30), rng.integers(0, 8, 40)
    pairs = [1.0 if u > a else 0.5 if u == a else 0.0 for u in unlike for a in alike]
    value, error = auroc(unlike, alike)
    assert value == pytest.approx(np.mean(pairs))
    assert value == pytest.approx(stats.mannwhitneyu(unlike, alike).statistic / len(pairs))
    again = [
        auroc(rng.choice(unlike, len(unlike)), rng.choice(alike, len(alike)))[0] for _ in range(400)
    ]
    assert error == pytest.approx(np.std(again), rel=0.15)
    assert auroc([2.0, 3.0], [0.0, 1.0]) == (1.0, 0.0)
    assert auroc([0.0, 1.0], [2.0, 3.0]) == (0.0, 0.0)


class StandIn:
    """A model that looks at the noise of an image's first rows."""

    manifest = types.SimpleNamespace(
        ood={},
        recipe="model_ii_instrument",
        dataset={"classes": ["axion"]},
        image=types.SimpleNamespace(shape=RECIPE.image_shape),
    )

    def predict(self, images):
        assert images.dtype == np.float32 and images.shape[1:] == RECIPE.image_shape
        scores = images[:, :6].std(axis=(1, 2, 3)) / (1.25 * RECIPE.instrument.background_rms)
        return types.SimpleNamespace(ood_score=scores)


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A folder that is taken for a bundle; returns the file whose change is another model."""
    manifest = tmp_path / "bundle" / "assets.extra" / "dlens_manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("1")
    (tmp_path / "bundle" / "saved_model.pb").write_text("")
    monkeypatch.setattr(suite.hub, "load", lambda bundle: StandIn())
    monkeypatch.setattr(suite.Manifest, "read", lambda bundle: StandIn.manifest)
    return manifest


def test_table(stand_in):
    model = str(stand_in.parents[1])
    report = measure("out_of_distribution", Options([model], 3), None)
    assert [row["case"] for row in report.rows] == [ALIKE, *CASES, REAL]
    text = report.markdown()
    header = "model | like training | pixels × 1.5 | no lens | blank sky | noise × 5 | cut at 30 %"
    header += " | 4 dead columns"
    assert f"| {header} | real lenses |" in text
    flagged, number = sum(score > 1.0 for score in report.rows[-1]["scores"]), 7
    line = " | ".join(["0.0 %", "100.0 %", "0.0 %", "0.0 %", "100.0 %", "0.0 %", "0.0 %"])
    assert f"| `{model}` | {line} | {flagged} of {number} |" in text
    curves = text.split("AUROC")[1].split(f"| `{model}` | ")[1].splitlines()[0].split(" | ")
    assert curves[0] == curves[3] == "1.000 ± 0.000" and curves[2] != curves[0]
    report.rows = report.rows[1:2]
    assert f"| `{model}` | – | 100.0 % | – | – | – | – | – | – |" in report.markdown()


def test_a_later_run_measures_what_is_new(stand_in, tmp_path, monkeypatch):
    output, model = tmp_path / "scores.json", str(stand_in.parents[1])
    cases = {name: lambda lenses: lenses.images for name in list(CASES)[:2]}
    monkeypatch.setattr(suite, "CASES", cases)
    rows = measure("out_of_distribution", Options([model], 2), output).rows
    assert len(rows) == 4
    assert measure("out_of_distribution", Options([model], 2), output).rows == rows
    more = measure("out_of_distribution", Options([model], 3), output).rows
    assert [len(row["scores"]) for row in more[4:]] == [3, 3, 3]  # real lenses are as many
    stand_in.write_text("2")
    assert len(measure("out_of_distribution", Options([model], 3), output).rows) == len(more) + 4
    assert Report.read(output).rows == json.loads(output.read_text())["rows"]
    with pytest.raises(UserError, match="holds results of seed 10000, not 1; name another file"):
        measure("out_of_distribution", Options([model], 3, seed=1), output)


def test_bad_input(exported_run, tmp_path):
    with pytest.raises(UserError, match="needs at least 2 images, not 1"):
        Options(images=1)
    with pytest.raises(UserError, match="images of real lenses; name a folder that has"):
        measure("out_of_distribution", Options(real_lenses=str(tmp_path)), None)
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    with pytest.raises(UserError, match=r"cube.npy: an image of a real lens must be \[H, W\]"):
        measure("out_of_distribution", Options(real_lenses=str(tmp_path)), None)
    without = str(exported_run / "export")
    with pytest.raises(UserError, match="has no out-of-distribution score; evaluate its run"):
        measure("out_of_distribution", Options([without]), None)
