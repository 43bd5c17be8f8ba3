"""The one home of physical parameters: names, symbols, units, priors, and how they turn.

A `Parameter` says what a number means; a `ParameterSet` is an ordered selection of them with
the priors of one recipe. Simulation draws from it, TFDS features and targets are named by it,
heads take their scales, periods and first answer from it, augmentation turns labels by it, and
plots, metrics and the served manifest take their names and units from it.

Example:
    >>> targets = recipe.parameters.select(["log10_m_axion"])
    >>> targets.means, targets.stds            # of the prior, each [P]
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from dlens_tf.errors import UserError, choose


@dataclasses.dataclass(frozen=True)
class Constant:
    """A parameter held at one value; it can't be a target."""

    value: float

    @property
    def mean(self) -> float:
        return self.value

    @property
    def std(self) -> float:
        return 0.0

    @property
    def support(self) -> tuple[float, float]:
        return (self.value, self.value)

    def sample(self, rng: np.random.Generator) -> float:
        return self.value


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Uniform prior on [low, high]."""

    low: float
    high: float

    @property
    def mean(self) -> float:
        return 0.5 * (self.low + self.high)

    @property
    def std(self) -> float:
        return (self.high - self.low) / math.sqrt(12.0)

    @property
    def support(self) -> tuple[float, float]:
        return (self.low, self.high)

    def sample(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(self.low, self.high))


@dataclasses.dataclass(frozen=True)
class Normal:
    """Normal prior cut at `mean ± cut × std`.

    `std` is that of the uncut law, a convention that costs 1.3 % at the default cut of 3.
    """

    mean: float
    std: float
    cut: float = 3.0

    @property
    def support(self) -> tuple[float, float]:
        return (self.mean - self.cut * self.std, self.mean + self.cut * self.std)

    def sample(self, rng: np.random.Generator) -> float:
        while True:
            value = rng.standard_normal()
            if abs(value) <= self.cut:
                return float(self.mean + self.std * value)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few evenly spaced values, all equally likely: low, low + step, …, high."""

    low: float
    high: float
    number: int

    @property
    def values(self) -> tuple[float, ...]:
        """The values, ascending; the position is the class of a classification."""
        return tuple(float(v) for v in np.linspace(self.low, self.high, int(self.number)))

    @property
    def mean(self) -> float:
        return 0.5 * (self.low + self.high)

    @property
    def std(self) -> float:
        return float(np.std(self.values))

    @property
    def support(self) -> tuple[float, float]:
        return (self.low, self.high)

    def sample(self, rng: np.random.Generator) -> float:
        return self.values[int(rng.integers(int(self.number)))]


@dataclasses.dataclass(frozen=True)
class Derived:
    """What is known beforehand of a label that is computed from the drawn lens.

    It has no law of its own to be sampled from: mean, deviation and range are those that the
    recipe's other priors give it.
    """

    mean: float
    std: float
    low: float
    high: float

    @property
    def support(self) -> tuple[float, float]:
        return (self.low, self.high)


Prior = Constant | Uniform | Normal | Choice | Derived
_PRIORS = {cls.__name__.lower(): cls for cls in (Constant, Uniform, Normal, Choice, Derived)}


def prior_to_dict(prior: Prior) -> dict[str, Any]:
    """A JSON-ready description of a prior, the inverse of `prior_from_dict`."""
    return {"kind": type(prior).__name__.lower(), **dataclasses.asdict(prior)}


def prior_from_dict(config: Mapping[str, Any]) -> Prior:
    """Builds a prior from `{"kind": "uniform", "low": …, "high": …}`."""
    arguments = {k: float(v) for k, v in config.items() if k != "kind"}
    return _PRIORS[choose("prior", str(config["kind"]), _PRIORS)](**arguments)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One physical parameter.

    Attributes:
      name: the field's standard name, used as key everywhere.
      symbol: LaTeX without dollars, for plots.
      unit: unit as printed; "" if dimensionless.
      description: one sentence.
      prior: the recipe's prior; None in the catalogue below.
      spin: 0 for scalars; 1 for the components of a position, 2 for those of an ellipticity
        or shear. Components of spin s turn by s·φ when the image turns by φ.
      partner: the other component of a spin-1 or spin-2 pair.
      component: 0 for the first (x, cos) component, 1 for the second (y, sin).
      period: for angles, the period in radians; None otherwise.
    """

    name: str
    symbol: str
    unit: str
    description: str
    prior: Prior | None = None
    spin: int = 0
    partner: str | None = None
    component: int = 0
    period: float | None = None

    @property
    def label(self) -> str:
        """Axis label: symbol and unit."""
        return f"${self.symbol}$ [{self.unit}]" if self.unit else f"${self.symbol}$"

    @property
    def is_free(self) -> bool:
        """Whether the prior leaves anything to infer."""
        return self.prior is not None and not isinstance(self.prior, Constant)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description (name, symbol, unit, description, prior)."""
        config = {k: getattr(self, k) for k in ("name", "symbol", "unit", "description")}
        config["prior"] = None if self.prior is None else prior_to_dict(self.prior)
        return config


