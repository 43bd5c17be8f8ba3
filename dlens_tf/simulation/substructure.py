"""Substructure of a lens: point masses, vortices, halos, and the laws that draw them.

A law (`Vortex`, `PointSubhalos`, `populations.Population`) is a frozen dataclass that a recipe
holds for a class of lenses; its `draw` turns parameters and a generator into `Substructure`.
All positions are relative to the centre of the main lens.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from dlens_tf.errors import UserError
from dlens_tf.simulation.cosmology import LensPlane


def _joined(parts: Sequence, name: str) -> np.ndarray:
    return np.concatenate([getattr(part, name) for part in parts])


@dataclasses.dataclass(frozen=True)
class PointMasses:
    """Point masses in the lens plane: positions and Einstein radii in arcsec, each [N]."""

    x: np.ndarray
    y: np.ndarray
    theta_E: np.ndarray

    @staticmethod
    @functools.cache
    def none() -> "PointMasses":
        return PointMasses(np.empty(0), np.empty(0), np.empty(0))

    @staticmethod
    def joined(parts: Sequence["PointMasses"]) -> "PointMasses":
        """The masses of all parts, one after the other."""
        return PointMasses(*(_joined(parts, name) for name in ("x", "y", "theta_E")))

    def shifted(self, x: float, y: float) -> "PointMasses":
        """The same masses moved by (x, y) arcsec."""
        return dataclasses.replace(self, x=self.x + x, y=self.y + y)

    def __len__(self) -> int:
        return len(self.x)


@dataclasses.dataclass(frozen=True)
class Line:
    """Equal point masses, evenly spaced on a line and symmetric about its middle.

    It has the attributes of `PointMasses`, computed when they are asked for.

    Attributes:
      number: of masses, at least 2.
      half_length: from the middle to the outermost mass, arcsec.
      angle: of the line, rad from +x towards +y.
      bead_theta_E: Einstein radius of each mass, arcsec.
      middle: (x, y) of the line's middle, arcsec.
    """

    number: int
    half_length: float
    angle: float
    bead_theta_E: float
    middle: tuple[float, float] = (0.0, 0.0)

    @functools.cached_property
    def _along(self) -> np.ndarray:
        return np.linspace(-self.half_length, self.half_length, self.number)

    @property
    def x(self) -> np.ndarray:
        return self._along * np.cos(self.angle) + self.middle[0]

    @property
    def y(self) -> np.ndarray:
        return self._along * np.sin(self.angle) + self.middle[1]

    @property
    def theta_E(self) -> np.ndarray:
        return np.full(self.number, self.bead_theta_E)

    def shifted(self, x: float, y: float) -> "Line":
        """The same line moved by (x, y) arcsec."""
        return dataclasses.replace(self, middle=(self.middle[0] + x, self.middle[1] + y))

    def __len__(self) -> int:
        return self.number


@dataclasses.dataclass(frozen=True)
class Halos:
    """Spherical truncated NFW halos, with or without a core, in the lens plane; arrays [N].

    Attributes:
      x, y: positions, arcsec.
      mass: solar masses, by the definition of the law that drew them.
      Rs: scale radius, arcsec.
      alpha_Rs: deflection at Rs, arcsec: without a core, of the halo as it would be without
        truncation (lenstronomy's TNFW); with a core, of the halo itself (its TNFWC).
      r_trunc: truncation radius (Baltz et al. 2009, n = 1), arcsec.
      r_core: core radius, arcsec; 0 without a core.
      kappa_sheet: uniform convergence that takes out the mean surface density of the
        population, so that theta_E keeps its meaning; not positive.
    """

    x: np.ndarray
    y: np.ndarray
    mass: np.ndarray
    Rs: np.ndarray
    alpha_Rs: np.ndarray
    r_trunc: np.ndarray
    r_core: np.ndarray
    kappa_sheet: float = 0.0

    @staticmethod
    @functools.cache
    def none() -> "Halos":
        return Halos(*(np.empty(0) for _ in range(7)))

    @staticmethod
    def joined(parts: Sequence["Halos"]) -> "Halos":
        """The halos of all parts, one after the other, without their sheets."""
        names = ("x", "y", "mass", "Rs", "alpha_Rs", "r_trunc", "r_core")
        return Halos(*(_joined(parts, name) for name in names))

    def shifted(self, x: float, y: float) -> "Halos":
        """The same halos moved by (x, y) arcsec."""
        return dataclasses.replace(self, x=self.x + x, y=self.y + y)

    def __len__(self) -> int:
        return len(self.x)


Substructure = PointMasses | Line | Halos


class SubstructureLaw(Protocol):
    """How the substructure of a class of lenses is drawn."""

    def draw(
        self, parameters: Mapping[str, float], rng: np.random.Generator, plane: LensPlane
    ) -> Substructure:
        """Draws the substructure of a lens with these parameters, about the origin."""


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A smooth lens."""

    def draw(
        self, parameters: Mapping[str, float], rng: np.random.Generator, plane: LensPlane
    ) -> PointMasses:
        return PointMasses.none()


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

    def bead_theta_E(self, plane: LensPlane) -> float:
        """Einstein radius of each point mass, arcsec."""
        return _bead_size(self, plane)

    def draw(
        self, parameters: Mapping[str, float], rng: np.random.Generator, plane: LensPlane
    ) -> Line:
        """The beads for `log10_m_axion` at the position angle `phi_vortex`; nothing is random."""
        return Line(
            number=self.num_beads,
            half_length=self.half_length(parameters["log10_m_axion"]),
            angle=parameters["phi_vortex"],
            bead_theta_E=self.bead_theta_E(plane),
        )


@functools.lru_cache(maxsize=16)
def _bead_size(vortex: Vortex, plane: LensPlane) -> float:
    return float(plane.einstein_radius(vortex.mass / vortex.num_beads))


@dataclasses.dataclass(frozen=True)
class PointSubhalos:
    """Point-mass subhalos with dN/dm ∝ m^slope, uniform in radius and angle.

    Attributes:
      number: how many; the mean if `poisson`.
      poisson: whether the number is drawn.
      slope: logarithmic slope of the mass function; not -1.
      mass_range: lowest and highest mass, solar masses.
      radius_range: lowest and highest distance from the lens centre, arcsec.

    Raises:
      UserError: if a range is reversed or reaches below zero.
    """

    number: int
    poisson: bool
    slope: float
    mass_range: tuple[float, float] = (1e6, 1e10)
    radius_range: tuple[float, float] = (0.25, 2.0)

    def __post_init__(self):
        for name, lowest in (("mass_range", np.nextafter(0.0, 1.0)), ("radius_range", 0.0)):
            low, high = getattr(self, name)
            if not lowest <= low < high:
                raise UserError(f"{name} of subhalos must rise from above 0, got {low:g}, {high:g}")

    def draw(
        self, parameters: Mapping[str, float], rng: np.random.Generator, plane: LensPlane
    ) -> PointMasses:
        """Masses by inverting the cumulative law, then radii and angles."""
        number = int(rng.poisson(self.number)) if self.poisson else self.number
        power = self.slope + 1.0
        low, high = (m**power for m in self.mass_range)
        mass = (low + (high - low) * rng.uniform(size=number)) ** (1.0 / power)
        radius = rng.uniform(*self.radius_range, size=number)
        angle = rng.uniform(0.0, 2.0 * np.pi, size=number)
        return PointMasses(
            radius * np.sin(angle), radius * np.cos(angle), plane.einstein_radius(mass)
        )
