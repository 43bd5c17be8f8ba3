import dataclasses

import keras
import numpy as np
import pytest
from keras import ops
from lenstronomy.LensModel.lens_model import LensModel

from dlens_tf.errors import UserError
from dlens_tf.models import fitting, lens_fit
from dlens_tf.models.lens_fit import (
    LensFit,
    TemplateStart,
    check_recipe,
    fitted_parameters,
    vortex_deflections,
)
from dlens_tf.simulation.lenstronomy_engine import LenstronomyEngine
from dlens_tf.simulation.recipes import RECIPES, get_recipe
from dlens_tf.simulation.simulator import Simulator

SMALL = {"num_masses": 9, "num_angles": 8, "rank": 24}


@pytest.fixture(scope="module")
def legacy():
    """Fit, recipe and a few noisy lenses of a recipe with a fixed lens."""
    recipe = get_recipe("model_ii_instrument")
    lenses = Simulator(recipe, "fast").simulate_many("axion", 3, range(12))
    return LensFit.for_recipe(recipe, **SMALL), recipe, lenses


@pytest.fixture(scope="module")
def free():
    """The same of a recipe with a free lens."""
    recipe = get_recipe("model_ii")
    lenses = Simulator(recipe, "fast").simulate_many("axion", 3, range(6))
    return LensFit.for_recipe(recipe, steps=8, **SMALL), recipe, lenses


def images(lenses):
    return np.stack([lens.image for lens in lenses])


def truth(fit, lenses):
    return np.array([[lens.parameters[n] for n in fit.fitted] for lens in lenses], np.float32)


def as_point(scene, recipe):
    """The same lens with its vortex's mass in a point."""
    return dataclasses.replace(scene, points=dataclasses.replace(scene.points, half_length=1e-3))


@pytest.mark.parametrize(
    ("name", "tolerance"), [("model_ii_instrument", 2e-3), ("model_iii_legacy", 2e-3)]
)
def test_smooth_model_is_lenstronomys(name, tolerance):
    recipe = get_recipe(name)
    simulator = Simulator(recipe, "fast")
    lenses = simulator.simulate_many("axion", 1, range(4))
    fit = LensFit.for_recipe(recipe, **SMALL)
    scenes = [as_point(lens.scene, recipe) for lens in lenses]
    expected = LenstronomyEngine(recipe).render(scenes)[..., 0]
    if recipe.noise == "none_doubled":
        expected = 2.0 * expected
    smooth = np.array(fit.smooth(truth(fit, lenses)))
    peak = expected.max(axis=(1, 2), keepdims=True)
    # Beads within a thousandth of an arcsecond are a point but for the softening.
    assert np.abs((smooth - expected) / peak).max() < tolerance


def test_smooth_model_of_a_free_lens_is_close_to_lenstronomys(free):
    fit, recipe, lenses = free
    expected = LenstronomyEngine(recipe).render([as_point(s.scene, recipe) for s in lenses])[..., 0]
    smooth = np.array(fit.smooth(truth(fit, lenses)))
    # Two subpixels instead of four: the brightest pixels differ most.
    error = np.abs(smooth - expected) / expected.max(axis=(1, 2), keepdims=True)
    assert np.median(error.max(axis=(1, 2))) < 0.05
    assert error.mean() < 5e-4


def test_derivatives_are_those_of_the_smooth_model(free):
    fit, _, lenses = free
    values = truth(fit, lenses)
    plain = LensFit.from_config({**fit.get_config(), "supersampling": 1})
    plain.build((None, 64, 64, 1), (None, values.shape[1]))
    plain.optics["1"].assign(fit.optics["1"])
    columns = plain._derivatives(values)
    for i, (name, (_, std, _, _)) in enumerate(fit.fitted.items()):
        step = np.zeros(values.shape[1], np.float32)
        step[i] = 0.02 * std
        rise = np.array(plain.smooth(values + step)) - np.array(plain.smooth(values - step))
        expected = rise / 0.04
        error = np.linalg.norm(np.array(columns)[:, i] - expected, axis=(1, 2))
        size = np.linalg.norm(expected, axis=(1, 2))
        assert np.median(error / size) < 0.1, name


def test_each_parameter_moves_the_masses_that_it_is_said_to(free):
    fit, _, lenses = free
    named = fit._named(truth(fit, lenses))
    moving = [name for name in fit.fitted if name in lens_fit._MOVED]
    assert set(moving) == {"theta_E", "e1", "e2", "center_x", "center_y"}
    for name in moving:
        moved = {**named, name: named[name] + 0.1}
        partly, wholly = (
            np.array(fit._deflection(moved, 1, masses))
            - np.array(fit._deflection(named, 1, masses))
            for masses in (lens_fit._MOVED[name], lens_fit._MASSES)
        )
        np.testing.assert_allclose(partly, wholly, atol=1e-5, err_msg=name)
    # Those in no table move none of them, and are differentiated otherwise.
    assert set(fit.fitted) - set(moving) >= {"gamma1", "gamma2", "source_x", "source_magnitude"}