def _pair(
    names: tuple[str, str], symbols: tuple[str, str], unit: str, description: str, spin: int
) -> list[Parameter]:
    return [
        Parameter(
            name=names[i],
            symbol=symbols[i],
            unit=unit,
            description=f"{description}, {'first' if i == 0 else 'second'} component",
            spin=spin,
            partner=names[1 - i],
            component=i,
        )
        for i in (0, 1)
    ]


CATALOGUE: dict[str, Parameter] = {
    parameter.name: parameter
    for parameter in [
        Parameter(
            "log10_m_axion",
            r"\log_{10} m_\mathrm{axion}",
            "log10(eV)",
            'logarithm of the axion mass; sets the length of a vortex (h = 0.03" 1e-22 eV / m) '
            "or the cut-off and cores of a population of halos",
        ),
        Parameter(
            "phi_vortex",
            r"\phi_\mathrm{vortex}",
            "rad",
            "position angle of the vortex, from +x towards +y",
            period=math.pi,
        ),
        Parameter(
            "sigma_sub",
            r"\Sigma_\mathrm{sub}",
            "kpc^-2",
            "normalisation of the subhalo mass function per projected area",
        ),
        Parameter(
            "shmf_slope",
            r"\alpha_\mathrm{sub}",
            "",
            "logarithmic slope of the subhalo mass function",
        ),
        Parameter(
            "log10_m_hm",
            r"\log_{10} m_\mathrm{hm}",
            "log10(M_sun)",
            "logarithm of the half-mode mass of warm dark matter",
        ),
        Parameter(
            "cross_section",
            r"\sigma/m",
            "cm^2/g",
            "self-interaction cross-section of dark matter by mass",
        ),
        Parameter(
            "log10_m_cut",
            r"\log_{10} m_\mathrm{cut}",
            "log10(M_sun)",
            "logarithm of the mass below which there are no subhalos",
        ),
        Parameter(
            "log10_f_sub",
            r"\log_{10} f_\mathrm{sub}",
            "",
            "logarithm of the realised fraction of mass in subhalos, in projection within theta_E",
        ),
        Parameter("theta_E", r"\theta_\mathrm{E}", "arcsec", "Einstein radius of the main lens"),
        Parameter(
            "gamma_epl",
            r"\gamma_\mathrm{EPL}",
            "",
            "slope of the main lens's density, r^-gamma; 2 is isothermal",
        ),
        *_pair(("e1", "e2"), ("e_1", "e_2"), "", "ellipticity of the main lens", 2),
        *_pair(("gamma1", "gamma2"), (r"\gamma_1", r"\gamma_2"), "", "external shear", 2),
        *_pair(
            ("center_x", "center_y"),
            ("x_\\mathrm{lens}", "y_\\mathrm{lens}"),
            "arcsec",
            "centre of the main lens",
            1,
        ),
        *_pair(
            ("source_x", "source_y"),
            (r"x_\mathrm{src}", r"y_\mathrm{src}"),
            "arcsec",
            "unlensed position of the source",
            1,
        ),
        Parameter("source_R_sersic", r"R_\mathrm{S}", "arcsec", "half-light radius of the source"),
        Parameter("source_n_sersic", r"n_\mathrm{S}", "", "Sersic index of the source"),
        *_pair(
            ("source_e1", "source_e2"),
            (r"e_{1,\mathrm{src}}", r"e_{2,\mathrm{src}}"),
            "",
            "ellipticity of the source",
            2,
        ),
        Parameter(
            "source_magnitude", r"m_\mathrm{src}", "mag", "unlensed AB magnitude of the source"
        ),
        Parameter(
            "source_phi",
            r"\phi_\mathrm{src}",
            "rad",
            "angle by which the source galaxy's picture is turned",
            period=2.0 * math.pi,
        ),
        Parameter(
            "source_scale",
            r"s_\mathrm{src}",
            "",
            "factor on the apparent size of the source galaxy",
        ),
        Parameter("lens_magnitude", r"m_\mathrm{lens}", "mag", "AB magnitude of the lens's light"),
        Parameter(
            "lens_R_sersic",
            r"R_\mathrm{lens}",
            "arcsec",
            "half-light radius of the lens's light, which has the centre and shape of its mass",
        ),
        Parameter("lens_n_sersic", r"n_\mathrm{lens}", "", "Sersic index of the lens's light"),
        *(
            Parameter(
                f"{who}_color_{band}",
                rf"(m_1 - m_{band})_\mathrm{{{who[:3]}}}",
                "mag",
                f"colour of the {who}: magnitude in the first band minus that in band {band}",
            )
            for who in ("source", "lens")
            for band in (2, 3)
        ),
    ]
}


