import dataclasses

import numpy as np
import pytest
from scipy import stats

from dlens_tf.errors import UserError
from dlens_tf.simulation.gallery import (
    colour_composite,
    critical_curves,
    draw_gallery,
    residual,
    save_gallery,
    substructure_convergence,
    substructure_snr,
)
from dlens_tf.simulation.lenstronomy_engine import LenstronomyEngine, convergence_profiles
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.scene import Scene, draw
from dlens_tf.simulation.simulator import Simulator
from dlens_tf.simulation.substructure import Halos, PointMasses

AXIS = np.linspace(-3.0, 3.0, 301)


def one_halo(r_core=0.0, x=0.2, y=-0.4, Rs=0.15, alpha_Rs=0.01, r_trunc=0.3) -> Halos:
    return Halos(*(np.array([v]) for v in (x, y, 1e9, Rs, alpha_Rs, r_trunc, r_core)))


def scene_of(points=None, halos=None, **parameters) -> Scene:
    """A scene of model_ii: an isothermal sphere of 1.2", unless told otherwise."""
    values = {p.name: p.prior.mean for p in get_recipe("model_ii").shared_parameters}
    return Scene(
        "cdm",
        values | {"theta_E": 1.2} | parameters,
        PointMasses.none() if points is None else points,
        Halos.none() if halos is None else halos,
    )


def test_residual_without_substructure_is_noise():
    simulator = Simulator(get_recipe("model_ii"))
    lens = simulator.simulate("no_sub", 0, 0)
    assert stats.kstest(residual(simulator, lens).ravel(), stats.norm.cdf).pvalue > 0.01
    assert substructure_snr(simulator, lens) == 0.0


def test_residual_of_several_bands_is_noise(colour_recipe):
    simulator = Simulator(colour_recipe)
    lens = simulator.simulate("no_sub", 0, 0)
    assert residual(simulator, lens).shape == (32, 32)
    assert stats.kstest(residual(simulator, lens).ravel(), stats.norm.cdf).pvalue > 0.01


def test_residual_without_noise_is_a_fraction_of_the_peak():
    simulator = Simulator(get_recipe("model_ii_legacy"))
    smooth = residual(simulator, simulator.simulate("no_sub", 0, 0))
    np.testing.assert_allclose(smooth, 0.0, atol=1e-7)  # images are float32
    difference = residual(simulator, simulator.simulate("axion", 0, 0))
    assert 0.01 < np.abs(difference).max() < 1.0


@pytest.mark.parametrize("name", ["model_ii_instrument", "model_i_legacy"])
def test_snr_is_the_excess_of_chi_square(name):
    """Where noise is known, E[χ²] = pixels + S/N², whatever the substructure."""
    recipe = get_recipe(name)
    simulator = Simulator(recipe)
    lenses = simulator.simulate_many("axion", 0, range(3))
    excess = [(residual(simulator, lens) ** 2).sum() - recipe.num_pix**2 for lens in lenses]
    snr = [substructure_snr(simulator, lens) for lens in lenses]
    np.testing.assert_allclose(np.sqrt(excess), snr, rtol=0.15)


def test_convergence_of_a_halo_integrates_to_its_mass():
    """Total mass of a truncated NFW halo: Baltz et al. 2009, A4."""
    halos = one_halo()
    Rs, tau = halos.Rs[0], halos.r_trunc[0] / halos.Rs[0]
    m0 = np.pi * Rs * halos.alpha_Rs[0] / (1 - np.log(2))  # 4πρ Rs³, in Σ_crit arcsec²
    total = (
        m0 * tau**2 / (tau**2 + 1) ** 2 * ((tau**2 - 1) * np.log(tau) + tau * np.pi - tau**2 - 1)
    )
    # To 10 arcsec: outside r_t the mass goes as 1 / r².
    axis = np.linspace(-10.0, 10.0, 1501)
    step = axis[1] - axis[0]
    kappa = substructure_convergence(scene_of(halos=halos), axis)
    np.testing.assert_allclose(kappa.sum() * step**2, total, rtol=0.01)
    y, x = np.unravel_index(kappa.argmax(), kappa.shape)
    np.testing.assert_allclose([axis[x], axis[y]], [0.2, -0.4], atol=0.51 * step)


