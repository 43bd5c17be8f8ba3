"""Populations of subhalos of cold, warm, self-interacting and ultralight dark matter.

A `Population` draws the subhalos of the main lens's halo, all in the lens plane; there are no
halos along the line of sight. Mass function, concentrations, positions and tides are those of
pyHalo 1.3.5's presets, drawn for all halos at once from tables; docs/populations.md gives each
formula with its source and what the sampler was proven against.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np

from dlens_tf.errors import UserError, choose
from dlens_tf.simulation import cored_halos, tides
from dlens_tf.simulation.concentration import median_log_concentration
from dlens_tf.simulation.cosmology import LensPlane
from dlens_tf.simulation.grids import Grid2D
from dlens_tf.simulation.substructure import Halos

MAX_HALOS = 20_000
"""Most halos that a draw may be expected to have."""

LOG10_F_SUB_FLOOR = -7.0
"""Label of a lens without any mass in subhalos within the Einstein radius."""

PIVOT = 1e8
"""Mass at which `sigma_sub` counts, solar masses."""

MIN_CONCENTRATION = 1.2
CONCENTRATION_SCATTER = 0.2
"""Standard deviation of ln c."""

TRUNCATION_RANGE = (0.032, 99.0)
"""Truncation radius over scale radius: halos stripped further are given with a smaller scale
radius and the same mass and truncation radius; larger ones are held there."""

_HOST_SLOPE, _REDSHIFT_SLOPE = 0.55, 0.37  # of the number of subhalos, pyHalo's CDM preset
_HOST_CORE = 0.25  # core radius of the subhalos' distribution over the host's scale radius
_EDGE = 1e-3  # pyHalo places no halo within this fraction of the radius


@dataclasses.dataclass(frozen=True)
class Suppression:
    """How a cut-off in the power spectrum shows in halos, relative to cold dark matter.

    Numbers: (1 + (a m_0/m)^b)^c. Concentrations: (1 + d (m_0/m)^e)^f, times
    (1+z)^(0.026 z - 0.04) if `evolving`.

    Attributes:
      number: (a^b, b, c).
      concentration: (d, e, f).
      evolving: whether concentrations have the redshift dependence of Bose et al. 2016.
    """

    number: tuple[float, float, float]
    concentration: tuple[float, float, float]
    evolving: bool

    def number_factor(self, mass: np.ndarray, m_0: float) -> np.ndarray:
        """Factor on the mass function at `mass` for a cut-off at `m_0`."""
        return _turnover(mass, m_0, *self.number)

    def concentration_factor(self, mass: np.ndarray, z: np.ndarray, m_0: float) -> np.ndarray:
        """Factor on the concentration at `mass` and redshift `z` for a cut-off at `m_0`."""
        factor = _turnover(mass, m_0, *self.concentration)
        return factor * _bose_evolution(z) if self.evolving else factor


def _turnover(mass: np.ndarray, m_0: float, scale: float, inner: float, outer: float) -> np.ndarray:
    return (1.0 + scale * (m_0 / mass) ** inner) ** outer


def _bose_evolution(z: np.ndarray) -> np.ndarray:
    return (1.0 + z) ** (0.026 * z - 0.04)


SUPPRESSIONS: dict[str, Suppression] = {
    # Lovell 2020, arXiv:2003.01125 (isolated halos: masses are those at infall);
    # Bose et al. 2016, arXiv:1507.01998.
    "wdm": Suppression((1.95, 0.8, -1.0), (60.0, 1.0, -0.17), evolving=False),
    # Schive et al. 2016, arXiv:1508.04621; Laroche et al. 2022, arXiv:2206.11269.
    "uldm": Suppression((1.0, 1.1, -2.2), (21.42, 1.62, -0.42), evolving=True),
}

PARAMETERS: dict[str, tuple[str, ...]] = {
    "cdm": (),
    "wdm": ("log10_m_hm",),
    "sidm": ("cross_section",),
    "uldm": ("log10_m_axion",),
}
"""Kinds of dark matter and the parameters that each needs beside sigma_sub and shmf_slope."""

BOUNDS: dict[str, tuple[float, float]] = {
    "sigma_sub": (0.0, 10.0),
    "shmf_slope": (-2.9, -1.1),
    "log10_m_hm": (0.0, 14.0),
    "cross_section": (0.0, 1e4),
    "log10_m_axion": (-26.0, -16.0),
    "log10_m_cut": (0.0, 11.0),
}
"""Values that a population accepts."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Setting:
    """What is the same for all draws in a lens plane.

    Attributes:
      mean_density: 200 times the critical density at the lens, solar masses / kpc³.
      redshifts, times: redshift grid and the time from then to the lens, Gyr.
      age: time from redshift 10 to the lens, Gyr.
      omega_m: matter density today and at the lens.
      log_concentration: grid of the median ln c.
    """

    mean_density: float
    redshifts: np.ndarray
    times: np.ndarray
    age: float
    omega_m: tuple[float, float]
    log_concentration: Grid2D


