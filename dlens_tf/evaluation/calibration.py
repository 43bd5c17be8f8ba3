"""Whether posteriors say rightly how sure they are: coverage, PIT, ranks, TARP, proper scores.

A posterior is calibrated if, over many images whose parameters were drawn from the prior, the
truth lies below its τ-quantile for a share τ of them, for every τ. Everything here is a view of
that. It starts from the probability integral transform (PIT) u = F(truth), F the marginal
posterior's cumulative distribution, which is uniform on [0, 1] if the marginals are calibrated:

* coverage: the share of truths inside the central interval of probability p, |2u - 1| ≤ p;
* PIT histogram: U-shaped if over-confident, a hump if under-confident, a slope if biased;
* ranks of the truth among draws of the posterior (simulation-based calibration, SBC): the same
  for the samples rather than for the distribution function;
* TARP: the share of draws that lie closer to a random point than the truth does, in all
  parameters at once: it sees correlations, which marginals do not.

The continuous ranked probability score (CRPS) and the negative log-likelihood (NLL) are proper
scores: they weigh calibration and sharpness together, and lower is better.

NumPy and SciPy only; the posterior is a `dlens_tf.inference.posterior.Posterior`.

References: Dawid 1984, J. R. Stat. Soc. A 147, 278 (PIT); Gneiting & Raftery 2007, J. Am. Stat.
Assoc. 102, 359 (scores); Talts et al. 2018, arXiv:1804.06788 (SBC); Säilynoja et al. 2022, Stat.
Comput. 32, 32, arXiv:2103.10522 (bands); Lemos et al. 2023, arXiv:2302.03026 (TARP).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special, stats

from dlens_tf.evaluation.metrics import Marginals
from dlens_tf.inference.posterior import Posterior

NUM_SAMPLES = 99
"""Draws of each posterior for SBC and TARP: the truth has one of 100 ranks among them."""
CURVE_LEVELS = np.linspace(0.0, 1.0, 41)
"""Probabilities at which curves are given."""
BAND_PROBABILITY = 0.95
_BAND_SIMULATIONS = 4000
_BINS = (20, 10, 5, 4, 2)  # all divide the number of ranks


def probit_quadrature(num: int = 201, reach: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """Levels and weights for integrals over probability, ∫₀¹ f(τ) dτ ≈ Σ w f(τ).

    The trapezoid rule in z, with τ = Φ(z) and z even between ± `reach`: it resolves the tails, and
    converges fast where the quantile function is that of a smooth density.

    Returns:
      float64 [num] each; the weights sum to 1.
    """
    z = np.linspace(-reach, reach, num)
    weights = np.exp(-0.5 * z**2)
    return special.ndtr(z), weights / weights.sum()


LEVELS, WEIGHTS = probit_quadrature()


def crps(truth: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """The CRPS from quantiles, ∫ 2 (1[y < Q(τ)] - τ) (Q(τ) - y) dτ by `probit_quadrature`.

    Right to about 1e-3 of the score for smooth densities.

    Args:
      truth: [...].
      quantiles: at `LEVELS`, [..., len(LEVELS)].

    Returns:
      [...], in the unit of the parameter.

    Reference: Gneiting & Ranjan 2011, J. Bus. Econ. Stat. 29, 411, eq. 10.
    """
    error = quantiles - truth[..., np.newaxis]
    return 2.0 * (((error > 0.0) - LEVELS) * error) @ WEIGHTS


def marginals(posterior: Posterior, truth: np.ndarray) -> list[Marginals]:
    """What a posterior says about the truth of each parameter.

    Args:
      posterior: of N images.
      truth: true values inside the prior's support, float64 [N, P].

    Raises:
      UserError: if the model gives point estimates.
    """
    pit, log_prob = posterior.cdf(truth), posterior.log_prob(truth)
    scores = crps(truth, posterior.quantiles(LEVELS))
    low, high = np.moveaxis(posterior.interval(0.68), -1, 0)
    variance = posterior.stddev**2
    columns = (pit, log_prob, scores, high - low, variance)
    return [Marginals(*(c[:, p] for c in columns)) for p in range(truth.shape[1])]


def gaussian_marginals(truth: np.ndarray, mean: np.ndarray, stddev: np.ndarray) -> Marginals:
    """What Gaussians say about the truth of one parameter; all arguments [N].

    Reference: Gneiting et al. 2005, Mon. Weather Rev. 133, 1098, eq. 5 (CRPS).
    """
    z = (truth - mean) / stddev
    density = np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    return Marginals(
        pit=special.ndtr(z),
        log_prob=-0.5 * z**2 - np.log(stddev) - 0.5 * np.log(2.0 * np.pi),
        crps=stddev * (z * (2.0 * special.ndtr(z) - 1.0) + 2.0 * density - 1.0 / np.sqrt(np.pi)),
        width=2.0 * special.ndtri(0.84) * stddev,
        variance=stddev**2,
    )


def coverage_curve(pit: np.ndarray, levels: np.ndarray = CURVE_LEVELS) -> np.ndarray:
    """Share of the truths in the central interval of each probability, [len(levels)]."""
    need = np.sort(np.abs(2.0 * pit - 1.0))  # the smallest interval that has the truth inside
    return np.searchsorted(need, levels, side="right") / len(need)


def num_bins(num: int) -> int:
    """Bins of a histogram of `num` examples: at most 20, with five expected in each."""
    return next((bins for bins in _BINS if num >= 5 * bins), _BINS[-1])


def counts(values: np.ndarray) -> np.ndarray:
    """Histogram of values in [0, 1], int64 [num_bins(N)]."""
    return np.histogram(values, bins=num_bins(len(values)), range=(0.0, 1.0))[0]


def ks_test(values: np.ndarray) -> dict[str, float]:
    """Kolmogorov and Smirnov's test of values against the uniform law on [0, 1]."""
    result = stats.kstest(values, "uniform")
    return {"statistic": float(result.statistic), "p_value": float(result.pvalue)}


