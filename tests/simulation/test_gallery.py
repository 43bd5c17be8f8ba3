import numpy as np
import pytest
from scipy import stats

from dlens_tf.errors import UserError
from dlens_tf.simulation.gallery import draw_gallery, residual, save_gallery, substructure_snr
from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.simulator import simulate


def test_residual_without_substructure_is_noise():
    recipe = get_recipe("model_ii")
    lens = simulate(recipe, "no_sub", 0, 0)
    assert stats.kstest(residual(recipe, lens).ravel(), stats.norm.cdf).pvalue > 0.01
    assert substructure_snr(recipe, lens) == 0.0


def test_residual_without_noise_is_a_fraction_of_the_peak():
    recipe = get_recipe("model_ii_legacy")
    smooth = residual(recipe, simulate(recipe, "no_sub", 0, 0))
    np.testing.assert_allclose(smooth, 0.0, atol=1e-7)  # images are float32
    difference = residual(recipe, simulate(recipe, "axion", 0, 0))
    assert 0.01 < np.abs(difference).max() < 1.0


@pytest.mark.parametrize("name", ["model_ii_instrument", "model_i_legacy"])
def test_snr_is_the_excess_of_chi_square(name):
    """Where noise is known, E[χ²] = pixels + S/N², whatever the substructure."""
    recipe = get_recipe(name)
    lenses = [simulate(recipe, "axion", 0, index) for index in range(3)]
    excess = [(residual(recipe, lens) ** 2).sum() - recipe.num_pix**2 for lens in lenses]
    snr = [substructure_snr(recipe, lens) for lens in lenses]
    np.testing.assert_allclose(np.sqrt(excess), snr, rtol=0.15)


def test_gallery_has_two_panels_a_lens():
    figure = draw_gallery(get_recipe("model_iii"), num=2, seed=1)
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert len(panels) == 2 * 3 * 2
    captions = " ".join(axes.get_title() for axes in panels)
    log10_m = simulate(get_recipe("model_iii"), "axion", 1, 0).parameters["log10_m_axion"]
    assert f"{log10_m:.2f}" in captions


def test_failed_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match=r"can't write .*gallery\.png: No space left on device"):
        save_gallery(get_recipe("model_iii"), tmp_path / "gallery.png", num=1)
    assert not list(tmp_path.iterdir())