@functools.cache
def _setting(plane: LensPlane) -> _Setting:
    cosmology = plane.astropy_cosmology
    redshifts = plane.z_lens + np.linspace(0.0, 15.0, 1501)
    ages = cosmology.age(redshifts).value
    return _Setting(
        mean_density=200.0 * cosmology.critical_density(plane.z_lens).to("Msun / kpc3").value,
        redshifts=redshifts,
        times=ages[0] - ages,
        age=float(ages[0] - cosmology.age(10.0).value),
        omega_m=(float(cosmology.Om0), float(cosmology.Om(plane.z_lens))),
        log_concentration=median_log_concentration(plane.cosmology),
    )


@functools.cache
def _radii(plane: LensPlane, log10_m_host: float, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative law of the projected distance from the centre: (quantiles, radii in arcsec)."""
    volume = 10.0**log10_m_host / _setting(plane).mean_density
    scale = (3.0 * volume / (4.0 * np.pi)) ** (1.0 / 3.0) / tides.HOST_CONCENTRATION
    scale /= plane.kpc_per_arcsec
    radii = np.linspace(_EDGE * radius, radius, 301)
    along = np.sinh(np.linspace(0.0, 8.0, 1000))  # arcsec along the line of sight, to 1500
    x = np.hypot(radii[:, np.newaxis], along) / scale
    density = 1.0 / ((x + _HOST_CORE) * (1.0 + x) ** 2)  # cored NFW
    mass = np.trapezoid(density, along, axis=1) * radii
    quantiles = np.r_[0.0, np.cumsum(0.5 * (mass[1:] + mass[:-1]))]
    return quantiles / quantiles[-1], radii


@functools.cache
def _mean_bound_fraction(plane: LensPlane, log10_m_host: float, evolving: bool) -> Grid2D:
    """Mean of bound mass over mass at infall, by (log10 of the mass, ln of the suppression)."""
    setting = _setting(plane)
    log10_m, log_factor = np.linspace(5.0, 11.0, 13), np.linspace(np.log(0.02), 0.0, 21)
    # Quadratures over the law of the infall redshift, by quantile, over the concentration's
    # scatter and over the law of the bound fraction. The tables have kinks: many quantiles.
    quantile, quantile_weights = np.polynomial.legendre.leggauss(160)
    scatter, scatter_weights = np.polynomial.hermite_e.hermegauss(5)
    normal, normal_weights = np.polynomial.hermite_e.hermegauss(9)
    m, factor, u, scatter, normal = np.meshgrid(
        10.0**log10_m,
        np.exp(log_factor),
        0.5 + 0.5 * quantile,
        scatter,
        normal,
        indexing="ij",
        sparse=True,
    )
    z = tides.infall_redshift(u, m, 10.0**log10_m_host, plane.z_lens)
    if evolving:
        factor = factor * _bose_evolution(z)
    c = _concentrations(m, z, scatter, factor, setting.log_concentration)
    time = np.interp(z, setting.redshifts, setting.times)
    mean = tides.bound_fraction(normal, np.broadcast_to(time, c.shape), c)
    for weights in (normal_weights, scatter_weights, quantile_weights):
        mean = mean @ (weights / weights.sum())
    return Grid2D(log10_m[0], log10_m[-1], log_factor[0], log_factor[-1], mean)


def _concentrations(mass, z, scatter, factor, median: Grid2D) -> np.ndarray:
    """Concentrations at infall, with scatter (a normal deviate) and a suppression factor."""
    log_c = median(*np.broadcast_arrays(np.log10(mass), np.log1p(z)))
    cold = np.maximum(np.exp(log_c + CONCENTRATION_SCATTER * scatter), MIN_CONCENTRATION)
    return np.maximum(cold * factor, MIN_CONCENTRATION)


@dataclasses.dataclass(frozen=True, eq=False)
class _MassFunction:
    """dN/dm of a population: N_p/m_p (m/m_p)^slope between two masses, times a suppression.

    Attributes:
      amplitude: N_p, number of halos per unit of m/m_p at the pivot m_p without suppression.
      slope: logarithmic slope.
      low, high: mass range, solar masses.
      suppression: law of the suppression, or None.
      m_0: its mass scale, solar masses.
    """

    amplitude: float
    slope: float
    low: float
    high: float
    suppression: Suppression | None
    m_0: float

    def _powers(self) -> tuple[float, float, float]:
        power = self.slope + 1.0
        return power, (self.low / PIVOT) ** power, (self.high / PIVOT) ** power

    @property
    def number(self) -> float:
        """Mean number of halos before the suppression."""
        power, low, high = self._powers()
        return self.amplitude * (high - low) / power

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """A Poisson draw of masses; suppressed ones are drawn and then thinned."""
        power, low, high = self._powers()
        number = rng.poisson(self.number)
        mass = PIVOT * (low + (high - low) * rng.uniform(size=number)) ** (1.0 / power)
        if self.suppression is None:
            return mass
        return mass[rng.uniform(size=number) < self.suppression.number_factor(mass, self.m_0)]

    def mean_mass(self, bound: Grid2D) -> float:
        """Mean total of the bound mass, solar masses, from the mean bound fractions."""
        log_mass = np.linspace(np.log(self.low), np.log(self.high), 200)
        mass = np.exp(log_mass)
        density = self.amplitude * (mass / PIVOT) ** (self.slope + 1.0)  # dN / dln m
        log_factor = np.zeros_like(mass)
        if self.suppression is not None:
            density = density * self.suppression.number_factor(mass, self.m_0)
            log_factor = np.log(_turnover(mass, self.m_0, *self.suppression.concentration))
        total = density * mass * bound(log_mass / math.log(10.0), log_factor)
        return float(np.trapezoid(total, log_mass))


@dataclasses.dataclass(frozen=True)
class Population:
    """Subhalos of the main lens's halo in a cylinder about its centre.

    The mass function is in mass at infall: dN/dA dm = sigma_sub F/m_p (m/m_p)^shmf_slope with
    m_p = 1e8 solar masses and F = (M_host/1e13)^0.55 (0.5 + z_lens)^0.37, in kpc^-2, times the
    suppression of the kind. Halos along the line of sight are left out.

    Attributes:
      kind: "cdm", "wdm", "sidm" or "uldm".
      log10_mass_range: lowest and highest mass at infall, log10 of solar masses.
      log10_m_host: mass M200c of the host halo, log10 of solar masses.
      radius: of the cylinder, arcsec.
      log10_min_bound_mass: halos whose bound mass, log10 of solar masses, is smaller are left
        out of the draw: most subhalos are stripped to next to nothing. Their mean mass stays in
        `kappa_sheet`.

    Raises:
      UserError: if the kind is unknown, or a range is reversed or out of bounds.
    """

    kind: str
    log10_mass_range: tuple[float, float] = (6.0, 10.0)
    log10_m_host: float = 13.3
    radius: float = 3.0
    log10_min_bound_mass: float = -math.inf

    def __post_init__(self):
        choose("kind of dark matter", self.kind, PARAMETERS)
        low, high = self.log10_mass_range
        if not 5.0 <= low < high <= 11.0:
            raise UserError(
                f"log10_mass_range of subhalos must rise within 5 and 11, got {low:g}, {high:g}"
            )
        if not high < self.log10_m_host <= 16.0:
            raise UserError(
                f"log10_m_host must lie above the subhalos' {high:g} and at most at 16, got "
                f"{self.log10_m_host:g}"
            )
        if not 0.0 < self.radius <= 60.0:
            raise UserError(f"radius of the population must be in 0…60 arcsec, got {self.radius:g}")
        if not self.log10_min_bound_mass < high:
            raise UserError(
                f"log10_min_bound_mass must lie below the highest mass, {high:g}, got "
                f"{self.log10_min_bound_mass:g}"
            )

    def draw(
        self, parameters: Mapping[str, float], rng: np.random.Generator, plane: LensPlane
    ) -> Halos:
        """Draws the subhalos of a lens.

        Args:
          parameters: sigma_sub (kpc^-2), shmf_slope, those of `PARAMETERS` for the kind, and
            optionally log10_m_cut, which raises the lowest mass.
          rng: generator.
          plane: redshifts and cosmology.

        Returns:
          Halos about the origin; `mass` is the bound mass in solar masses.

        Raises:
          UserError: if a parameter is missing or out of bounds, or more than `MAX_HALOS` halos
            are to be expected.
        """
        law = self._mass_function(parameters, plane)
        if law is None:
            return Halos.none()
        setting, factor = _setting(plane), 1.0
        mass = law.sample(rng)
        n = len(mass)
        z = tides.infall_redshift(rng.uniform(size=n), mass, 10.0**self.log10_m_host, plane.z_lens)
        if law.suppression is not None:
            factor = law.suppression.concentration_factor(mass, z, law.m_0)
        scatter = rng.standard_normal(n)
        c = _concentrations(mass, z, scatter, factor, setting.log_concentration)
        time = np.interp(z, setting.redshifts, setting.times)
        bound = tides.bound_fraction(rng.standard_normal(n), time, c)
        kept = bound * mass >= 10.0**self.log10_min_bound_mass
        mass, c, bound = mass[kept], c[kept], bound[kept]
        n = len(mass)
        quantiles, radii = _radii(plane, self.log10_m_host, self.radius)
        radius = np.interp(rng.uniform(size=n), quantiles, radii)
        angle = rng.uniform(0.0, 2.0 * np.pi, size=n)
        r_s = (3.0 * mass / (4.0 * np.pi * setting.mean_density)) ** (1.0 / 3.0) / c  # kpc
        r_trunc = tides.truncation(bound, c) * r_s
        Rs, r_core = r_s, np.zeros(n)
        if self.kind == "sidm":
            rho_s = mass / (4.0 * np.pi * r_s**3 * tides.nfw_mass(c))
            time = cored_halos.collapse_time(rho_s, r_s, parameters["cross_section"])
            Rs, r_core = (r_s * x for x in cored_halos.gravothermal_shape(setting.age / time))
        elif self.kind == "uldm":
            Rs = r_s * cored_halos.gravothermal_shape(0.0)[0]
            r_core = cored_halos.soliton_radius(
                mass, parameters["log10_m_axion"], plane.z_lens, *setting.omega_m
            )
        Rs, r_trunc, r_core = (x / plane.kpc_per_arcsec for x in (Rs, r_trunc, r_core))
        # Within a truncation radius this small, the profile no longer depends on Rs.
        Rs = np.minimum(Rs, r_trunc / TRUNCATION_RANGE[0])
        r_trunc = np.minimum(r_trunc, Rs * TRUNCATION_RANGE[1])
        if self.kind in ("sidm", "uldm"):
            r_core = Rs * np.clip(r_core / Rs, *cored_halos.CORE_RANGE)
            alpha_Rs = cored_halos.deflection_at_scale_radius(
                bound * mass, Rs, r_trunc, r_core, plane.sigma_crit
            )
        else:
            unit = bound * mass / tides.truncated_nfw_mass(r_trunc / Rs)  # 4π ρ_s Rs³
            alpha_Rs = unit * (1.0 - math.log(2.0)) / (np.pi * Rs * plane.sigma_crit)
        mean = law.mean_mass(_mean_bound_fraction(plane, self.log10_m_host, self.kind == "uldm"))
        return Halos(
            x=radius * np.cos(angle),
            y=radius * np.sin(angle),
            mass=bound * mass,
            Rs=Rs,
            alpha_Rs=alpha_Rs,
            r_trunc=r_trunc,
            r_core=r_core,
            kappa_sheet=-mean / (np.pi * self.radius**2 * plane.sigma_crit),
        )

    def labels(
        self, halos: Halos, parameters: Mapping[str, float], plane: LensPlane
    ) -> dict[str, float]:
        """Labels of a drawn population.

        Args:
          halos: as drawn, about the centre of the main lens.
          parameters: of the lens, with theta_E.
          plane: redshifts and cosmology.

        Returns:
          log10_f_sub: log10 of the bound mass of halos whose centres are within theta_E over
            the lens's mass there, π theta_E² Σ_crit; `LOG10_F_SUB_FLOOR` if that is smaller or
            there are none.
        """
        theta_E = parameters["theta_E"]
        mass = halos.mass[np.hypot(halos.x, halos.y) < theta_E].sum()
        fraction = mass / (np.pi * theta_E**2 * plane.sigma_crit)
        return {"log10_f_sub": math.log10(max(fraction, 10.0**LOG10_F_SUB_FLOOR))}

    def _mass_function(
        self, parameters: Mapping[str, float], plane: LensPlane
    ) -> _MassFunction | None:
        """The mass function; None if the cut-off of ultralight dark matter leaves no halos."""
        values = self._checked(parameters)
        low, high = (10.0**m for m in self.log10_mass_range)
        low = max(low, 10.0 ** values.get("log10_m_cut", -math.inf))
        m_0 = 0.0
        if self.kind == "wdm":
            m_0 = 10.0 ** values["log10_m_hm"]
        elif self.kind == "uldm":
            log10_m = values["log10_m_axion"]
            # Schive et al. 2016, equation 7.
            m_0 = 1.6e10 * 10.0 ** (-4.0 / 3.0 * (log10_m + 22.0))
            omega_m = _setting(plane).omega_m
            low = max(low, cored_halos.min_soliton_mass(log10_m, plane.z_lens, *omega_m))
            if low >= high:
                return None
        area = np.pi * (self.radius * plane.kpc_per_arcsec) ** 2
        scaling = 10.0 ** (_HOST_SLOPE * (self.log10_m_host - 13.0)) * (0.5 + plane.z_lens) ** (
            _REDSHIFT_SLOPE
        )
        law = _MassFunction(
            amplitude=area * values["sigma_sub"] * scaling,
            slope=values["shmf_slope"],
            low=low,
            high=high,
            suppression=SUPPRESSIONS.get(self.kind),
            m_0=m_0,
        )
        if law.number > MAX_HALOS:
            raise UserError(
                f"{law.number:.0f} halos are to be expected, more than {MAX_HALOS}: lower "
                f"sigma_sub ({values['sigma_sub']:g}), raise the lowest mass ({low:.3g} solar "
                f"masses), or shrink the radius ({self.radius:g} arcsec)"
            )
        return law

    def _checked(self, parameters: Mapping[str, float]) -> dict[str, float]:
        """The population's parameters; raises a `UserError` if one is missing or off."""
        names = ("sigma_sub", "shmf_slope", *PARAMETERS[self.kind])
        missing = [name for name in names if name not in parameters]
        if missing:
            raise UserError(f"a population of {self.kind} halos needs {', '.join(missing)}")
        names += ("log10_m_cut",) if "log10_m_cut" in parameters else ()
        values = {name: float(parameters[name]) for name in names}
        for name, value in values.items():
            low, high = BOUNDS[name]
            if not low <= value <= high:
                raise UserError(f"{name} must be in {low:g}…{high:g}, got {value:g}")
        if values.get("log10_m_cut", -math.inf) >= self.log10_mass_range[1]:
            raise UserError(
                f"log10_m_cut {values['log10_m_cut']:g} leaves no halos below the highest mass, "
                f"log10 {self.log10_mass_range[1]:g}: lower it"
            )
        return values
