"""Halos as sums of Plummer lenses: the form in which the fast engine sums them.

The deflection of any spherical halo is a smooth function of radius, so it can be written as

    α(R) = Σ_j w_j R / (R² + p_j²)

with the same few poles p_j for all halos of one shape. A term is the deflection of a Plummer
sphere of mass w_j; five of them share one denominator, so that a batch of halos costs hardly
more than as many point masses, on any device, without tables and branches. The weights are
least-squares fits to lenstronomy's profiles, interpolated in the halo's shape.

Beyond 0.01" from the centre the error is mostly 1e-4 of the halo's largest deflection with 15
poles, which halos with `alpha_Rs` above `FAINT_ALPHA` have, and 5e-4 with 10, for the many faint
ones. Within 0.01" the halo is softened (`HALO_SOFTENING`); tests/simulation/test_halo_poles.py
says how large the errors may be, tests/simulation/test_fast_engine.py those of images.
"""

import functools

import numpy as np

from dlens_tf.errors import UserError
from dlens_tf.simulation.substructure import Halos, PointMasses

POLES = 5
"""Poles that share a denominator: one entry of the sum."""
ENTRY_SIZE = 3 + 2 * POLES
"""Numbers of an entry: x, y, 1 / unit², numerator and denominator from the highest power."""
FAINT_ALPHA = 3e-4
"""Deflection at the scale radius, arcsec, below which 10 poles are enough."""
TRUNCATION_RANGE = (10**-4.0, 10**2.0)
"""r_trunc / Rs that can be represented."""
CORE_RANGE = (10**-2.5, 10**0.5)
"""r_core / Rs that can be represented."""
ALPHA_RANGE = (0.0, 0.2)
"""alpha_Rs that can be represented, arcsec: the fits' errors grow with it."""
POINT_SOFTENING = 1e-5
"""Point masses are Plummer lenses of this size, arcsec."""
HALO_SOFTENING = 2e-3
"""Smallest pole of a halo, arcsec: float32 would overflow far from a smaller one."""

_FEW, _MANY = 10, 15
_TRUNCATION_STEP, _CORE_STEP = 0.05, 0.1  # dex between nodes of the tables
_RADII = np.logspace(np.log10(1.2e-3), 3.3, 250)  # lenstronomy softens TNFW at 1e-3


def _poles(log_tau: np.ndarray, log_core: np.ndarray | None, number: int) -> np.ndarray:
    """Poles in units of Rs, [..., number], for shapes [...]; they move smoothly with the shape."""
    if log_core is None:
        inner = np.log10(0.004 if number == _MANY else 0.015) - np.log10(1.0 + 10.0**-log_tau)
        inner = np.log10(_RADII[0] / 4.0 + 10.0**inner)
        outer = np.log10(1.5) + np.log10(1.0 + 10.0**log_tau)
    else:
        inner = np.log10(0.6) - np.log10(1.0 + 10.0**-log_tau + 10.0**-log_core)
        outer = np.log10(1.5) + np.log10(1.0 + 10.0**log_tau + 10.0**log_core)
    steps = np.linspace(0.0, 1.0, number)
    return 10.0 ** (inner[..., np.newaxis] * (1.0 - steps) + outer[..., np.newaxis] * steps)


def _fit(alpha: np.ndarray, poles: np.ndarray) -> np.ndarray:
    """Weights [number] with which the poles reproduce a deflection at `_RADII`."""
    terms = _RADII[:, np.newaxis] / (_RADII[:, np.newaxis] ** 2 + poles**2)
    scale = 1.0 / np.linalg.norm(terms, axis=0)
    # The cut-off keeps the weights from growing large with alternating signs.
    return np.linalg.lstsq(terms * scale, alpha, rcond=1e-4)[0] * scale


def _nodes(bounds: tuple[float, float], step: float) -> np.ndarray:
    low, high = np.log10(bounds)
    return np.linspace(low, high, round((high - low) / step) + 1)


@functools.cache
def _truncated_weights(number: int):
    """A spline over log10 tau of the weights of TNFW halos with alpha_Rs = Rs = 1."""
    from lenstronomy.LensModel.Profiles.tnfw import TNFW
    from scipy.interpolate import make_interp_spline

    profile, nodes = TNFW(), _nodes(TRUNCATION_RANGE, _TRUNCATION_STEP)
    weights = []
    for log_tau in nodes:
        alpha, _ = profile.derivatives(_RADII, 0.0 * _RADII, 1.0, 1.0, 10.0**log_tau)
        weights.append(_fit(alpha, _poles(log_tau, None, number)))
    return make_interp_spline(nodes, np.array(weights), k=3)


@functools.cache
def _cored_weights(number: int):
    """The same of TNFWC halos, over (log10 tau, log10 core)."""
    from lenstronomy.LensModel.Profiles.nfw_core_truncated import TNFWC
    from scipy.interpolate import RegularGridInterpolator

    profile = TNFWC()
    taus, cores = _nodes(TRUNCATION_RANGE, _CORE_STEP), _nodes(CORE_RANGE, _CORE_STEP)
    weights = np.empty((len(taus), len(cores), number))
    # lenstronomy divides by tau - 1, core - 1 and tau - core: a little beside is safe.
    aside = 3e-4
    for i, log_tau in enumerate(taus):
        for j, log_core in enumerate(cores):
            tau, core = 10.0 ** (log_tau + aside), 10.0 ** (log_core - aside)
            alpha, _ = profile.derivatives(_RADII, 0.0 * _RADII, 1.0, 1.0, core, tau)
            weights[i, j] = _fit(alpha, _poles(log_tau, log_core, number))
    return RegularGridInterpolator((taus, cores), weights, method="cubic")


