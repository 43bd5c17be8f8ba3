"""Substructure as point masses: the vortex and the simple CDM subhalos of DeepLense."""

import dataclasses

import numpy as np

from dlens_tf.simulation.cosmology import einstein_radius
from dlens_tf.simulation.recipes import PointSubhalos, Recipe, Vortex


@dataclasses.dataclass(frozen=True)
class PointMasses:
    """Point masses in the lens plane: positions and Einstein radii in arcsec, each [N]."""

    x: np.ndarray
    y: np.ndarray
    theta_E: np.ndarray

    @classmethod
    def none(cls) -> "PointMasses":
        return cls(np.empty(0), np.empty(0), np.empty(0))

    def shifted(self, x: float, y: float) -> "PointMasses":
        """The same masses moved by (x, y) arcsec."""
        return PointMasses(self.x + x, self.y + y, self.theta_E)

    def __len__(self) -> int:
        return len(self.x)


def _theta_e(mass: np.ndarray, recipe: Recipe) -> np.ndarray:
    return einstein_radius(mass, recipe.z_lens, recipe.z_source, recipe.cosmology, recipe.distances)


def vortex_points(
    vortex: Vortex, log10_m_axion: float, angle: float, recipe: Recipe
) -> PointMasses:
    """The beads of a vortex about the origin, at `angle` (rad) from +x towards +y."""
    half_length = vortex.half_length(log10_m_axion)
    along = np.linspace(-half_length, half_length, vortex.num_beads)
    mass = np.full(vortex.num_beads, vortex.mass / vortex.num_beads)
    return PointMasses(along * np.cos(angle), along * np.sin(angle), _theta_e(mass, recipe))


def draw_subhalos(subhalos: PointSubhalos, rng: np.random.Generator, recipe: Recipe) -> PointMasses:
    """Draws subhalos about the origin: masses by inverting the cumulative law, radii, angles."""
    number = int(rng.poisson(subhalos.number)) if subhalos.poisson else subhalos.number
    power = subhalos.slope + 1.0
    low, high = (m**power for m in subhalos.mass_range)
    mass = (low + (high - low) * rng.uniform(size=number)) ** (1.0 / power)
    radius = rng.uniform(*subhalos.radius_range, size=number)
    angle = rng.uniform(0.0, 2.0 * np.pi, size=number)
    return PointMasses(radius * np.sin(angle), radius * np.cos(angle), _theta_e(mass, recipe))