class ParameterSet:
    """An ordered set of parameters with their priors.

    Behaves as a read-only mapping from name to `Parameter`, in order.
    """

    def __init__(self, parameters: Iterable[Parameter]):
        self._parameters = {p.name: p for p in parameters}

    @classmethod
    def from_priors(cls, priors: Mapping[str, Prior]) -> "ParameterSet":
        """Catalogue parameters, in the order of `priors`, with these priors."""
        return cls(
            dataclasses.replace(CATALOGUE[choose("parameter", n, CATALOGUE)], prior=prior)
            for n, prior in priors.items()
        )

    @classmethod
    def from_dicts(cls, configs: Iterable[Mapping[str, Any]]) -> "ParameterSet":
        """The inverse of `to_dicts`; symbols and units come from the catalogue."""
        return cls.from_priors({c["name"]: prior_from_dict(c["prior"]) for c in configs})

    def to_dicts(self) -> list[dict[str, Any]]:
        """JSON-ready descriptions, in order."""
        return [p.to_dict() for p in self]

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self._parameters.values())

    def __len__(self) -> int:
        return len(self._parameters)

    def __getitem__(self, name: str) -> Parameter:
        return self._parameters[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParameterSet) and self._parameters == other._parameters

    def __repr__(self) -> str:
        return f"ParameterSet({', '.join(self.names)})"

    @property
    def names(self) -> list[str]:
        return list(self._parameters)

    @property
    def free(self) -> "ParameterSet":
        """Those whose prior is not a constant."""
        return ParameterSet(p for p in self if p.is_free)

    def select(self, names: Iterable[str]) -> "ParameterSet":
        """These parameters, in this order.

        Raises:
          UserError: if one is unknown here or fixed by its prior.
        """
        names = list(names)
        if not names:
            raise UserError(f"no target parameter chosen; valid: {', '.join(self.free.names)}")
        for name in names:
            if name not in self.free:
                state = "is fixed in this recipe" if name in self else "is not in this data set"
                raise UserError(f"parameter '{name}' {state}; valid: {', '.join(self.free.names)}")
        if len(set(names)) != len(names):
            raise UserError(f"target parameters are named twice: {', '.join(names)}")
        return ParameterSet(self[name] for name in names)

    def sample(self, rng: np.random.Generator) -> dict[str, float]:
        """One draw from the prior, parameter by parameter in order; without derived labels."""
        return {p.name: p.prior.sample(rng) for p in self if not isinstance(p.prior, Derived)}

    @property
    def derived(self) -> list[str]:
        """Names of the labels that are computed from the drawn lens."""
        return [p.name for p in self if isinstance(p.prior, Derived)]

    @property
    def means(self) -> np.ndarray:
        """Prior means, float64 [P]."""
        return np.array([p.prior.mean for p in self])

    @property
    def stds(self) -> np.ndarray:
        """Prior standard deviations, float64 [P]."""
        return np.array([p.prior.std for p in self])

    @property
    def supports(self) -> np.ndarray:
        """Prior ranges, float64 [P, 2]."""
        return np.array([p.prior.support for p in self])


def float32_supports(supports: np.ndarray) -> np.ndarray:
    """The widest float32 ranges inside ranges: rounding alone may put an end beyond its own.

    Args:
      supports: lowest and highest values, float64 [..., 2].

    Returns:
      float32 [..., 2].
    """
    low, high = np.moveaxis(np.asarray(supports, np.float64), -1, 0)
    low32, high32 = low.astype(np.float32), high.astype(np.float32)
    low32 = np.where(low32 < low, np.nextafter(low32, np.float32(np.inf)), low32)
    high32 = np.where(high32 > high, np.nextafter(high32, np.float32(-np.inf)), high32)
    return np.stack([low32, high32], axis=-1)
