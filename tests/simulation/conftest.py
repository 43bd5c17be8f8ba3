"""Recipes with everything that engines can render, smaller than the real ones."""

import dataclasses

import numpy as np
import pytest

from dlens_tf.parameters import Constant, Derived, Normal, Uniform
from dlens_tf.simulation.recipes import Recipe, get_recipe
from dlens_tf.simulation.substructure import Halos, Nothing


@dataclasses.dataclass(frozen=True)
class FewHalos:
    """A stand-in for a population: a few halos of each kind, and a label."""

    number: int = 6
    r_core: float = 0.0
    kappa_sheet: float = -0.01

    def draw(self, parameters, rng, plane) -> Halos:
        radius, angle = rng.uniform(0.3, 1.6, self.number), rng.uniform(0, 2 * np.pi, self.number)
        mass = 10 ** rng.uniform(8.0, 9.5, self.number)
        Rs = rng.uniform(0.05, 0.2, self.number)
        return Halos(
            x=radius * np.cos(angle),
            y=radius * np.sin(angle),
            mass=mass,
            Rs=Rs,
            alpha_Rs=0.3 * plane.einstein_radius(mass) ** 2 / Rs,
            r_trunc=Rs * rng.uniform(1.0, 8.0, self.number),
            r_core=np.full(self.number, self.r_core) * Rs,
            kappa_sheet=self.kappa_sheet,
        )

    def labels(self, halos, parameters, plane) -> dict[str, float]:
        return {"log10_f_sub": float(np.log10(halos.mass.sum()) - 12.0)}


@pytest.fixture(scope="session")
def halo_recipe() -> Recipe:
    """A power law with halos that have no core (cdm) or one (sidm), and a derived label."""
    base = get_recipe("model_ii")
    label = {"log10_f_sub": Derived(-2.0, 0.5, -4.0, 0.0)}
    return dataclasses.replace(
        base,
        name="halos",
        priors={**base.priors, "gamma_epl": Normal(2.0, 0.1), "sigma_sub": Uniform(0.0, 0.1)},
        substructure={"no_sub": Nothing(), "cdm": FewHalos(), "sidm": FewHalos(r_core=0.4)},
        class_priors={"cdm": label, "sidm": label},
        dataset="dark_matter",
    )


@pytest.fixture(scope="session")
def colour_recipe(halo_recipe) -> Recipe:
    """Three bands, a real galaxy as source, and light of the lens."""
    skip = ("source_R_sersic", "source_n_sersic", "source_e1", "source_e2")
    band = halo_recipe.instrument
    return dataclasses.replace(
        halo_recipe,
        name="colours",
        num_pix=32,
        supersampling=2,
        priors={
            **{name: prior for name, prior in halo_recipe.priors.items() if name not in skip},
            "source_phi": Uniform(0.0, 2 * np.pi),
            "source_scale": Uniform(0.5, 0.8),
            "source_color_2": Constant(0.4),
            "source_color_3": Constant(0.9),
            "lens_magnitude": Uniform(18.0, 19.0),
            "lens_R_sersic": Uniform(0.5, 1.0),
            "lens_n_sersic": Uniform(3.0, 4.5),
            "lens_color_2": Constant(0.7),
            "lens_color_3": Constant(1.1),
        },
        further_bands=(
            dataclasses.replace(band, name="second", psf_fwhm=0.2, magnitude_zero_point=25.2),
            dataclasses.replace(band, name="third", psf_fwhm=0.25, magnitude_zero_point=24.4),
        ),
    )
