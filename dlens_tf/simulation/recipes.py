"""Recipes: everything that defines a simulated data set, as data.

A `Recipe` fixes the prior over parameters, the instrument, the noise law and the conventions.
DeepLense Models I, II and III exist in up to three variants:

* `<model>_legacy`: the published recipe with its defects, so that results compare.
* `<model>_instrument` (II, III): the legacy lens and source with the instrument noise that the
  public script computes and never adds.
* `<model>`: the physical recipe, the one to start from: angular-diameter distances, the right
  source-redshift convention, supersampling, one draw of instrument noise, and a macro-model
  and source that vary from image to image.

Reference: the public DeepLenseSim code (mwt5345/DeepLenseSim); Alexander et al. 2020,
arXiv:1909.07346; published test errors as gathered in docs/recipes.md.
"""

import dataclasses
import math
from collections.abc import Mapping

from dlens_tf.errors import choose
from dlens_tf.parameters import Constant, Normal, ParameterSet, Prior, Uniform
from dlens_tf.simulation.instruments import INSTRUMENTS, Instrument

CLASSES = ("no_sub", "axion", "cdm")
"""Kinds of substructure; the position in the tuple is the integer label."""


@dataclasses.dataclass(frozen=True)
class Vortex:
    """A line of equal point masses through the lens centre (DeepLenseSim `make_vortex`).

    Attributes:
      mass: total mass, solar masses.
      num_beads: point masses on the line, both ends included.
      half_length_22: half-length at an axion mass of 1e-22 eV, arcsec; goes as 1/m.
    """

    mass: float = 3e10
    num_beads: int = 100
    half_length_22: float = 0.03

    def half_length(self, log10_m_axion: float) -> float:
        """Half-length in arcsec for an axion mass given as log10(eV)."""
        return self.half_length_22 * 10.0 ** (-22.0 - log10_m_axion)


@dataclasses.dataclass(frozen=True)
class PointSubhalos:
    """Point-mass subhalos with dN/dm ∝ m^slope, uniform in radius and angle.

    Attributes:
      number: how many; the mean if `poisson`.
      poisson: whether the number is drawn.
      slope: logarithmic slope of the mass function.
      mass_range: lowest and highest mass, solar masses.
      radius_range: lowest and highest distance from the lens centre, arcsec.
    """

    number: int
    poisson: bool
    slope: float
    mass_range: tuple[float, float] = (1e6, 1e10)
    radius_range: tuple[float, float] = (0.25, 2.0)


@dataclasses.dataclass(frozen=True)
class PublishedResult:
    """A published test error: mean absolute error of `parameter`."""

    parameter: str
    model: str
    mae: float
    source: str


@dataclasses.dataclass(frozen=True)
class InformationLimit:
    """The error that no network can beat: that of the exact posterior's median.

    Attributes:
      parameter: whose error.
      mae: mean absolute error, with its standard error.
      mae_error: standard error of `mae`.
      bin_edges: edges in the true value, where the limit is known by bin.
      bin_mae: the limit in each bin.
      source: how it was computed.
    """

    parameter: str
    mae: float
    mae_error: float
    source: str
    bin_edges: tuple[float, ...] = ()
    bin_mae: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, so that engines can cache