@pytest.mark.parametrize("r_core", [0.0, 0.08])
def test_convergence_equals_lenstronomys(r_core):
    from lenstronomy.LensModel.lens_model import LensModel

    halos = one_halo(r_core)
    kwargs = {"Rs": 0.15, "alpha_Rs": 0.01, "r_trunc": 0.3, "center_x": 0.2, "center_y": -0.4}
    model = LensModel(["TNFWC" if r_core else "TNFW"])
    kwargs |= {"r_core": r_core} if r_core else {}
    x, y = np.meshgrid(AXIS, AXIS)
    expected = model.kappa(x.ravel(), y.ravel(), [kwargs]).reshape(x.shape)
    kappa = substructure_convergence(scene_of(halos=halos), AXIS)
    apart = np.hypot(x - 0.2, y + 0.4) > 0.02
    np.testing.assert_allclose(kappa[apart], expected[apart], rtol=2e-3, atol=2e-6)
    radii = np.array([0.05, 0.5])
    np.testing.assert_allclose(
        convergence_profiles(halos, radii), [model.kappa(0.2 + radii, 0 * radii - 0.4, [kwargs])]
    )


def test_core_and_no_core_can_stand_together():
    cored, cuspy = one_halo(0.08), one_halo()
    both = Halos(
        *(
            np.append(getattr(cored, field.name), getattr(cuspy, field.name))
            for field in dataclasses.fields(Halos)
            if field.name != "kappa_sheet"
        )
    )
    kappa = [substructure_convergence(scene_of(halos=h), AXIS) for h in (cored, cuspy, both)]
    np.testing.assert_allclose(kappa[2], kappa[0] + kappa[1])
    assert kappa[1].max() > 1.5 * kappa[0].max()  # a core is flat


def test_convergence_of_point_masses_is_that_of_their_einstein_radii():
    points = PointMasses(np.array([1.0, -0.503]), np.array([0.5, -1.5]), np.array([0.1, 0.02]))
    kappa = substructure_convergence(scene_of(points), AXIS)
    step = AXIS[1] - AXIS[0]
    np.testing.assert_allclose(kappa.sum() * step**2, np.pi * (0.1**2 + 0.02**2), rtol=1e-4)
    first = kappa[AXIS > -0.5]
    np.testing.assert_allclose(first.sum() * step**2, np.pi * 0.1**2, rtol=1e-4)


def test_substructure_outside_the_frame_is_no_error():
    points = PointMasses(np.array([9.0]), np.array([0.0]), np.array([0.1]))
    assert substructure_convergence(scene_of(points), AXIS).max() == 0.0
    far = substructure_convergence(scene_of(halos=one_halo(x=3.5)), AXIS)
    assert np.isfinite(far).all() and far[150, -1] > far[150, 0] >= 0.0


def test_curves_of_an_isothermal_sphere_in_shear():
    """With shear (γ, 0): β = ((1-γ) x, (1+γ) y) - θ_E e_r, of determinant
    1 - γ² - θ_E (1 - γ cos 2φ) / r. Its caustic is an astroid.
    """
    gamma, theta_E = 0.1, 1.2
    scene = scene_of(theta_E=theta_E, gamma1=gamma)
    curves = critical_curves(LenstronomyEngine(get_recipe("model_ii")), scene, half=3.0)
    # The singular centre of the sphere is no critical curve.
    [critical] = [line for line in curves.critical if np.ptp(line[:, 0]) > 0.1]
    [caustic] = [line for line in curves.caustics if len(line) == len(critical)]
    radius, phi = np.hypot(*critical.T), np.arctan2(*critical.T[::-1])
    np.testing.assert_allclose(
        radius, theta_E * (1 - gamma * np.cos(2 * phi)) / (1 - gamma**2), atol=2e-3
    )
    # The cusps, at φ = 0 and 90°.
    np.testing.assert_allclose(
        np.abs(caustic).max(axis=0),
        [2 * gamma * theta_E / (1 + gamma), 2 * gamma * theta_E / (1 - gamma)],
        atol=5e-3,
    )


