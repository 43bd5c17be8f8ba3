import dataclasses
import math

import numpy as np
import pytest

from dlens_tf.errors import UserError
from dlens_tf.parameters import Constant, Uniform
from dlens_tf.simulation.cosmology import einstein_radius
from dlens_tf.simulation.fast_engine import FastEngine
from dlens_tf.simulation.noise import moments
from dlens_tf.simulation.recipes import CLASSES, RECIPES, get_recipe
from dlens_tf.simulation.scene import draw

LEGACY = ["model_i_legacy", "model_ii_legacy", "model_iii_legacy"]
PHYSICAL = ["model_i", "model_ii", "model_iii"]
POPULATIONS = [name for name, recipe in RECIPES.items() if recipe.dataset == "dark_matter"]

# The published recipe, common to the three models.
PUBLISHED = {
    "e1": 0.1, "e2": 0.0, "gamma1": 0.05, "gamma2": 0.0, "center_x": 0.0, "center_y": 0.0,
    "source_R_sersic": 0.25, "source_n_sersic": 1.0, "source_e1": -0.1, "source_e2": 0.1,
}  # fmt: skip


def test_names_are_keys():
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    # The position is the integer label of stored data sets: only ever append.
    assert CLASSES == ("no_sub", "axion", "cdm", "wdm", "sidm", "uldm")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_classes_are_known_and_in_order(recipe):
    assert recipe.classes == tuple(c for c in CLASSES if c in recipe.substructure)
    assert set(recipe.class_priors) <= set(recipe.classes)
    if recipe.dataset == "deeplense":
        assert recipe.classes == ("no_sub", "axion", "cdm")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_bands_are_the_channels(recipe):
    assert recipe.image_shape == (recipe.num_pix, recipe.num_pix, len(recipe.bands))
    assert recipe.bands[0] == recipe.instrument
    assert {band.pixel_scale for band in recipe.bands} == {recipe.instrument.pixel_scale}


@pytest.mark.parametrize("name", LEGACY)
def test_legacy_priors(name):
    recipe = get_recipe(name)
    for parameter, value in PUBLISHED.items():
        assert recipe.priors[parameter] == Constant(value)
    for parameter in ("source_x", "source_y"):
        assert recipe.priors[parameter] == Uniform(-0.35, 0.35)
    axion = recipe.class_parameters("axion")
    assert axion["log10_m_axion"].prior == Uniform(-24.0, -22.0)
    assert axion.free.names == ["log10_m_axion", "phi_vortex", "source_x", "source_y"]
    assert (recipe.z_lens, recipe.z_source) == (0.5, 1.0)
    assert recipe.supersampling == 1 and recipe.symmetry == "rot180"
    subhalos = recipe.substructure["cdm"]
    assert (subhalos.number, subhalos.poisson, subhalos.slope) == (25, False, -0.9)
    assert subhalos.mass_range == (1e6, 1e10) and subhalos.radius_range == (0.25, 2.0)


@pytest.mark.parametrize(
    ("name", "num_pix", "pixel_scale", "fwhm", "truncation"),
    [
        ("model_i_legacy", 150, 0.05, 0.087, 3.0),
        ("model_ii_legacy", 64, 0.101, 0.16, 5.0),
        ("model_iii_legacy", 64, 0.08, 0.08, 5.0),
    ],
)
def test_legacy_pixels_and_psf(name, num_pix, pixel_scale, fwhm, truncation):
    recipe = get_recipe(name)
    assert recipe.image_shape == (num_pix, num_pix, 1)
    assert recipe.instrument.pixel_scale == pixel_scale
    assert recipe.instrument.psf_fwhm == fwhm
    assert recipe.instrument.psf_truncation == truncation


def test_legacy_flux_and_noise():
    one = get_recipe("model_i_legacy")
    assert (one.source_amplitude, one.noise, one.exposure_log10) == (
        20.0, "deeplense_counts", (3.0, 3.5),
    )  # fmt: skip
    assert one.deflection_convention is None
    for name in LEGACY[1:]:
        recipe = get_recipe(name)
        assert recipe.priors["source_magnitude"] == Constant(20.0)
        assert recipe.noise == "none_doubled" and not recipe.has_noise
        assert recipe.deflection_convention[-1] == 2.5
        with_noise = get_recipe(name.replace("legacy", "instrument"))
        assert with_noise.noise == "instrument" and with_noise.has_noise
        assert with_noise.priors == recipe.priors
        assert not with_noise.published


@pytest.mark.parametrize("name", PHYSICAL)
def test_physical_recipes_mend_the_defects(name):
    recipe = get_recipe(name)
    assert recipe.distances == "angular" and recipe.deflection_convention is None
    assert recipe.noise == "instrument" and recipe.supersampling >= 2
    subhalos = recipe.substructure["cdm"]
    assert subhalos.poisson and subhalos.slope == -1.9
    assert recipe.shared_parameters.free.names == recipe.shared_parameters.names
    assert recipe.source_amplitude is None
    np.testing.assert_allclose(
        einstein_radius(1e12, recipe.z_lens, recipe.z_source, recipe.cosmology, recipe.distances),
        1.6645,
        atol=1e-4,
    )


@pytest.mark.parametrize("name", PHYSICAL + POPULATIONS)
def test_d4_symmetry_of_the_prior(name):
    """Quarter turns and mirror images map pairs onto themselves up to sign and order."""
    recipe = get_recipe(name)
    assert recipe.symmetry == "d4"
    for dm_class in recipe.classes:
        for parameter in recipe.class_parameters(dm_class):
            if parameter.spin:
                low, high = parameter.prior.support
                assert low == -high
            if parameter.spin == 1:
                assert parameter.prior == recipe.priors[parameter.partner]
            if parameter.period is not None:
                assert parameter.prior == Uniform(0.0, parameter.period)