class Recipe:
    """Everything that defines a simulated data set. See the module's synopsis.

    Attributes:
      name: registry key, also the TFDS config's name.
      description: one line.
      num_pix: pixels per side.
      instrument: pixels, PSF, noise numbers.
      priors: prior of each parameter that every class has.
      noise: "none_doubled" (2 × model), "instrument", or "deeplense_counts" (Model I).
      z_lens: redshift of the lens.
      z_source: redshift of the source.
      cosmology: (H0, Omega_m, Omega_b) of masses and distances.
      distances: "angular" or "luminosity", see `cosmology.einstein_radius`.
      deflection_convention: None, or (H0, Omega_m, Omega_b, z) of lenstronomy's
        z_source_convention: deflections are given for a source at z and rescaled.
      supersampling: subpixels per pixel and axis.
      symmetry: of the prior: "rot180" (only the half turn leaves it as it is) or "d4" (quarter
        turns and mirror images too).
      vortex: substructure of the class axion.
      subhalos: substructure of the class cdm.
      source_amplitude: surface brightness at R_sersic, for recipes whose source has no magnitude.
      exposure_log10: log10 of the range of exposure times, for "deeplense_counts".
      published: published test errors on this data set.
      information_limit: the best possible test error, where known.
    """

    name: str
    description: str
    num_pix: int
    instrument: Instrument
    priors: Mapping[str, Prior]
    noise: str
    z_lens: float = 0.5
    z_source: float = 1.0
    cosmology: tuple[float, float, float] = (70.0, 0.3, 0.05)
    distances: str = "angular"
    deflection_convention: tuple[float, float, float, float] | None = None
    supersampling: int = 1
    symmetry: str = "rot180"
    vortex: Vortex = Vortex()
    subhalos: PointSubhalos = PointSubhalos(number=25, poisson=False, slope=-0.9)
    source_amplitude: float | None = None
    exposure_log10: tuple[float, float] = (3.0, 3.5)
    published: tuple[PublishedResult, ...] = ()
    information_limit: InformationLimit | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.num_pix, self.num_pix, 1)

    @property
    def has_noise(self) -> bool:
        return self.noise != "none_doubled"

    @property
    def shared_parameters(self) -> ParameterSet:
        """Parameters that every class has."""
        return ParameterSet.from_priors(self.priors)

    def class_parameters(self, dm_class: str) -> ParameterSet:
        """Parameters of one class: the shared ones and its own."""
        priors = dict(self.priors)
        if choose("class", dm_class, CLASSES) == "axion":
            priors = {
                "log10_m_axion": Uniform(-24.0, -22.0),
                "phi_vortex": Uniform(0.0, math.pi),
                **priors,
            }
        return ParameterSet.from_priors(priors)


_LEGACY_LENS: dict[str, Prior] = {
    "e1": Constant(0.1),
    "e2": Constant(0.0),
    "gamma1": Constant(0.05),
    "gamma2": Constant(0.0),
    "center_x": Constant(0.0),
    "center_y": Constant(0.0),
    "source_x": Uniform(-0.35, 0.35),
    "source_y": Uniform(-0.35, 0.35),
    "source_R_sersic": Constant(0.25),
    "source_n_sersic": Constant(1.0),
    "source_e1": Constant(-0.1),
    "source_e2": Constant(0.1),
}
# Einstein radius of 1e12 solar masses at z 0.5 and 1 by DeepLenseSim's luminosity distances;
# tests/simulation/test_cosmology.py derives it.
_LEGACY_THETA_E = Constant(1.2814906)

_PHYSICAL_LENS: dict[str, Prior] = {
    "theta_E": Uniform(1.0, 1.8),
    "e1": Normal(0.0, 0.1),
    "e2": Normal(0.0, 0.1),
    "gamma1": Normal(0.0, 0.04),
    "gamma2": Normal(0.0, 0.04),
    "center_x": Normal(0.0, 0.03),
    "center_y": Normal(0.0, 0.03),
    "source_x": Uniform(-0.35, 0.35),
    "source_y": Uniform(-0.35, 0.35),
    "source_R_sersic": Uniform(0.15, 0.4),
    "source_n_sersic": Uniform(0.8, 2.0),
    "source_e1": Normal(0.0, 0.12),
    "source_e2": Normal(0.0, 0.12),
    "source_magnitude": Uniform(20.0, 22.0),
}
_DEEPLENSE_NETWORKS = {
    "XResNet18Hybrid": (0.2737, 0.2209, 0.1262),
    "ResNet34, ImageNet-pretrained": (0.2849, 0.2162, 0.1332),
    "CvT-13": (0.2779, 0.2548, 0.1403),
    "CmtTi": (0.2743, 0.2393, 0.1442),
    "CNN-T": (0.2883, 0.2431, 0.1459),
    "ViT": (0.4420, 0.2437, 0.2175),
}


def _published(column: int) -> tuple[PublishedResult, ...]:
    return tuple(
        PublishedResult("log10_m_axion", model, maes[column], "DeepLense regression benchmarks")
        for model, maes in _DEEPLENSE_NETWORKS.items()
    )


_BIN_EDGES = tuple(-24.0 + 0.25 * i for i in range(9))


def _limit(mae: float, mae_error: float, bin_mae: tuple[float, ...]) -> InformationLimit:
    source = "posterior median under the true prior, brute force over 200 images"
    return InformationLimit("log10_m_axion", mae, mae_error, source, _BIN_EDGES, bin_mae)


