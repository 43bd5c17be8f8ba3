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
import functools
import math
from collections.abc import Mapping

from dlens_tf.errors import choose
from dlens_tf.parameters import (
    Choice,
    Constant,
    Derived,
    Normal,
    ParameterSet,
    Prior,
    Uniform,
)
from dlens_tf.simulation.cosmology import LensPlane, check_redshifts, distance_ratio
from dlens_tf.simulation.instruments import INSTRUMENTS, Instrument
from dlens_tf.simulation.populations import Population
from dlens_tf.simulation.substructure import Nothing, PointSubhalos, SubstructureLaw, Vortex

CLASSES = ("no_sub", "axion", "cdm", "wdm", "sidm", "uldm")
"""Kinds of dark matter; the position in the tuple is the integer label."""


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
      bin_edges: edges of bins of the true value; () if nothing is known by bin.
      bin_mae: the exact posterior's mean expected error of the images whose truth lies in each
        bin. No bound: within a bin an estimator may do better, at the cost of others; only over
        the whole prior can none.
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
      instrument: pixels, PSF, noise numbers of the first band.
      priors: prior of each parameter that every class has. They choose the models: `gamma_epl`
        an elliptical power law (without it: an SIE), `lens_magnitude` light of the lens,
        `source_phi` sources from a galaxy catalogue (without it: Sersic sources).
      substructure: the law of each class.
      class_priors: priors of the parameters that single classes have, by class.
      noise: "none_doubled" (2 × model), "instrument", or "deeplense_counts" (Model I).
      further_bands: instruments of further bands, with the first one's pixels.
      z_lens: redshift of the lens.
      z_source: redshift of the source.
      cosmology: (H0, Omega_m, Omega_b) of masses and distances.
      distances: "angular" or "luminosity", see `cosmology.einstein_radius`.
      deflection_convention: None, or (H0, Omega_m, Omega_b, z) of lenstronomy's
        z_source_convention: deflections are given for a source at z and rescaled.
      supersampling: subpixels per pixel and axis.
      symmetry: of the prior: "rot180" (only the half turn leaves it as it is) or "d4" (quarter
        turns and mirror images too).
      source_amplitude: surface brightness at R_sersic, for recipes whose source has no magnitude.
      exposure_log10: log10 of the range of exposure times, for "deeplense_counts".
      published: published test errors on this data set.
      information_limit: the best possible test error, where known.
      dataset: the data set that its images are stored in.
    """

    name: str
    description: str
    num_pix: int
    instrument: Instrument
    priors: Mapping[str, Prior]
    substructure: Mapping[str, SubstructureLaw]
    noise: str
    class_priors: Mapping[str, Mapping[str, Prior]] = dataclasses.field(default_factory=dict)
    further_bands: tuple[Instrument, ...] = ()
    z_lens: float = 0.5
    z_source: float = 1.0
    cosmology: tuple[float, float, float] = (70.0, 0.3, 0.05)
    distances: str = "angular"
    deflection_convention: tuple[float, float, float, float] | None = None
    supersampling: int = 1
    symmetry: str = "rot180"
    source_amplitude: float | None = None
    exposure_log10: tuple[float, float] = (3.0, 3.5)
    published: tuple[PublishedResult, ...] = ()
    information_limit: InformationLimit | None = None
    dataset: str = "deeplense"

    def __post_init__(self):
        check_redshifts(self.z_lens, self.z_source)

    @property
    def classes(self) -> tuple[str, ...]:
        """Kinds of dark matter that the recipe has."""
        return tuple(self.substructure)

    @property
    def bands(self) -> tuple[Instrument, ...]:
        """The instrument of each channel of the image."""
        return (self.instrument, *self.further_bands)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.num_pix, self.num_pix, len(self.bands))

    @property
    def has_noise(self) -> bool:
        return self.noise != "none_doubled"

    @property
    def has_galaxies(self) -> bool:
        """Whether sources come from a galaxy catalogue."""
        return "source_phi" in self.priors

    @functools.cached_property
    def plane(self) -> LensPlane:
        """Redshifts and cosmology, for turning masses into angles."""
        return LensPlane(self.z_lens, self.z_source, self.cosmology, self.distances)

    @functools.cached_property
    def deflection_scale(self) -> float:
        """Factor on all deflections: that of lenstronomy's z_source_convention."""
        if self.deflection_convention is None:
            return 1.0
        *cosmology, z_convention = self.deflection_convention
        here, there = (
            distance_ratio(self.z_lens, z, tuple(cosmology)) for z in (self.z_source, z_convention)
        )
        return here / there

    @functools.cached_property
    def shared_parameters(self) -> ParameterSet:
        """Parameters that every class has."""
        return ParameterSet.from_priors(self.priors)

    @property
    def has_fixed_lens(self) -> bool:
        """Whether macro-model and source are fixed, but for the source's position."""
        return {p.name for p in self.shared_parameters.free} <= {"source_x", "source_y"}

    @functools.cached_property
    def _class_parameters(self) -> dict[str, ParameterSet]:
        return {
            name: ParameterSet.from_priors({**self.class_priors.get(name, {}), **self.priors})
            for name in self.classes
        }

    def class_parameters(self, dm_class: str) -> ParameterSet:
        """Parameters of one class: its own and the shared ones."""
        return self._class_parameters[choose("class", dm_class, self.classes)]


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