def test_fit_finds_the_source_behind_a_known_lens(legacy):
    fit, _, lenses = legacy
    start = TemplateStart.for_fit(fit)(images(lenses))
    true = truth(fit, lenses)
    assert np.abs(np.array(start) - true).max() < 0.15
    # Where the vortex is short, nothing is left to disturb the fit.
    short = [lens.parameters["log10_m_axion"] > -22.8 for lens in lenses]
    fitted = np.array(fit.fit(images(lenses)[..., 0], start))
    assert sum(short) > 2
    assert np.abs(fitted - true)[short].max() < 1.5e-3


def test_fit_of_a_free_lens_explains_the_image(free):
    fit, _, lenses = free
    true = truth(fit, lenses)
    rng = np.random.default_rng(0)
    std = np.array([numbers[1] for numbers in fit.fitted.values()], np.float32)
    start = true + 0.2 * std * rng.normal(size=true.shape).astype(np.float32)
    outputs = fit(images(lenses), start)
    short = np.array([lens.parameters["log10_m_axion"] > -22.8 for lens in lenses])
    quality = np.exp(np.array(outputs["facts"])[:, -2])
    assert short.any()
    assert quality[short].max() < 1.5
    fitted = np.array(outputs["facts"])[short, :-2] * std
    mean = np.array([numbers[0] for numbers in fit.fitted.values()])
    assert np.abs(fitted[:, 0] + mean[0] - true[short, 0]).max() < 0.05  # theta_E


def test_counts_are_fitted_with_their_exposure():
    recipe = get_recipe("model_i_legacy")
    lenses = Simulator(recipe, "fast").simulate_many("axion", 5, range(4))
    fit = LensFit.for_recipe(recipe, crop=112, binning=2, **SMALL)
    assert list(fit.fitted) == ["source_x", "source_y", "log10_exposure_time"]
    fitted = np.array(
        fit.fit(images(lenses)[:, 19:131, 19:131, 0], TemplateStart.for_fit(fit)(images(lenses)))
    )
    times = [np.log10(lens.metadata["exposure_time"]) for lens in lenses]
    np.testing.assert_allclose(fitted[:, 2], times, atol=0.01)


def test_residual_of_the_right_lens_is_white(legacy):
    fit, recipe, lenses = legacy
    rng = np.random.default_rng(2)
    smooth = np.array(fit.smooth(truth(fit, lenses)))
    sigma = np.sqrt(
        recipe.instrument.background_rms**2 + smooth / recipe.instrument.total_exposure_time
    )
    noisy = (smooth + sigma * rng.normal(size=smooth.shape)).astype(np.float32)
    outputs = fit(noisy[..., None], truth(fit, lenses))
    residual = np.sinh(np.array(outputs["pictures"])[..., 2])
    assert residual.std() == pytest.approx(1.0, abs=0.02)
    assert np.abs(residual.mean(axis=(1, 2))).max() < 0.1
    # And without a vortex, no vortex stands out: the scores are normal.
    scores = np.sinh(np.array(outputs["evidence"])[..., 0] / 0.5)
    assert 0.5 < scores.std() < 1.5


def test_evidence_finds_the_vortex(legacy):
    fit, recipe, lenses = legacy
    simulator = Simulator(recipe, "fast")
    mass, angle = fit.masses[3], np.pi * 3 / fit.num_angles
    scenes = [
        dataclasses.replace(
            lens.scene,
            points=recipe.substructure["axion"].draw(
                {"log10_m_axion": mass, "phi_vortex": angle}, None, recipe.plane
            ),
        )
        for lens in lenses
    ]
    outputs = fit(simulator.engine.render(scenes), truth(fit, lenses))
    ratio = np.array(outputs["evidence"])[..., 1].reshape(len(lenses), -1)
    best = np.stack(np.unravel_index(ratio.argmax(axis=1), (9, 8)), axis=-1)
    assert (np.abs(best - [3, 3]) <= [1, 0]).all(axis=1).mean() > 0.8