def _simapi_legacy(name: str, description: str, instrument: str, column: int) -> Recipe:
    """Models II and III as published: doubled flux, no noise, deflections times 0.634."""
    return Recipe(
        name=name,
        description=description,
        num_pix=64,
        instrument=INSTRUMENTS[instrument],
        priors={
            "theta_E": _LEGACY_THETA_E,
            **_LEGACY_LENS,
            "source_magnitude": Constant(20.0),
        },
        noise="none_doubled",
        distances="luminosity",
        # The script hands lenstronomy pyHalo's default cosmology and z_source_convention 2.5.
        deflection_convention=(69.7, 0.2814, 0.0464, 2.5),
        published=_published(column),
    )


def _with_noise(legacy: Recipe, name: str, description: str, limit: InformationLimit) -> Recipe:
    """A legacy recipe with the instrument noise that its script computes and never adds."""
    return dataclasses.replace(
        legacy,
        name=name,
        description=description,
        noise="instrument",
        published=(),
        information_limit=limit,
    )


def _physical(
    name: str, description: str, num_pix: int, instrument: str, supersampling: int
) -> Recipe:
    """A recipe without the published defects, its macro-model and source free."""
    return Recipe(
        name=name,
        description=description,
        num_pix=num_pix,
        instrument=INSTRUMENTS[instrument],
        priors=_PHYSICAL_LENS,
        noise="instrument",
        supersampling=supersampling,
        symmetry="d4",
        subhalos=PointSubhalos(number=25, poisson=True, slope=-1.9),
    )


_MODEL_I_LEGACY = Recipe(
    name="model_i_legacy",
    description='DeepLense Model I as published: 150×150 at 0.05", photon counts, two shot noises',
    num_pix=150,
    instrument=INSTRUMENTS["deeplense_model_i"],
    priors={"theta_E": _LEGACY_THETA_E, **_LEGACY_LENS},
    noise="deeplense_counts",
    distances="luminosity",
    source_amplitude=20.0,
    published=_published(0),
    information_limit=_limit(
        0.189, 0.002, (0.009, 0.008, 0.050, 0.276, 0.292, 0.296, 0.294, 0.288)
    ),
)
_MODEL_II_LEGACY = _simapi_legacy(
    "model_ii_legacy",
    "DeepLense Model II as published: 64×64 Euclid VIS, no noise, doubled flux",
    "euclid_vis_2021",
    1,
)
_MODEL_III_LEGACY = _simapi_legacy(
    "model_iii_legacy",
    "DeepLense Model III as published: 64×64 HST F160W, no noise, doubled flux",
    "hst_wfc3_f160w",
    2,
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in [
        _MODEL_I_LEGACY,
        _physical(
            "model_i",
            "Model I made physical: 150×150 HST ACS F814W, macro-model and source free",
            150,
            "hst_acs_f814w",
            supersampling=2,
        ),
        _MODEL_II_LEGACY,
        _with_noise(
            _MODEL_II_LEGACY,
            "model_ii_instrument",
            "DeepLense Model II with its Euclid VIS noise added, flux not doubled",
            _limit(0.053, 0.002, (0.003, 0.002, 0.004, 0.008, 0.027, 0.111, 0.137, 0.135)),
        ),
        _physical(
            "model_ii",
            "Model II made physical: 64×64 Euclid VIS, macro-model and source free",
            64,
            "euclid_vis",
            supersampling=4,
        ),
        _MODEL_III_LEGACY,
        _with_noise(
            _MODEL_III_LEGACY,
            "model_iii_instrument",
            "DeepLense Model III with F160W noise added, flux not doubled",
            _limit(0.015, 0.001, (0.000, 0.000, 0.000, 0.001, 0.004, 0.011, 0.036, 0.065)),
        ),
        _physical(
            "model_iii",
            "Model III made physical: 64×64 HST F160W, macro-model and source free",
            64,
            "hst_wfc3_f160w_native_psf",
            supersampling=4,
        ),
    ]
}


def get_recipe(name: str) -> Recipe:
    """The recipe of this name; raises a `UserError` that lists the valid ones."""
    return RECIPES[choose("recipe", name, RECIPES)]