def test_curves_with_halos_are_those_of_the_whole_plane(halo_recipe):
    """Looking only where the determinant can change sign misses nothing."""
    import contourpy

    engine = LenstronomyEngine(halo_recipe)
    scene = draw(halo_recipe, "cdm", 0, 1)
    halos = dataclasses.replace(scene.halos, alpha_Rs=6 * scene.halos.alpha_Rs)
    scene = dataclasses.replace(scene, halos=halos)  # some critical by themselves
    axis = np.linspace(-3.2, 3.2, 200)
    x, y = np.meshgrid(axis, axis)
    determinant = engine.inverse_magnification(scene, x, y)
    everywhere = contourpy.contour_generator(x, y, determinant).lines(0.0)
    curves = critical_curves(engine, scene, half=3.2)
    assert len(curves.critical) == len(everywhere) > 1
    for mine, theirs in zip(curves.critical, everywhere, strict=True):
        if len(theirs) < 48:  # found again on a finer grid
            np.testing.assert_allclose(np.ptp(mine, axis=0), np.ptp(theirs, axis=0), atol=0.03)
            np.testing.assert_allclose(mine.mean(axis=0), theirs.mean(axis=0), atol=0.03)
            assert len(mine) > len(theirs)
            continue
        np.testing.assert_allclose(mine, theirs, atol=2e-3)  # a sixteenth of a step
    smooth = critical_curves(engine, scene.without_substructure(), half=3.2)
    assert len(smooth.critical) < len(everywhere)


def test_small_halos_do_not_move_the_curves(halo_recipe):
    """The 300 largest of 340 halos give the curves of all."""
    law = dataclasses.replace(halo_recipe.substructure["cdm"], number=340)
    halos = law.draw({}, np.random.default_rng(0), halo_recipe.plane)
    size = np.geomspace(0.2, 2e-4, 340)  # about as steep as subhalos' mass function
    halos = dataclasses.replace(halos, mass=1e9 * size, alpha_Rs=halos.alpha_Rs * size)
    scene = dataclasses.replace(draw(halo_recipe, "cdm", 0, 1), halos=halos)
    engine = LenstronomyEngine(halo_recipe)
    curve = max(critical_curves(engine, scene, 3.2).critical, key=len)
    on_the_curve = engine.inverse_magnification(scene, *curve.T)
    without = engine.inverse_magnification(scene.without_substructure(), *curve.T)
    assert np.percentile(np.abs(on_the_curve), 95) < 0.02 < np.abs(without).max()


def test_small_curves_are_round():
    """A lone point mass: radius θ_E to a hundredth of the grid's step."""
    scene = scene_of(
        PointMasses(np.array([0.333]), np.array([-0.777]), np.array([0.08])), theta_E=1e-9
    )
    [critical] = [
        line
        for line in critical_curves(LenstronomyEngine(get_recipe("model_ii")), scene, 3.2).critical
        if np.hypot(*line.T).min() > 0.1  # not about the main lens's centre
    ]
    radius = np.hypot(*(critical - [0.333, -0.777]).T)
    np.testing.assert_allclose(radius, 0.08, atol=2e-4)


def test_unresolved_curves_of_point_masses_are_left_out():
    engine = LenstronomyEngine(get_recipe("model_ii"))
    lone = np.array([2.0]), np.array([1.0])
    for theta_E, number in ((0.3, 2), (0.01, 1)):
        scene = scene_of(PointMasses(*lone, np.array([theta_E])), theta_E=1.0, gamma1=0.05)
        curves = critical_curves(engine, scene, half=3.2)
        large = [line for line in curves.critical if np.ptp(line[:, 0]) > 0.05]
        assert len(large) == number