def test_evidence_is_a_projection(legacy):
    """Against the same numbers by least squares, one vortex at a time."""
    _, recipe, lenses = legacy
    # All singular vectors, so that nothing is compressed away.
    fit = LensFit.for_recipe(recipe, num_masses=4, num_angles=4, rank=16)
    values = ops.convert_to_tensor(truth(fit, lenses)[:1])
    _, _, residual, weight, _ = fit._compare(images(lenses)[:1, ..., 0], values)
    outputs = np.array(fit._evidence(values, residual, weight))[0]
    changes = np.array(fit._derivatives(values, with_gradient=True), np.float64)[0]
    columns, gradient = changes[:-2], changes[-2:]
    design = (columns * np.array(weight, np.float64)).reshape(len(fit.fitted), -1)
    pull = (np.array(values)[0] - fit._mean) / fit._std
    point = vortex_deflections(recipe, [fit.masses[-1] + 1.0], [0.0], 64, 1)[0]
    # The prior is so many more data: the deviations of the parameters from its mean.
    ridge = np.concatenate([design, np.eye(len(fit.fitted))], axis=1)
    data = np.concatenate([np.array(residual, np.float64).ravel(), -pull])
    for row, column in ((0, 0), (1, 3), (3, 2)):
        angle = column * np.pi / fit.num_angles
        field = vortex_deflections(recipe, [fit.masses[row]], [angle], 64, 1)[0] - point
        change = -recipe.deflection_scale * (gradient[0] * field.real + gradient[1] * field.imag)
        template = (change * np.array(weight)[0]).ravel()
        template = np.concatenate([template, np.zeros(len(fit.fitted))])
        template = template - ridge.T @ np.linalg.lstsq(ridge.T, template, rcond=None)[0]
        power = template @ template
        assert outputs[row, column, 2] / 0.2 == pytest.approx(np.log(power), abs=0.01)
        score = template @ data / np.sqrt(power)
        assert np.sinh(outputs[row, column, 0] / 0.5) == pytest.approx(score, rel=0.01, abs=0.05)


def test_vortices_deflect_as_the_recipes_do():
    recipe = get_recipe("model_ii")
    axis = (np.arange(64) - 31.5) * recipe.instrument.pixel_scale
    x, y = np.meshgrid(axis, axis)
    law = recipe.substructure["axion"]
    values = {"log10_m_axion": -23.0, "phi_vortex": 0.6}
    line = law.draw(values, None, recipe.plane)
    beads = [
        {"theta_E": size, "center_x": bead_x, "center_y": bead_y}
        for size, bead_x, bead_y in zip(line.theta_E, line.x, line.y, strict=True)
    ]
    expected = LensModel(["POINT_MASS"] * len(beads)).alpha(x, y, beads)
    field = vortex_deflections(recipe, [-23.0], [0.6], 64, 1)[0]
    # Away from the line, where the mean over a pixel is its middle.
    far = np.abs(np.cos(0.6) * y - np.sin(0.6) * x) > 0.3
    far |= np.hypot(x, y) > line.half_length + 0.3
    np.testing.assert_allclose(field.real[far], expected[0][far], atol=2e-3)
    np.testing.assert_allclose(field.imag[far], expected[1][far], atol=2e-3)


def test_vortices_weigh_alike_at_every_angle():
    recipe = get_recipe("model_ii")
    # Along a diagonal, subpixels lie on the line itself.
    fields = vortex_deflections(recipe, [-23.9], [0.0, np.pi / 4, 1.0], 64, 1)
    sizes = np.linalg.norm(fields.reshape(3, -1), axis=1)
    assert sizes.max() / sizes.min() < 1.05


def test_solver_is_numpys():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(5, 6, 9))
    matrix = (half @ half.transpose(0, 2, 1) + np.eye(6)).astype(np.float32)
    right = rng.normal(size=(5, 6, 2)).astype(np.float32)
    np.testing.assert_allclose(
        np.array(fitting.solve_positive(matrix, right)), np.linalg.solve(matrix, right), atol=1e-4
    )


def test_a_bad_image_leaves_the_others_alone(legacy):
    fit, _, lenses = legacy
    batch = images(lenses)[:3].copy()
    start = truth(fit, lenses)[:3]
    expected = {name: np.array(value) for name, value in fit(batch, start).items()}
    batch[1, 5, 5] = np.nan
    got = {name: np.array(value) for name, value in fit(batch, start).items()}
    assert not np.isfinite(got["evidence"][1]).all()
    for name, values in expected.items():
        np.testing.assert_allclose(got[name][[0, 2]], values[[0, 2]], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name",
    sorted(
        set(RECIPES)
        - {
            "model_i",
            "model_i_legacy",
            "model_ii",
            "model_ii_legacy",
            "model_ii_instrument",
            "model_iii",
            "model_iii_legacy",
            "model_iii_instrument",
        }
    ),
)
def test_other_recipes_are_refused(name):
    with pytest.raises(UserError, match=f"'{name}' is not; use --front_end=flux"):
        check_recipe(get_recipe(name))


def test_a_free_lens_needs_a_network_to_start_from(free):
    with pytest.raises(UserError, match="--start_run"):
        TemplateStart.for_fit(free[0])


def test_what_is_fitted_is_what_the_recipe_leaves_free():
    assert list(fitted_parameters(get_recipe("model_iii_legacy"))) == ["source_x", "source_y"]
    recipe = get_recipe("model_iii")
    assert set(fitted_parameters(recipe)) == {p.name for p in recipe.shared_parameters.free}


def test_serialisation(legacy, tmp_path):
    fit, recipe, lenses = legacy
    image = keras.Input(recipe.image_shape)
    model = keras.Model(image, fit(image, TemplateStart.for_fit(fit)(image)))
    expected = model(images(lenses))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")(images(lenses))
    for name in expected:
        np.testing.assert_array_equal(np.array(again[name]), np.array(expected[name]))