def test_populations_are_there():
    kinds = ("cdm", "wdm", "sidm", "uldm")
    expected = {kind + suffix for kind in kinds for suffix in ("", "_hst", "_hst_cosmos")}
    assert set(POPULATIONS) == expected | {"mass_cutoff", "model_iv"}
    for name in expected:
        assert get_recipe(name).classes == (name.split("_")[0],)
        assert get_recipe(name).has_galaxies == name.endswith("_cosmos")


@pytest.mark.parametrize("name", POPULATIONS)
def test_populations_have_their_targets(name):
    """The macro-model of a power law with shear, and what the subhalos were drawn from."""
    recipe = get_recipe(name)
    macro = {
        "theta_E", "gamma_epl", "e1", "e2", "gamma1", "gamma2", "center_x", "center_y",
    }  # fmt: skip
    own = {"wdm": "log10_m_hm", "sidm": "cross_section", "uldm": "log10_m_axion"}
    for dm_class in recipe.classes:
        free = set(recipe.class_parameters(dm_class).free.names)
        assert free >= macro
        if name == "mass_cutoff":
            assert free >= {"log10_m_cut", "log10_f_sub"}
        elif dm_class != "no_sub":
            assert free >= {"sigma_sub", "shmf_slope", "log10_f_sub"}
        for kind, parameter in own.items():
            assert (parameter in free) == (dm_class == kind)
    assert recipe.distances == "angular" and recipe.deflection_convention is None
    assert recipe.noise == "instrument" and recipe.supersampling >= 2


def test_mass_cutoffs_are_those_of_varma_2020():
    prior = get_recipe("mass_cutoff").class_parameters("cdm")["log10_m_cut"].prior
    assert prior.values == (6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.0)


def test_model_iv_is_in_colour():
    recipe = get_recipe("model_iv")
    assert recipe.image_shape == (64, 64, 3) and recipe.has_galaxies
    assert recipe.classes == ("no_sub", "cdm", "uldm")
    # Lenses are redder than sources.
    for band in (2, 3):
        lens, source = (recipe.priors[f"{who}_color_{band}"].mean for who in ("lens", "source"))
        assert lens > source > 0.0


@pytest.mark.parametrize("name", ["cdm", "wdm", "sidm", "uldm", "mass_cutoff"])
def test_derived_labels_have_the_moments_of_their_prior(name):
    recipe = get_recipe(name)
    [dm_class] = recipe.classes
    number = 300
    scenes = [draw(recipe, dm_class, 5, index) for index in range(number)]
    halos = [len(scene.halos) for scene in scenes]
    for label in recipe.class_parameters(dm_class).derived:
        prior = recipe.class_parameters(dm_class)[label].prior
        values = np.array([scene.parameters[label] for scene in scenes])
        assert prior.low <= values.min() and values.max() <= prior.high
        assert values.mean() == pytest.approx(prior.mean, abs=4 * prior.std / math.sqrt(number))
        assert values.std() == pytest.approx(prior.std, rel=0.2)
        print(
            f"| {name} | {np.mean(halos):.0f}, {np.percentile(halos, 5):.0f} to "
            f"{np.percentile(halos, 95):.0f}, {max(halos)} | {values.mean():.2f}, "
            f"{values.std():.2f}, {values.min():.1f}…{values.max():.1f} "
            f"| {np.mean(values == prior.low):.0%} |"
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cdm", "mass_cutoff"])
def test_sampling_error_is_small_beside_the_substructure(name):
    """As matched-filter signal-to-noise, the rest of the lens being known."""
    recipe = get_recipe(name)
    [dm_class] = recipe.classes
    scenes = [draw(recipe, dm_class, 7, index) for index in range(24)]
    images, smooth = (
        FastEngine(recipe).render(some).astype(np.float64)
        for some in (scenes, [scene.without_substructure() for scene in scenes])
    )
    finely = FastEngine(dataclasses.replace(recipe, supersampling=10)).render(scenes)
    _, variance = moments(images, recipe, 0.0)
    error, signal = (
        np.median(np.sqrt(((images - other) ** 2 / variance).sum(axis=(1, 2, 3))))
        for other in (finely, smooth)
    )
    print(f"{name}: error {error:.2f}, substructure {signal:.2f}")
    assert error < 0.3 * signal


def test_published_errors():
    best = {name: min(r.mae for r in get_recipe(name).published) for name in LEGACY}
    assert best == {
        "model_i_legacy": 0.2737, "model_ii_legacy": 0.2162, "model_iii_legacy": 0.1262,
    }  # fmt: skip
    limits = {n: r.information_limit.mae for n, r in RECIPES.items() if r.information_limit}
    assert limits == {
        "model_i_legacy": 0.189, "model_ii_instrument": 0.053, "model_iii_instrument": 0.015,
        "model_ii": 0.137,
        "model_iii": 0.101,
    }  # fmt: skip


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.information_limit])
def test_limit_by_bin_averages_to_the_limit(name):
    # The prior is uniform and the bins are equally wide.
    limit = get_recipe(name).information_limit
    assert len(limit.bin_edges) == len(limit.bin_mae) + 1
    np.testing.assert_allclose(np.mean(limit.bin_mae), limit.mae, atol=0.01)


def test_errors_list_the_valid_names():
    with pytest.raises(UserError, match="unknown recipe 'model_v'; valid: model_i_legacy, "):
        get_recipe("model_v")
    with pytest.raises(UserError, match="unknown class 'wimp'; valid: no_sub, axion, cdm"):
        get_recipe("model_i").class_parameters("wimp")