def test_composite_shows_colours(colour_recipe):
    zero_points = np.array([band.magnitude_zero_point for band in colour_recipe.bands])
    # Midway between source and lens, whose colours are (0.4, 0.9) and (0.7, 1.1).
    flux = 10 ** (-0.4 * (22.0 - np.array([0.0, 0.55, 1.0]) - zero_points))
    floor = 0.01 * flux
    white = colour_composite(np.tile(flux, (4, 4, 1)), colour_recipe, floor)
    assert white.dtype == np.uint8 and np.ptp(white[0, 0].astype(int)) <= 1
    red = colour_composite(np.tile(flux * [0.2, 1.0, 5.0], (4, 4, 1)), colour_recipe, floor)
    assert red[0, 0, 0] > red[0, 0, 1] > red[0, 0, 2]


def panels(figure):
    """Square panels, by row and column."""
    return np.array(figure.axes[:-2]).reshape(-1, 4)  # the last two are colour bars


def texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def test_gallery_has_a_row_of_panels_for_each_lens():
    figure = draw_gallery(get_recipe("model_iii"), num=1, seed=1)
    assert panels(figure).shape == (3, 4)
    values = Simulator(get_recipe("model_iii")).simulate("axion", 1, 0).parameters
    assert rf"\log_{{10}} m_\mathrm{{axion}} = {values['log10_m_axion']:.2f}" in texts(figure)
    for name in ("no substructure", "axion vortex", "cold dark matter", "seed 1"):
        assert name in texts(figure)


def test_gallery_of_halos(halo_recipe):
    recipe = dataclasses.replace(halo_recipe, supersampling=1)
    figure = draw_gallery(recipe, num=2, classes=["sidm"])
    assert panels(figure).shape == (2, 4)
    assert "6 halos" in texts(figure) and r"\Sigma_\mathrm{sub}" in texts(figure)
    convergence = panels(figure)[0, 2].images[0].get_array()
    assert convergence.max() > 10 * convergence.min()


def test_gallery_of_colours(colour_recipe):
    figure = draw_gallery(colour_recipe, num=1, classes=["cdm", "no_sub"])
    image, source, _, _ = panels(figure)[0]
    for axes in (image, source):
        assert axes.images[0].get_array().shape[-1] == 3
    order = [text.get_text() for text in figure.texts]
    assert order.index("cold dark matter") < order.index("no substructure")


def test_captions_stay_in_their_column(halo_recipe):
    recipe = dataclasses.replace(halo_recipe, supersampling=1)
    figure = draw_gallery(recipe, num=1)
    renderer = figure.canvas.get_renderer()
    edge = panels(figure)[0, 0].get_window_extent(renderer).x0
    page = figure.get_window_extent(renderer)
    for text in figure.texts:
        extent = text.get_window_extent(renderer)
        assert page.x0 <= extent.x0 and extent.x1 <= page.x1
        if extent.y1 < panels(figure)[0, 0].get_window_extent(renderer).y1:
            assert extent.x1 < edge, text.get_text()


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(UserError, match="unknown class 'sidm'; valid: no_sub, axion, cdm"):
        draw_gallery(get_recipe("model_iii"), num=1, classes=["sidm"])
    with pytest.raises(UserError, match="unknown engine 'slow'; valid: lenstronomy, fast"):
        draw_gallery(get_recipe("model_iii"), num=1, engine="slow")


def test_failed_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    output = tmp_path / "gallery.png"
    with pytest.raises(UserError, match=r"can't write .*gallery\.png: No space left on device"):
        save_gallery(get_recipe("model_iii"), output, num=1, classes=["no_sub"])
    assert not list(tmp_path.iterdir())