_FREE_SHAPE: dict[str, Prior] = {
    "e1": Normal(0.0, 0.1),
    "e2": Normal(0.0, 0.1),
    "gamma1": Normal(0.0, 0.04),
    "gamma2": Normal(0.0, 0.04),
    "center_x": Normal(0.0, 0.03),
    "center_y": Normal(0.0, 0.03),
}
_PHYSICAL_LENS: dict[str, Prior] = {
    "theta_E": Uniform(1.0, 1.8),
    **_FREE_SHAPE,
    "source_x": Uniform(-0.35, 0.35),
    "source_y": Uniform(-0.35, 0.35),
    "source_R_sersic": Uniform(0.15, 0.4),
    "source_n_sersic": Uniform(0.8, 2.0),
    "source_e1": Normal(0.0, 0.12),
    "source_e2": Normal(0.0, 0.12),
    "source_magnitude": Uniform(20.0, 22.0),
}
_POPULATION_LENS: dict[str, Prior] = {
    "theta_E": Uniform(0.9, 1.5),
    "gamma_epl": Normal(2.0, 0.1),
    **_FREE_SHAPE,
    "source_x": Uniform(-0.25, 0.25),
    "source_y": Uniform(-0.25, 0.25),
}
_SERSIC_SOURCE: dict[str, Prior] = {
    **{
        name: _PHYSICAL_LENS[name]
        for name in ("source_R_sersic", "source_n_sersic", "source_e1", "source_e2")
    },
    "source_magnitude": Uniform(21.0, 24.0),
}
_GALAXY_SOURCE: dict[str, Prior] = {
    "source_phi": Uniform(0.0, 2.0 * math.pi),
    "source_scale": Uniform(0.3, 0.6),
    "source_magnitude": Uniform(21.0, 24.0),
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


def _limit(
    mae: float, mae_error: float, bin_mae: tuple[float, ...], images: int = 200
) -> InformationLimit:
    source = f"posterior median under the true prior, brute force over {images} images"
    return InformationLimit("log10_m_axion", mae, mae_error, source, _BIN_EDGES, bin_mae)


_VORTEX_PRIORS: dict[str, Mapping[str, Prior]] = {
    "axion": {"log10_m_axion": Uniform(-24.0, -22.0), "phi_vortex": Uniform(0.0, math.pi)}
}


def _toy_classes(subhalos: PointSubhalos) -> dict[str, SubstructureLaw]:
    """The three classes of DeepLense."""
    return {"no_sub": Nothing(), "axion": Vortex(), "cdm": subhalos}


_LEGACY_CLASSES = _toy_classes(PointSubhalos(number=25, poisson=False, slope=-0.9))
_PHYSICAL_CLASSES = _toy_classes(PointSubhalos(number=25, poisson=True, slope=-1.9))


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
        substructure=_LEGACY_CLASSES,
        class_priors=_VORTEX_PRIORS,
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
    name: str,
    description: str,
    num_pix: int,
    instrument: str,
    supersampling: int,
    limit: InformationLimit | None = None,
) -> Recipe:
    """A recipe without the published defects, its macro-model and source free."""
    return Recipe(
        name=name,
        description=description,
        num_pix=num_pix,
        instrument=INSTRUMENTS[instrument],
        priors=_PHYSICAL_LENS,
        substructure=_PHYSICAL_CLASSES,
        class_priors=_VORTEX_PRIORS,
        noise="instrument",
        supersampling=supersampling,
        symmetry="d4",
        information_limit=limit,
    )


