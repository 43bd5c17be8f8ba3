"""The exact posterior of a vortex's axion mass, by brute force with the fast engine.

For one image, the posterior of (log10_m_axion, phi_vortex) is computed on adaptively divided
cells. At each point the recipe's other free parameters (source, macro-model, for counts the
exposure time) are optimised by Gauss–Newton steps and integrated out by Laplace's method, with
their priors. The Jacobian, from differences of renders, is shared by neighbouring points: a point
costs about two renders. Everything else is exact: the engine that made the image, its noise law,
the prior. What remains is the best that can be known from the image, and the error of its median
is the least that any network can reach.

Example:
    >>> lens = Simulator(recipe, "fast").simulate("axion", seed=0, index=0)
    >>> brute_force.BruteForce(recipe).posterior(lens.image, start).median
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import linalg, special

from dlens_tf.errors import UserError
from dlens_tf.inference.cells import Cells, integrate
from dlens_tf.inference.pixel_likelihoods import Terms, make_likelihood
from dlens_tf.parameters import Constant, Normal, Prior, Uniform
from dlens_tf.simulation.recipes import Recipe
from dlens_tf.simulation.scene import Scene
from dlens_tf.simulation.substructure import Halos, Vortex

TARGET, ANGLE = "log10_m_axion", "phi_vortex"
EXPOSURE = "log10_exposure"
"""Key of the exposure time's logarithm, a free parameter of recipes with photon counts."""

BATCH = 8
"""Images that are rendered at once; on a processor more are not faster."""
_POINTS = 64  # whose densities are computed at once

_PIECE = 1024  # of products over pixels: BLAS threads for more would only wait for each other
_ROWS = 12
_FEWEST_COLUMNS = 8
_CONVERGED = 0.2  # expected rise of the logarithm of the posterior, which is added
_TRUSTED = 0.5  # of it
_STEPS = 6
_SLOW = 0.35  # of the expected rise, what a step leaves; above it a new Jacobian is made
_JACOBIAN_REACH = 0.08  # in which no second Jacobian is made, dex or arcsec
_HOPELESS = 150.0  # below the best known value, at first


class Marginal:
    """A distribution of one number, exponential between edges.

    Args:
      cells: of the joint density; axis 0 is the number.
    """

    def __init__(self, cells: Cells):
        log_mass = cells.log_mass()
        mass = np.exp(log_mass - cells.log_total())
        low = cells.middle[:, 0] - 0.5 * cells.width[:, 0]
        borders = np.concatenate([low, low + cells.width[:, 0]])
        # Cells that share an edge differ there by rounding.
        edges = np.unique(np.round(borders, 12))
        rate = cells.rise()[:, 0]
        rate = np.where(np.abs(rate) < 1e-6, 1e-6, rate)
        cumulative = np.zeros(len(edges))
        for start, width, r, part in zip(low, cells.width[:, 0], rate, mass, strict=True):
            x = np.clip((edges - start) / width, 0.0, 1.0)
            cumulative += part * np.expm1(r * x) / np.expm1(r)
        self.edges = edges
        self.cumulative = cumulative / cumulative[-1]

    def cdf(self, value: float) -> float:
        """Probability of being below `value`."""
        return float(np.interp(value, self.edges, self.cumulative))

    def quantile(self, levels) -> np.ndarray:
        """Values with these probabilities below them."""
        return np.interp(levels, self.cumulative, self.edges)

    @property
    def median(self) -> float:
        return float(self.quantile(0.5))

    def _mean_of(self, function) -> float:
        middles = 0.5 * (self.edges[1:] + self.edges[:-1])
        return float(np.sum(np.diff(self.cumulative) * function(middles)))

    @property
    def mean(self) -> float:
        return self._mean_of(lambda x: x)

    @property
    def stddev(self) -> float:
        mean = self.mean
        return math.sqrt(self._mean_of(lambda x: (x - mean) ** 2))

    @property
    def expected_error(self) -> float:
        """Expected absolute error of the median, the least of any estimate."""
        median = self.median
        return self._mean_of(lambda x: np.abs(x - median))


