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


Prior = Constant | Uniform | Normal
_PRIORS = {cls.__name__.lower(): cls for cls in (Constant, Uniform, Normal)}


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
            'logarithm of the axion mass; sets the vortex length 2h, h = 0.03" (1e-22 eV / m)',
        ),
        Parameter(
            "phi_vortex",
            r"\phi_\mathrm{vortex}",
            "rad",
            "position angle of the vortex, from +x towards +y",
            period=math.pi,
        ),
        Parameter("theta_E", r"\theta_\mathrm{E}", "arcsec", "Einstein radius of the main lens"),
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
        """One draw from the prior, parameter by parameter in order."""
        return {p.name: p.prior.sample(rng) for p in self}

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