def _check_range(name: str, values: np.ndarray, bounds: tuple[float, float]) -> None:
    if len(values) and not (bounds[0] <= values.min() and values.max() <= bounds[1]):
        raise UserError(
            f"halos with {name} from {values.min():.3g} to {values.max():.3g} are outside the fast "
            f"engine's range {bounds[0]:g} to {bounds[1]:g}; use --engine=lenstronomy"
        )


def _denominators(squares: np.ndarray) -> np.ndarray:
    """Coefficients below the leading one of Π (u + s_j), [N, POLES], highest power first."""
    coefficients = np.zeros((len(squares), POLES + 1))
    coefficients[:, 0] = 1.0
    for pole in range(POLES):
        coefficients[:, 1 : pole + 2] += coefficients[:, : pole + 1] * squares[:, pole, np.newaxis]
    return coefficients[:, 1:]


def _numerators(squares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficients of Σ_j w_j Π_{k≠j} (u + s_k), [N, POLES], highest power first."""
    total = np.zeros_like(weights)
    for pole in range(POLES):
        product = np.zeros_like(weights)
        product[:, 0] = weights[:, pole]
        done = 0
        for other in range(POLES):
            if other != pole:
                step = product[:, : done + 1] * squares[:, other, np.newaxis]
                product[:, 1 : done + 2] += step
                done += 1
        total += product
    return total


def _entries(x: np.ndarray, y: np.ndarray, poles: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Entries [N × groups, ENTRY_SIZE] of halos with poles and weights [N, number], arcsec."""
    groups = poles.shape[1] // POLES
    squares = poles.reshape(-1, POLES) ** 2
    weights = weights.reshape(-1, POLES)
    unit = np.exp(np.log(squares).mean(axis=1, keepdims=True))
    scaled = squares / unit
    return np.concatenate(
        [
            np.repeat(x, groups)[:, np.newaxis],
            np.repeat(y, groups)[:, np.newaxis],
            1.0 / unit,
            _numerators(scaled, weights / unit),
            _denominators(scaled),
        ],
        axis=1,
    )


def halo_entries(halos: Halos) -> tuple[np.ndarray, np.ndarray]:
    """Halos as entries of the fast engine's sum.

    With s = ((x - x_e)² + (y - y_e)²) / unit², an entry deflects by (x - x_e, y - y_e) P(s) / Q(s),
    where P has `POLES` coefficients and Q a leading 1 and `POLES` more.

    Returns:
      Entries float32 [E, ENTRY_SIZE], arcsec, and the halo that each is of, int64 [E].

    Raises:
      UserError: if a halo's shape or size is outside the range of the fits.
    """
    parts, owners = [np.empty((0, ENTRY_SIZE))], [np.empty(0, np.int64)]
    tau = halos.r_trunc / halos.Rs
    core = halos.r_core / halos.Rs
    _check_range("r_trunc / Rs", tau, TRUNCATION_RANGE)
    _check_range("r_core / Rs", core[core > 0.0], CORE_RANGE)
    _check_range("alpha_Rs in arcsec", halos.alpha_Rs, ALPHA_RANGE)
    faint = halos.alpha_Rs < FAINT_ALPHA
    for cored in (False, True):
        for number, of_number in ((_FEW, faint), (_MANY, ~faint)):
            chosen = np.flatnonzero(of_number & ((core > 0.0) == cored))
            if not len(chosen):
                continue
            log_tau = np.log10(tau[chosen])
            log_core = np.log10(core[chosen]) if cored else None
            if cored:
                weights = _cored_weights(number)(np.stack([log_tau, log_core], axis=-1))
            else:
                weights = _truncated_weights(number)(log_tau)
            Rs = halos.Rs[chosen, np.newaxis]
            owners.append(np.repeat(chosen, number // POLES))
            parts.append(
                _entries(
                    halos.x[chosen],
                    halos.y[chosen],
                    np.maximum(_poles(log_tau, log_core, number) * Rs, HALO_SOFTENING),
                    # alpha(R) = alpha_Rs Σ w (R/Rs) / ((R/Rs)² + p²)
                    weights * Rs * halos.alpha_Rs[chosen, np.newaxis],
                )
            )
    return np.concatenate(parts).astype(np.float32), np.concatenate(owners)


def point_entries(points: PointMasses) -> np.ndarray:
    """Point masses as entries of the same sum, softened at `POINT_SOFTENING`."""
    poles = np.ones((len(points), POLES))
    poles[:, 0] = POINT_SOFTENING
    weights = np.zeros_like(poles)
    weights[:, 0] = points.theta_E**2
    return _entries(points.x, points.y, poles, weights).astype(np.float32)
