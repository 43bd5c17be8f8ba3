"""The least error that any network can reach on a recipe: that of the exact posterior's median.

Lenses of the recipe are simulated and the posterior of log10_m_axion is computed for each by
`inference.brute_force`. The true masses are spread evenly over the prior (a van der Corput
sequence with a seeded start), so that few images cover it whatever their number. What each image
gives is the expected error of its posterior's median; the error that was made, the rank of the
truth and the coverage of intervals tell whether the posteriors can be believed, and so do the doubt
that the integration left and the share of the posterior whose optimisation did not converge.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from dlens_tf.benchmarks.report import Report, markdown_table
from scipy import stats
from tqdm import tqdm

from dlens_tf.errors import UserError, choose
from dlens_tf.evaluation.metrics import bin_indices, equal_edges
from dlens_tf.inference.brute_force import EXPOSURE, TARGET, BruteForce, check_recipe
from dlens_tf.inference.cells import ACCURACY
from dlens_tf.simulation.noise import observe
from dlens_tf.simulation.recipes import RECIPES, InformationLimit, Recipe, get_recipe
from dlens_tf.simulation.scene import draw, noise_generator

QUANTILES = (0.025, 0.16, 0.5, 0.84, 0.975)
LEVELS = (50, 68, 90, 95)
UNCONVERGED = 0.01
"""Share of a posterior without convergence above which the table counts an image."""
RESUMES = True
"""Rows of an earlier, shorter run are kept."""

DEFAULT = ("model_i_legacy", "model_ii_instrument", "model_iii_instrument", "model_ii", "model_iii")


@dataclasses.dataclass(frozen=True)
class Options:
    """Whose limit to compute, and from how many images.

    Attributes:
      recipes: names, each with noise and a vortex.
      images: of each recipe.
      seed: of the lenses and their noise.

    Raises:
      UserError: if a recipe is unknown or has no such limit.
    """

    recipes: Sequence[str] = DEFAULT
    images: int = 200
    seed: int = 0

    def __post_init__(self):
        if not self.recipes:
            raise UserError("there is no recipe whose limit to compute")
        for name in self.recipes:
            check_recipe(RECIPES[choose("recipe", name, RECIPES)])


def _van_der_corput(index: int, shift: float) -> float:
    """Number `index` of a sequence that fills [0, 1) evenly."""
    digits = f"{index:b}"[::-1]
    return (sum(int(digit) * 0.5 ** (i + 1) for i, digit in enumerate(digits)) + shift) % 1.0


def truth_of(recipe: Recipe, seed: int, index: int) -> float:
    """True log10_m_axion of an image."""
    low, high = recipe.class_parameters("axion")[TARGET].prior.support
    shift = np.random.default_rng(seed).uniform()
    return low + (high - low) * _van_der_corput(index, shift)


def image_row(exact: BruteForce, seed: int, index: int) -> dict[str, Any]:
    """Simulates an image and computes its posterior.

    Args:
      exact: of the recipe.
      seed: of the lens and its noise.
      index: of the image.

    Returns:
      recipe, index, truth, median, mean, stddev, expected_error, rank (the posterior's
      probability below the truth), doubt (see `brute_force.Posterior`), unconverged_mass,
      quantiles at `QUANTILES`, points at which the density was computed, renders.
    """
    recipe = exact.recipe
    truth = truth_of(recipe, seed, index)
    start = {**draw(recipe, "axion", seed, index).parameters, TARGET: truth}
    model = exact.render_one(start)
    noisy = observe(model, recipe, noise_generator(recipe, "axion", seed, index))
    start[EXPOSURE] = math.log10(noisy.exposure_time)
    posterior = exact.posterior(noisy.image, start)
    marginal = posterior.marginal
    row = {
        "truth": truth,
        "median": marginal.median,
        "mean": marginal.mean,
        "stddev": marginal.stddev,
        "expected_error": marginal.expected_error,
        "rank": marginal.cdf(truth),
        "doubt": posterior.doubt,
        "unconverged_mass": posterior.unconverged,
    }
    return {
        "recipe": recipe.name,
        "index": index,
        **{name: round(value, 7) for name, value in row.items()},
        "quantiles": [round(float(q), 7) for q in marginal.quantile(QUANTILES)],
        "points": len(posterior.cells),
        "renders": posterior.renders,
    }


def run(options: Options, done: Sequence[dict[str, Any]] = ()) -> Iterator[dict[str, Any]]:
    """A row for each image that is not among those that are done; see `image_row`."""
    known = {(row["recipe"], row["index"]) for row in done}
    missing = {
        name: [i for i in range(options.images) if (name, i) not in known]
        for name in dict.fromkeys(options.recipes)
    }
    total = options.images * len(missing)
    left = sum(map(len, missing.values()))
    with tqdm(total=total, initial=total - left, desc="measure", unit="image") as progress:
        for name, indices in missing.items():
            if not indices:
                continue
            progress.set_postfix_str(f"{name}, starting")
            exact = BruteForce(get_recipe(name))
            for index in indices:
                row = image_row(exact, options.seed, index)
                progress.set_postfix_str(name)
                progress.update()
                yield row


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over the prior, with its standard error, and the means of bins of the truth."""

    value: float
    error: float
    bins: tuple[float, ...]