def chi2_test(histogram: np.ndarray) -> dict[str, float]:
    """Pearson's chi² test of the counts of equally likely bins."""
    result = stats.chisquare(histogram)
    return {"statistic": float(result.statistic), "p_value": float(result.pvalue)}


def ranks(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """SBC ranks: how many of the posterior's draws lie below the truth.

    Args:
      samples: float [S, N, P].
      truth: float [N, P].

    Returns:
      int64 [N, P], each 0 … S and all equally likely if the posterior is calibrated.

    Reference: Talts et al. 2018, arXiv:1804.06788, algorithm 1.
    """
    return np.sum(samples < truth, axis=0)


def rank_counts(rank: np.ndarray, num_samples: int = NUM_SAMPLES) -> np.ndarray:
    """Histogram of ranks [N], int64 [num_bins(N)]; `num_samples` + 1 is a multiple of 20."""
    bins = num_bins(len(rank))
    return np.bincount(rank * bins // (num_samples + 1), minlength=bins)


def tarp_fractions(
    samples: np.ndarray, truth: np.ndarray, supports: np.ndarray, seed: int | Sequence[int]
) -> np.ndarray:
    """The credibility that each joint posterior gives its truth, by a test with random points.

    Args:
      samples: draws of the joint posteriors, float [S, N, P].
      truth: float [N, P].
      supports: prior ranges [P, 2]: distances are in units of them, and for each image one
        reference point is drawn uniformly from their product.
      seed: of the reference points; not that of the draws, on which they may not depend.

    Returns:
      float64 [N]: the share of draws that are closer to the reference point than the truth is,
      spread over the rank's interval so that it is uniform if the posterior is calibrated.

    Reference: Lemos et al. 2023, arXiv:2302.03026, algorithm 2.
    """
    rng = np.random.default_rng(seed)
    low, high = supports.T
    references = rng.uniform(low, high, truth.shape)
    distance = np.linalg.norm((truth - references) / (high - low), axis=-1)
    distances = np.linalg.norm((samples - references) / (high - low), axis=-1)
    closer = np.sum(distances < distance, axis=0)
    return (closer + rng.uniform(size=len(truth))) / (len(samples) + 1)


def _simultaneous(
    simulated: np.ndarray, num: int, shares: np.ndarray, probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Binomial bounds [K] that all K counts of a simulation respect with this probability.

    The same tail probability is left at each of them; simulations say how large it may be.
    """
    tail = 2.0 * np.minimum(
        stats.binom.cdf(simulated, num, shares), stats.binom.sf(simulated - 1, num, shares)
    )
    pointwise = np.quantile(tail.min(axis=1), 1.0 - probability)
    low = stats.binom.ppf(0.5 * pointwise, num, shares)
    return low, stats.binom.ppf(1.0 - 0.5 * pointwise, num, shares)


def histogram_band(num: int, bins: int, seed: int = 0) -> tuple[float, float]:
    """Counts between which all bins of a uniform histogram lie with 95 % probability."""
    shares = np.full(bins, 1.0 / bins)
    simulated = np.random.default_rng(seed).multinomial(num, shares, _BAND_SIMULATIONS)
    low, high = _simultaneous(simulated, num, shares, BAND_PROBABILITY)
    return float(low[0]), float(high[0])


def ecdf_band(
    num: int, levels: np.ndarray = CURVE_LEVELS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds between which the empirical distribution of uniform values lies, with 95 %.

    Args:
      num: values.
      levels: where it is looked at, ascending from 0 to 1.
      seed: of the simulations that make the bounds simultaneous.

    Returns:
      Lower and upper bound of the share of values at or below each level, [len(levels)] each.

    Reference: Säilynoja et al. 2022, arXiv:2103.10522, section 2.2, algorithm 1.
    """
    simulated = np.random.default_rng(seed).multinomial(num, np.diff(levels), _BAND_SIMULATIONS)
    simulated = np.cumsum(simulated, axis=1)[:, :-1]
    low, high = _simultaneous(simulated, num, levels[1:-1], BAND_PROBABILITY)
    pad = [np.concatenate([[end], bound / num, [1.0]]) for end, bound in ((0.0, low), (0.0, high))]
    return pad[0], pad[1]


def ecdf(values: np.ndarray, levels: np.ndarray = CURVE_LEVELS) -> np.ndarray:
    """Share of the values at or below each level, [len(levels)]."""
    return np.searchsorted(np.sort(values), levels, side="right") / len(values)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """All that the posteriors of N images say about their truth.

    Attributes:
      marginals: of each of the P parameters.
      ranks: SBC ranks, int64 [N, P].
      fractions: of TARP, float64 [N].
      joint_log_prob: of all parameters together, float64 [N].
    """

    marginals: list[Marginals]
    ranks: np.ndarray
    fractions: np.ndarray
    joint_log_prob: np.ndarray


def judge(posterior: Posterior, truth: np.ndarray, seed: int) -> Judgement:
    """Asks posteriors about their truth.

    Args:
      posterior: of N images.
      truth: true values inside the prior's support, float64 [N, P].
      seed: of the draws and of TARP's points.

    Raises:
      UserError: if the model gives point estimates.
    """
    samples = posterior.samples(NUM_SAMPLES, seed)
    supports = posterior.parameters.supports
    return Judgement(
        marginals(posterior, truth),
        ranks(samples, truth),
        tarp_fractions(samples, truth, supports, [seed, 1]),
        posterior.joint_log_prob(truth),
    )


def describe_marginal(pit: np.ndarray, rank: np.ndarray) -> dict[str, Any]:
    """The calibration of one parameter, JSON-ready: coverage curve, PIT and SBC with their tests.

    Args:
      pit: [N], N at least 1.
      rank: of the truth among `NUM_SAMPLES` draws, int [N].
    """
    histogram, sbc = counts(pit), rank_counts(rank)
    return {
        "coverage_curve": {
            "levels": CURVE_LEVELS.tolist(),
            "inside": coverage_curve(pit).tolist(),
        },
        "pit": {
            "counts": histogram.tolist(),
            "ks": ks_test(pit),
            "chi2": chi2_test(histogram),
        },
        "sbc": {
            "num_samples": NUM_SAMPLES,
            "counts": sbc.tolist(),
            "chi2": chi2_test(sbc),
        },
    }


def describe_joint(fractions: np.ndarray) -> dict[str, Any]:
    """TARP's answer, JSON-ready.

    Args:
      fractions: what `tarp_fractions` gives, [N].

    Returns:
      The curve; the test of Kolmogorov and Smirnov; `upper_area`, the mean of curve minus
      diagonal over levels above one half, which is negative for over-confident posteriors.
    """
    curve = ecdf(fractions)
    upper = CURVE_LEVELS >= 0.5
    return {
        "levels": CURVE_LEVELS.tolist(),
        "inside": curve.tolist(),
        "ks": ks_test(fractions),
        "upper_area": float(np.mean(curve[upper] - CURVE_LEVELS[upper])),
    }
