"""The tests that others use, given the same tokens, contexts and knowledge of the target."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, ncx2, norm

from tests.measurements.world import Floats

SAMPLE_SIZES = (10, 100, 1_000, 10_000, 100_000)
NUM_REFERENCES = 100
EXPECTED_IMPROVEMENT = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChiSquare:
    """Pearson's test over C contexts with V tokens each: sum of (seen - expected)^2 / expected, C (V - 1) degrees of freedom."""

    target: Floats

    @property
    def freedom(self) -> int:
        """Degrees of freedom."""
        return int((self.target > 0).sum()) - len(self.target)

    def power(self, emitted: Floats, *, num_tokens: float, alpha: float) -> float:
        """Probability of rejection after a number of tokens fixed beforehand (noncentral chi-square)."""
        per_token = float(((emitted - self.target) ** 2 / self.target).sum(axis=1).mean())
        if per_token * num_tokens < 1e-12:
            return alpha
        return float(ncx2.sf(chi2.isf(alpha, self.freedom), self.freedom, num_tokens * per_token))

    def tokens_needed(self, emitted: Floats, *, alpha: float, power: float) -> float:
        """The smallest fixed number of tokens with this power; the error must be known to plan it."""
        return smallest(lambda number: self.power(emitted, num_tokens=number, alpha=alpha) >= power)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTest:
    """Maximum mean discrepancy with the kernel [same context and same token] against the known target.

    On tokens every Gaussian kernel of one-hot vectors is this one up to scale. The statistic is the sum over contexts of
    ||counts/n - target||^2. The usual two-sample form replaces the target by as many samples of it, which doubles the number of
    tokens; here it is given the target itself. Thresholds come from the limit law, a weighted sum of squared normals (Gretton
    et al. 2012, theorem 12), by the Lugannani-Rice saddle point: a permutation test cannot reach alpha 1e-9.
    """

    target: Floats

    @property
    def weights(self) -> Floats:
        """Weights of the limit law of C n times the statistic, for n tokens in all."""
        covariances = [np.diag(law) - np.outer(law, law) for law in self.target]
        found: Floats = np.concatenate([np.linalg.eigvalsh(each) for each in covariances])
        return found[found > 1e-12] * len(self.target)

    def threshold(self, alpha: float) -> float:
        """Upper alpha quantile of the limit law."""
        weights = self.weights
        mean, sd = weights.sum(), math.sqrt(2 * (weights**2).sum())
        return float(brentq(lambda x: math.log(tail(weights, x) / alpha), mean + sd, mean + 60 * sd))

    def power(self, emitted: Floats, *, num_tokens: float, threshold: float) -> float:
        """Probability of rejection, by the normal limit of the statistic under the error."""
        shift = emitted - self.target  # [C, V]
        scale = len(self.target)
        signal = num_tokens * float((shift**2).sum())
        covariances = [np.diag(law) - np.outer(law, law) for law in emitted]
        spread = (
            4 * num_tokens * scale * sum(float(row @ each @ row) for row, each in zip(shift, covariances, strict=True))
        )
        weights = self.weights
        sd = math.sqrt(spread + 2 * float((weights**2).sum()))
        return float(norm.sf((threshold - signal - weights.sum()) / sd))

    def tokens_needed(self, emitted: Floats, *, alpha: float, power: float) -> float:
        """The smallest fixed number of tokens with this power."""
        threshold = self.threshold(alpha)
        return smallest(lambda number: self.power(emitted, num_tokens=number, threshold=threshold) >= power)


def tail(weights: Floats, x: float) -> float:
    """P(sum of weights times squared standard normals > x) for x above the mean, by Lugannani and Rice."""
    slope = lambda t: float((weights / (1 - 2 * t * weights)).sum()) - x  # noqa: E731 - the derivative of the log transform
    top = 0.5 / float(weights.max())
    t = float(brentq(slope, 0.0, top * (1 - 1e-12)))
    log_transform = -0.5 * float(np.log1p(-2 * t * weights).sum())
    w = math.sqrt(2 * (t * x - log_transform))
    v = t * math.sqrt(float((2 * weights**2 / (1 - 2 * t * weights) ** 2).sum()))
    return float(norm.sf(w) + norm.pdf(w) * (1 / v - 1 / w))  # both terms are positive above the mean


def ratio_test_rejects(target: Floats, emitted: Floats, rng: np.random.Generator) -> bool:
    """The rule of vLLM's `test_rejection_sampling_approximates_target_distribution`; True where the test fails.

    Histograms of 10, 100, ..., 100,000 fresh tokens are compared (L2) with the target and with 100 random laws that have nothing
    to do with it. From the smallest to the largest sample the distance to the target must shrink by more than 20 times the
    factor by which the mean distance to the random laws shrinks. Nothing in it is an error probability. Its own laws are one
    row; with C contexts the histogram is that of (context, token).
    """
    cells = target.ravel() / len(target)
    references = rng.random((NUM_REFERENCES, cells.size))
    references /= references.sum(axis=1, keepdims=True)
    to_target, to_references = [], []
    for size in (SAMPLE_SIZES[0], SAMPLE_SIZES[-1]):  # those between are printed by the test and do not enter its rule
        histogram = rng.multinomial(size, emitted.ravel() / len(target)) / size
        to_target.append(float(np.linalg.norm(histogram - cells)))
        to_references.append(float(np.linalg.norm(references - histogram)) / NUM_REFERENCES)
    return not to_target[0] / to_target[1] > EXPECTED_IMPROVEMENT * to_references[0] / to_references[1]


def smallest(enough: Callable[[float], bool]) -> float:
    """The smallest number, within 0.1%, from which on it is enough."""
    low, high = 1.0, 2.0
    while not enough(high):
        low, high = high, 2 * high
        if high > 1e15:
            return math.inf
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