_MODEL_I_LEGACY = Recipe(
    name="model_i_legacy",
    description='DeepLense Model I as published: 150×150 at 0.05", photon counts, two shot noises',
    num_pix=150,
    instrument=INSTRUMENTS["deeplense_model_i"],
    priors={"theta_E": _LEGACY_THETA_E, **_LEGACY_LENS},
    substructure=_LEGACY_CLASSES,
    class_priors=_VORTEX_PRIORS,
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

_SUBHALOS: dict[str, Prior] = {"sigma_sub": Uniform(0.01, 0.12), "shmf_slope": Uniform(-2.1, -1.7)}


@dataclasses.dataclass(frozen=True)
class _DarkMatter:
    """A kind of dark matter: what its subhalos are drawn from, and its own parameter's prior."""

    kind: str
    name: str
    own: Mapping[str, Prior]
    f_sub: Derived

    @property
    def priors(self) -> dict[str, Prior]:
        return {**self.own, **_SUBHALOS, "log10_f_sub": self.f_sub}


# The derived label's moments are those of 6,000 draws (tests/simulation/test_recipes.py).
_KINDS = {
    kind.kind: kind
    for kind in [
        _DarkMatter("cdm", "cold", {}, Derived(-2.9, 0.44, -7.0, 0.0)),
        _DarkMatter(
            "wdm", "warm", {"log10_m_hm": Uniform(7.0, 10.0)}, Derived(-4.39, 1.52, -7.0, 0.0)
        ),
        _DarkMatter(
            "sidm",
            "self-interacting",
            {"cross_section": Uniform(0.0, 200.0)},
            Derived(-2.9, 0.44, -7.0, 0.0),
        ),
        _DarkMatter(
            "uldm",
            "ultralight",
            {"log10_m_axion": Uniform(-21.5, -19.0)},
            Derived(-4.2, 1.65, -7.0, 0.0),
        ),
    ]
}


def _population(
    kind: str, suffix: str, num_pix: int, instrument: str, supersampling: int, source: str
) -> Recipe:
    """Subhalos of one kind of dark matter under a free macro-model."""
    dark_matter = _KINDS[kind]
    sources = {"Sersic": _SERSIC_SOURCE, "COSMOS": _GALAXY_SOURCE}[source]
    return Recipe(
        name=kind + suffix,
        description=(
            f"Subhalos of {dark_matter.name} dark matter, {num_pix}×{num_pix} "
            f"{instrument}, {source} sources"
        ),
        num_pix=num_pix,
        instrument=INSTRUMENTS[instrument],
        priors={**_POPULATION_LENS, **sources},
        substructure={
            kind: Population(kind, log10_mass_range=(7.0, 10.0), log10_min_bound_mass=5.0)
        },
        class_priors={kind: dark_matter.priors},
        noise="instrument",
        supersampling=supersampling,
        symmetry="d4",
        dataset="dark_matter",
    )


_POPULATIONS = [
    _population(kind, *observation)
    for observation in (
        ("", 64, "euclid_vis", 4, "Sersic"),
        ("_hst", 100, "hst_acs_f814w", 3, "Sersic"),
        ("_hst_cosmos", 100, "hst_acs_f814w", 3, "COSMOS"),
    )
    for kind in _KINDS
]

_MASS_CUTOFF = Recipe(
    name="mass_cutoff",
    description=(
        "Cold dark matter without subhalos below one of seven masses, 1e6 to 1e9 solar masses "
        "(Varma et al. 2020), 64×64 HST F814W at 0.08 arcsec"
    ),
    num_pix=64,
    instrument=INSTRUMENTS["hst_acs_f814w_80mas"],
    priors={**_POPULATION_LENS, **_SERSIC_SOURCE},
    substructure={"cdm": Population("cdm", log10_mass_range=(6.0, 10.0), log10_min_bound_mass=5.0)},
    class_priors={
        "cdm": {
            "log10_m_cut": Choice(6.0, 9.0, 7),
            "sigma_sub": Uniform(0.01, 0.05),
            "shmf_slope": Constant(-1.9),
            "log10_f_sub": Derived(-3.82, 1.28, -7.0, 0.0),
        }
    },
    noise="instrument",
    supersampling=4,
    symmetry="d4",
    dataset="dark_matter",
)

_MODEL_IV = Recipe(
    name="model_iv",
    description=(
        "Like DeepLense Model IV: 64×64 in F606W, F814W and F160W, COSMOS sources, light of the "
        "lens; smooth, cold or ultralight dark matter"
    ),
    num_pix=64,
    instrument=INSTRUMENTS["hst_acs_f606w_80mas"],
    further_bands=(
        INSTRUMENTS["hst_acs_f814w_80mas"],
        INSTRUMENTS["hst_wfc3_f160w_native_psf"],
    ),
    priors={
        **_POPULATION_LENS,
        **_GALAXY_SOURCE,
        # Magnitudes in F606W; colours of late-type sources at redshift 1, early-type lenses at 0.5.
        "source_magnitude": Uniform(21.0, 23.5),
        "source_color_2": Normal(0.6, 0.2),
        "source_color_3": Normal(1.2, 0.3),
        "lens_magnitude": Uniform(20.0, 22.0),
        "lens_color_2": Normal(1.0, 0.1),
        "lens_color_3": Normal(2.0, 0.2),
        "lens_R_sersic": Uniform(0.4, 1.0),
        "lens_n_sersic": Uniform(2.0, 4.0),
    },
    substructure={
        "no_sub": Nothing(),
        **{
            kind: Population(kind, log10_mass_range=(7.0, 10.0), log10_min_bound_mass=5.0)
            for kind in ("cdm", "uldm")
        },
    },
    class_priors={kind: _KINDS[kind].priors for kind in ("cdm", "uldm")},
    noise="instrument",
    supersampling=4,
    symmetry="d4",
    dataset="dark_matter",
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
            limit=_limit(
                0.137, 0.006, (0.002, 0.002, 0.010, 0.159, 0.222, 0.241, 0.245, 0.214), 100
            ),
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
            limit=_limit(
                0.101, 0.007, (0.001, 0.001, 0.008, 0.044, 0.114, 0.209, 0.205, 0.223), 64
            ),
        ),
        *_POPULATIONS,
        _MASS_CUTOFF,
        _MODEL_IV,
    ]
}


def get_recipe(name: str) -> Recipe:
    """The recipe of this name; raises a `UserError` that lists the valid ones."""
    return RECIPES[choose("recipe", name, RECIPES)]