def stratified_mean(values: np.ndarray, truth: np.ndarray, edges: np.ndarray) -> Estimate:
    """Mean of the bins' means, which weighs the prior rightly however many images a bin has.

    Bins without images are left out of the mean and are NaN; with a single one, the error is
    that of all images.
    """
    index = bin_indices(truth, edges)
    groups = [values[index == i] for i in range(len(edges) - 1)]
    filled = [group for group in groups if len(group)]
    if min(map(len, filled)) > 1:
        squares = [group.var(ddof=1) / len(group) for group in filled]
        error = math.sqrt(sum(squares)) / len(filled)
    else:
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    bins = tuple(float(group.mean()) if len(group) else math.nan for group in groups)
    return Estimate(float(np.mean([group.mean() for group in filled])), error, bins)


def _arrays(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    names = ("truth", "median", "expected_error", "rank", "doubt", "unconverged_mass", "points")
    # Results of earlier versions lack the last three.
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}


def limit(recipe: str, rows: Sequence[dict[str, Any]]) -> InformationLimit:
    """The limit that a recipe's rows give, in the form that recipes have it."""
    arrays = _arrays(rows)
    edges = equal_edges(get_recipe(recipe).class_parameters("axion")[TARGET])
    estimate = stratified_mean(arrays["expected_error"], arrays["truth"], edges)
    source = f"posterior median under the true prior, brute force over {len(rows)} images"
    return InformationLimit(
        TARGET,
        round(estimate.value, 4),
        round(estimate.error, 4),
        source,
        tuple(float(edge) for edge in edges),
        tuple(round(value, 4) for value in estimate.bins),
    )


def table(report: Report) -> str:
    """The limit of each recipe, the expected error by bin of the truth, and what tells whether the
    posteriors are right.
    """
    recipes = list(dict.fromkeys(row["recipe"] for row in report.rows))
    totals, bins, checks, doubts = [], [], [], []
    for name in recipes:
        rows = [row for row in report.rows if row["recipe"] == name]
        arrays = _arrays(rows)
        parameter = get_recipe(name).class_parameters("axion")[TARGET]
        edges = equal_edges(parameter)
        expected = stratified_mean(arrays["expected_error"], arrays["truth"], edges)
        made = stratified_mean(np.abs(arrays["median"] - arrays["truth"]), arrays["truth"], edges)
        totals.append([name, str(len(rows)), *(_with_error(e) for e in (expected, made))])
        bins.append([name, *(_number(value) for value in expected.bins)])
        central = 2.0 * np.abs(arrays["rank"] - 0.5)
        coverage = [f"{100.0 * np.mean(central <= level / 100.0):.0f} %" for level in LEVELS]
        uniform = stats.kstest(arrays["rank"], "uniform").pvalue
        checks.append([name, *coverage, f"{uniform:.2f}"])
        doubts.append([name, *_doubts(arrays)])
    edges = equal_edges(get_recipe(recipes[0]).class_parameters("axion")[TARGET])
    ranges = [f"{low:.2f} to {high:.2f}" for low, high in itertools.pairwise(edges)]
    header = ["recipe", *(f"in {level} %" for level in LEVELS), "p of uniform ranks"]
    return "\n\n".join(
        [
            f"Least mean absolute error of {TARGET}, dex (seed {report.settings['seed']})",
            markdown_table(["recipe", "images", "expected", "made"], totals),
            f"The exact posterior's expected error by true {TARGET}, dex: no bound within a bin",
            markdown_table(["recipe", *ranges], bins),
            "Truths in the posterior's central intervals",
            markdown_table(header, checks),
            "Integrations that stopped short, and optimisations that did",
            markdown_table(
                [
                    "recipe",
                    f"images of doubt above {ACCURACY:g}",
                    "largest doubt",
                    f"images with above {100 * UNCONVERGED:g} % unconverged",
                    "largest share",
                    "points, median",
                ],
                doubts,
            ),
        ]
    )


def _doubts(arrays: dict[str, np.ndarray]) -> list[str]:
    """How many images are doubtful, and by how much; "–" where an image's row doesn't say."""
    doubt, unconverged, points = (arrays[n] for n in ("doubt", "unconverged_mass", "points"))
    if np.isnan(doubt).any():
        return ["–"] * 5
    return [
        str(np.sum(doubt > ACCURACY)),
        f"{doubt.max():.2f}",
        str(np.sum(unconverged > UNCONVERGED)),
        f"{100.0 * unconverged.max():.1f} %",
        f"{np.median(points):.0f}",
    ]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _with_error(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} ± {_number(estimate.error)}"