@dataclasses.dataclass(frozen=True)
class Posterior:
    """The posterior of an image.

    Attributes:
      marginal: of log10_m_axion.
      cells: of the joint density of (log10_m_axion, phi_vortex); the payload is the optimum of
        the other parameters, in the order of `BruteForce.nuisance`.
      renders: how many images were rendered for it.
      unconverged: share of the posterior in cells for which the optimisation of the other
        parameters stopped before it had converged.
    """

    marginal: Marginal
    cells: Cells
    renders: int
    unconverged: float

    @property
    def doubt(self) -> float:
        """Sum of the cells' doubts; above `cells.ACCURACY` if they were too few."""
        return float(self.cells.doubt(self.cells.log_total()).sum())


class BruteForce:
    """Computes posteriors of a recipe's vortices.

    Args:
      recipe: with a class "axion" of vortices, Sersic sources and noise; one of the registry or
        one made of it by `dataclasses.replace`, for example with another instrument.

    Raises:
      UserError: if the recipe has no vortex, no noise, or a parameter that can't be optimised.
    """

    def __init__(self, recipe: Recipe):
        check_recipe(recipe)
        from dlens_tf.simulation.fast_engine import FastEngine

        self.recipe = recipe
        self.engine = FastEngine(recipe)
        self.law: Vortex = recipe.substructure["axion"]
        parameters = recipe.class_parameters("axion")
        self._constant = {p.name: p.prior.value for p in parameters if not p.is_free}
        self._priors: dict[str, Prior] = {
            p.name: p.prior for p in parameters.free if p.name not in (TARGET, ANGLE)
        }
        self.rendered = list(self._priors)
        if recipe.noise == "deeplense_counts":
            self._priors[EXPOSURE] = Uniform(*recipe.exposure_log10)
        self.nuisance = tuple(self._priors)
        self.span = [parameters[name].prior.support for name in (TARGET, ANGLE)]
        supports = np.array([prior.support for prior in self._priors.values()])
        self.low, self.high = supports.T
        # A little beyond, for the Gaussian that Laplace's method takes for the posterior.
        self.reach = 0.15 * (self.high - self.low)
        self.stds = np.array([prior.std for prior in self._priors.values()])
        normal = [isinstance(prior, Normal) for prior in self._priors.values()]
        self.centers = np.array([prior.mean for prior in self._priors.values()])
        self.precision = np.where(normal, self.stds**-2.0, 0.0)

    def _scene(self, point: np.ndarray, values: np.ndarray) -> Scene:
        parameters = {
            **self._constant,
            TARGET: float(point[0]),
            ANGLE: float(point[1]),
            **dict(zip(self.rendered, map(float, values), strict=False)),
        }
        line = self.law.draw(parameters, None, self.recipe.plane)
        center = parameters["center_x"], parameters["center_y"]
        return Scene("axion", parameters, line.shifted(*center), Halos.none())

    def render(self, points: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Noise-free images, float32 [N, H·W·C], of points [N, 2] and other parameters [N, D]."""
        scenes = [self._scene(*pair) for pair in zip(points, values, strict=True)]
        images = []
        for start in range(0, len(scenes), BATCH):
            part = scenes[start : start + BATCH]
            padded = part + part[-1:] * (BATCH - len(part))  # so that one size is compiled
            rendered = self.engine.render_packed(self.engine.pack(padded)).numpy()
            images.append(rendered[: len(part)].reshape(len(part), -1))
        return np.concatenate(images)

    def render_one(self, parameters: Mapping[str, float]) -> np.ndarray:
        """The noise-free image [H, W, C] of a lens with these free parameters."""
        point = np.array([[parameters[TARGET], parameters[ANGLE]]])
        values = np.array([[parameters[name] for name in self.rendered]])
        return self.render(point, values)[0].reshape(self.recipe.image_shape)

    def first_cells(self) -> tuple[np.ndarray, list[int]]:
        """Edges of rows in log10_m_axion, and in how many cells of the angle each is divided.

        A long line moves by its length times the angle, and an image changes when that is as
        much as its resolution.
        """
        (low, high), (first, last) = self.span
        edges = np.linspace(low, high, _ROWS + 1)
        instrument = self.recipe.instrument
        resolution = 1.5 * max(instrument.psf_fwhm, instrument.pixel_scale)
        farthest = 1.2 * max(self.recipe.priors["theta_E"].support)
        columns = []
        for middle in 0.5 * (edges[1:] + edges[:-1]):
            length = min(self.law.half_length(middle), farthest)
            columns.append(max(_FEWEST_COLUMNS, math.ceil((last - first) * length / resolution)))
        return edges, columns

    def posterior(self, image: np.ndarray, start: Mapping[str, float]) -> Posterior:
        """The posterior of an image's log10_m_axion.

        Args:
          image: observed, [H, W, C] in the recipe's flux unit.
          start: of the optimisation: the recipe's free parameters, and for counts
            `log10_exposure`. The truth of a simulated image may serve; the angle and the mass
            are searched over all of their prior.
        """
        names = (TARGET, ANGLE, *self.nuisance)
        missing = [name for name in names if name not in start]
        if missing:
            raise UserError(f"the start of the optimisation lacks {', '.join(missing)}")
        if image.shape != self.recipe.image_shape:
            raise UserError(
                f"an image of shape {image.shape} is not of recipe {self.recipe.name}, whose "
                f"images are {self.recipe.image_shape}"
            )
        fit = _Fit(self, image, start)
        edges, columns = self.first_cells()
        cells = integrate(fit, edges, columns, self.span[1], fit.best, hint=fit.hint, batch=_POINTS)
        mass = np.exp(cells.log_mass() - cells.log_total())
        is_open = [tuple(point) in fit.unconverged for point in cells.middle]
        return Posterior(Marginal(cells), cells, fit.renders, float(mass[is_open].sum()))


def check_recipe(recipe: Recipe) -> None:
    """Raises a `UserError` if the posterior of a recipe's vortices can't be computed."""
    if not isinstance(recipe.substructure.get("axion"), Vortex):
        raise UserError(
            f"recipe {recipe.name} has no vortex, whose log10_m_axion could be inferred; use one "
            "of the model_i, model_ii and model_iii recipes"
        )
    if recipe.has_galaxies:
        raise UserError(
            f"recipe {recipe.name} takes its sources from a catalogue; the information limit needs "
            "Sersic sources"
        )
    for name, prior in {**recipe.priors, **recipe.class_priors["axion"]}.items():
        if not isinstance(prior, Constant | Uniform | Normal):
            kind = type(prior).__name__
            raise UserError(f"recipe {recipe.name} has a {kind} prior for {name}; use another one")
    if not recipe.has_noise:
        raise UserError(
            f"recipe {recipe.name} has no noise: its information limit is 0; use a recipe with "
            "noise, for example model_ii_instrument"
        )


@dataclasses.dataclass(frozen=True)
class _Jacobian:
    """Derivatives of the image by the rendered parameters at a point.

    Attributes:
      point: (log10_m_axion, phi_vortex).
      matrix: float64 [P, D'].
    """

    point: np.ndarray
    matrix: np.ndarray


class _Fit:
    """The density of (log10_m_axion, phi_vortex) given an image, for `cells.integrate`.

    Attributes:
      renders: how many images were rendered.
      unconverged: points of interest at which the optimisation ran out of steps.
      best, hint: see `cells.integrate`, as payload and hint.
    """

    def __init__(self, parent: BruteForce, image: np.ndarray, start: Mapping[str, float]):
        self._parent = parent
        self.renders = 0
        self.unconverged: set[tuple[float, ...]] = set()
        point = np.array([start[TARGET], start[ANGLE]])
        values = np.array([start[name] for name in parent.nuisance])
        model = self._render(point[None], values[None])[0]
        self._likelihood = make_likelihood(
            image, parent.recipe, model.reshape(image.shape), start.get(EXPOSURE)
        )
        self._jacobians: list[_Jacobian] = []
        # Differences over half a standard deviation; the deviations need a Jacobian first.
        self._steps = 1e-2 * parent.stds[: len(parent.rendered)]
        for _ in range(2):
            jacobian = self._jacobian(point, values)
            terms = self._terms(model, values)
            deviations = self._deviations(self._hessian(terms, jacobian))
            self._steps = np.minimum(0.5 * deviations, parent.stds)[: len(parent.rendered)]
        self._jacobians.append(self._jacobian(point, values))
        self._best = -np.inf
        value, best = self(point[None], values[None], -np.inf)
        self.best = best[0]
        self._best = value[0]
        self.hint = (point, self._best)

    def _render(self, points: np.ndarray, values: np.ndarray) -> np.ndarray:
        self.renders += len(points)
        return self._parent.render(points, values)

    def _terms(self, model: np.ndarray, values: np.ndarray) -> Terms:
        likelihood = self._likelihood
        exposure = values[-1] if likelihood.has_exposure else None
        return likelihood(model[likelihood.pixels].astype(np.float64), exposure)

    def _jacobian(self, point: np.ndarray, values: np.ndarray) -> _Jacobian:
        """By central differences."""
        steps = self._steps
        number = len(steps)
        moved = np.repeat(values[None], 2 * number, axis=0)
        moved[np.arange(number), np.arange(number)] += steps
        moved[number + np.arange(number), np.arange(number)] -= steps
        images = self._render(np.repeat(point[None], 2 * number, axis=0), moved)
        high, low = np.split(images[:, self._likelihood.pixels].astype(np.float64), 2)
        return _Jacobian(point, ((high - low) / (2.0 * steps[:, None])).T.copy())

    def _nearest(self, point: np.ndarray) -> _Jacobian:
        """Of the known Jacobians; the angle counts with the vortex's length."""
        return self._jacobians[np.argmin(self._distances(point))]

    def _distances(self, point: np.ndarray) -> np.ndarray:
        """From the known Jacobians."""
        length = min(self._parent.law.half_length(point[0]), 1.0)
        points = np.array([jacobian.point for jacobian in self._jacobians])
        turn = (points[:, 1] - point[1] + 0.5 * np.pi) % np.pi - 0.5 * np.pi
        return np.hypot(points[:, 0] - point[0], length * turn)

    def _hessian(self, terms: Terms, jacobian: _Jacobian) -> np.ndarray:
        """Information about all parameters, prior included, [D, D]."""
        matrix, information = jacobian.matrix, terms.information
        rendered = matrix.shape[1]
        result = np.diag(self._parent.precision)
        for start in range(0, len(matrix), _PIECE):
            part = matrix[start : start + _PIECE]
            weights = information[0, 0, start : start + _PIECE, None]
            result[:rendered, :rendered] += part.T @ (weights * part)
        if self._likelihood.has_exposure:
            mixed = information[0, 1] @ matrix
            result[:rendered, -1] += mixed
            result[-1, :rendered] += mixed
            result[-1, -1] += information[1, 1].sum()
        return result

    def _gradient(self, terms: Terms, jacobian: _Jacobian, values: np.ndarray) -> np.ndarray:
        result = -self._parent.precision * (values - self._parent.centers)
        rendered = jacobian.matrix.shape[1]
        result[:rendered] += terms.score[0] @ jacobian.matrix
        if self._likelihood.has_exposure:
            result[-1] += terms.score[1].sum()
        return result

    def _deviations(self, hessian: np.ndarray) -> np.ndarray:
        scale = 1.0 / np.sqrt(np.diag(hessian))
        inverse = linalg.inv(hessian * scale * scale[:, None])
        return scale * np.sqrt(np.diag(inverse))

    def _log_prior(self, values: np.ndarray) -> float:
        parent = self._parent
        return -0.5 * float(np.sum(parent.precision * (values - parent.centers) ** 2))

    def _laplace(self, hessian: np.ndarray, values: np.ndarray) -> float:
        """Logarithm of the Gaussian's integral over the prior's range.

        The range cuts the marginal of each parameter by itself, which is exact where at most one
        parameter is near the edge of its range.
        """
        scale = 1.0 / np.sqrt(np.diag(hessian))
        scaled = hessian * scale * scale[:, None]
        factor = linalg.cholesky(scaled, lower=True)
        log_determinant = 2.0 * np.sum(np.log(np.diag(factor) / scale))
        deviations = scale * np.sqrt(np.diag(linalg.cho_solve((factor, True), np.eye(len(scale)))))
        parent = self._parent
        below = special.log_ndtr((values - parent.low) / deviations)
        above = special.log_ndtr((parent.high - values) / deviations)
        return -0.5 * log_determinant + float(np.sum(below + above))

    def __call__(
        self, points: np.ndarray, starts: np.ndarray, lowest: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `cells.Density`; the payload are the other parameters at their optimum."""
        if not np.isfinite(lowest):
            lowest = self._best - _HOPELESS
        parent = self._parent
        number = len(points)
        values = np.clip(starts, parent.low - parent.reach, parent.high + parent.reach)
        jacobians = [self._nearest(point) for point in points]
        found = np.full(number, -np.inf)
        optimum = values.copy()
        expected, hopes = np.full(number, np.inf), np.full(number, np.inf)
        objective = np.full(number, -np.inf)
        best_values, best_step = values.copy(), np.zeros_like(values)
        active = np.arange(number)
        for step in range(_STEPS):
            models = self._render(points[active], values[active])
            slow = []
            for model, i in zip(models, active, strict=True):
                terms = self._terms(model, values[i])
                log_posterior = terms.value + self._log_prior(values[i])
                if log_posterior < objective[i] - _CONVERGED:
                    # Too far: half of the step.
                    best_step[i] *= 0.5
                    values[i] = best_values[i] + best_step[i]
                    slow.append(i)
                    continue
                hessian = self._hessian(terms, jacobians[i])
                gradient = self._gradient(terms, jacobians[i], values[i])
                change = linalg.solve(hessian, gradient, assume_a="pos")
                rise = 0.5 * float(gradient @ change)
                if step and rise > _SLOW * expected[i]:
                    slow.append(i)
                objective[i], expected[i] = log_posterior, rise
                optimum[i] = values[i] + change
                laplace = self._laplace(hessian, optimum[i])
                # A large rise is not to be relied on: the step goes beyond the linear.
                found[i] = log_posterior + min(rise, _TRUSTED) + laplace
                hopes[i] = log_posterior + 2.0 * rise + laplace
                best_values[i], best_step[i] = values[i].copy(), change
                values[i] = np.clip(
                    optimum[i], parent.low - parent.reach, parent.high + parent.reach
                )
                best_step[i] = values[i] - best_values[i]
            active = active[(expected[active] > _CONVERGED) & (hopes[active] > lowest)]
            self._refresh(points, best_values, found, np.intersect1d(slow, active), jacobians)
            if not len(active):
                break
        self.unconverged.update(map(tuple, points[active]))
        return found, best_values

    def _refresh(
        self,
        points: np.ndarray,
        values: np.ndarray,
        found: np.ndarray,
        slow: Sequence[int],
        jacobians: list[_Jacobian],
    ) -> None:
        """Makes a Jacobian for the best of the slow points that have none near, and hands it on."""
        far = [i for i in slow if self._distances(points[i]).min() > _JACOBIAN_REACH]
        if far:
            best = max(far, key=lambda i: found[i])
            self._jacobians.append(self._jacobian(points[best], values[best]))
            for i in slow:
                jacobians[i] = self._nearest(points[i])
