"""What a run that did not reject can exclude: bounds on the leak of each bug and on the distance at one context."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verify.betting.evidence import Floats, TokenEvidence
from verify.betting.hypotheses import Hypothesis, scored_pieces

LEAKS = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 81)])  # [G], 16 a decade: a bound is rounded up by at most 16%.
NUM_MULTIPLIED = 8
LARGEST_MULTIPLIED = 1e30  # to the eighth power still a float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakBound:
    """The share of the tokens that follow `label`'s law is below `leak`.

    Holds at all times and for all laws bounded together with it, with probability 1 - delta.
    """

    label: str
    leak: float
    num_tokens: int
    delta: float

    def total_variation(self, mean_distance: float) -> float:
        """The same in total variation, given the mean TV between the target and the law over the contexts."""
        return self.leak * mean_distance


class LeakBounds:
    """Upper confidence bounds on l in (1 - l) target + l law, one per hypothesis, right together with probability 1 - `delta`.

    `delta` is split evenly over the different laws. Each bound is about a decoder with that one mistake.

    For a true leak l, mixture over l' of prod m_l'(x)/m_l(x) with m_l = (1 - l) target + l law is a martingale, so
    with probability 1 - risk the likelihood of l stays above risk times the mixed likelihood for ever. The
    log-likelihood is concave in l, so the leaks that are not excluded form an interval; its end is rounded up to the
    grid. Half of the mixture sits at leak 0, where the bound is wanted tight. `tolerance`: the true law is within
    that of m_l in log-probability. Source: Robbins 1970; Wasserman, Ramdas & Balakrishnan 2020, equation 8.
    """

    def __init__(self, hypotheses: Sequence[Hypothesis], *, delta: float, tolerance: float = 0.0) -> None:
        if not 0 < delta < 1:
            raise ValueError(
                f"delta is {delta}; it must lie between 0 and 1; pass the chance that a bound may be wrong"
            )
        self.hypotheses = tuple(hypotheses)
        self.delta = delta
        self.tolerance = tolerance
        self._log_risk = np.log(max(1, len({each.formula for each in self.hypotheses})) / delta)
        # Hypotheses of one law have one bound, that of the first of them.
        laws = [(each.formula, each.needs) for each in self.hypotheses]
        self._first = [laws.index(law) for law in laws]  # [H]
        self._is_first = np.array([first == index for index, first in enumerate(self._first)], dtype=np.bool_)  # [H]
        self._num_tokens = np.zeros(len(self.hypotheses), dtype=np.int64)  # [H]
        self._log_likelihood = np.zeros((len(self.hypotheses), LEAKS.size))  # [H, G], relative to leak 0
        self._upper = np.ones(len(self.hypotheses))  # [H]
        self._log_prior = np.log(np.where(LEAKS == 0, 0.5, 0.5 / (LEAKS.size - 1)))  # [G]

    def update(self, evidence: TokenEvidence) -> None:
        """Take N more tokens into every bound whose law they hold."""
        for _, ratios in scored_pieces(self.hypotheses, evidence):
            self.add(ratios)

    def add(self, ratios: Floats) -> None:
        """The same for a piece of `scored_pieces` of these hypotheses: their ratios [H, N]."""
        bound = np.flatnonzero(self._is_first & ~np.isnan(ratios).any(axis=1))  # [R]
        if not bound.size:
            return
        self._log_likelihood[bound] += [log_likelihoods(ratios[index]) for index in bound]
        self._num_tokens[bound] += ratios.shape[1]
        log_likelihood = self._log_likelihood[bound]  # [R, G]
        mixed = np.logaddexp.reduce(log_likelihood + self._log_prior, axis=1)
        slack = self._log_risk + self.tolerance * self._num_tokens[bound]
        kept = log_likelihood > (mixed - slack)[:, None]
        behind_kept = LEAKS.size - kept[:, ::-1].argmax(axis=1)
        # Nothing kept means that no leak of this law explains the tokens: the bound is void, not small.
        end = np.where(kept.any(axis=1), np.minimum(behind_kept, LEAKS.size - 1), LEAKS.size - 1)
        self._upper[bound] = np.minimum(self._upper[bound], LEAKS[end])

    def bounds(self) -> dict[str, LeakBound]:
        """The present bound of each hypothesis that was ever applicable, by label."""
        return {
            hypothesis.label: LeakBound(
                label=hypothesis.label,
                leak=float(self._upper[first]),
                num_tokens=int(self._num_tokens[first]),
                delta=self.delta,
            )
            for hypothesis, first in zip(self.hypotheses, self._first, strict=True)
            if self._num_tokens[first]
        }


def log_likelihoods(ratio: Floats) -> Floats:
    """Log-likelihood of tokens with law/target `ratio` [N] at each of `LEAKS`, relative to leak 0, [G].

    Factors are multiplied `NUM_MULTIPLIED` at a time before the logarithm is taken, unless that could leave the range of a float.
    """
    likely = ratio[ratio > 0]
    near_one = likely.size == 0 or (likely.min() > 1 / LARGEST_MULTIPLIED and likely.max() < LARGEST_MULTIPLIED)
    size = NUM_MULTIPLIED if near_one else 1
    ratio = np.concatenate([ratio, np.ones(-ratio.size % size)]).reshape(size, 1, -1)
    factors = LEAKS[:, None] * (ratio - 1)  # [size, G, N / size]
    factors += 1
    with np.errstate(divide="ignore"):  # leak 1 and a token that the law excludes: likelihood 0
        found: Floats = np.log(np.multiply.reduce(factors, axis=0)).sum(axis=1)
    return found


def leak_upper_bound(
    hypothesis: Hypothesis, evidence: TokenEvidence, *, delta: float, tolerance: float = 0.0
) -> LeakBound | None:
    """Upper bound on the leak of one hypothesis from one batch; None where the evidence lacks its law."""
    bounds = LeakBounds((hypothesis,), delta=delta, tolerance=tolerance)
    bounds.update(evidence)
    return bounds.bounds().get(hypothesis.label)


def total_variation_upper_bound(counts: npt.ArrayLike, target_probs: npt.ArrayLike, *, delta: float) -> float:
    """Upper bound (probability 1 - delta, fixed sample) on TV(emitted law, target) at one context.

    `counts` [V] are independent tokens emitted at that context, `target_probs` [V] the reference. The bound is
    0.5 ||counts/n - target||_1 + 0.5 r, with r the smaller of two radii that hold for every law on V tokens:
    sqrt(2 (V ln 2 + ln(1/delta)) / n) (Weissman et al. 2003, theorem 2.1), and
    sqrt((V - 1) / n) + sqrt(2 ln(1/delta) / n) (mean of the L1 error by Cauchy-Schwarz, deviation by McDiarmid).
    Both are known before the data, so taking the smaller costs nothing. ValueError without observations.
    """
    observed = np.asarray(counts, dtype=np.float64)
    num_tokens = float(observed.sum())
    if num_tokens <= 0:
        raise ValueError("counts sum to 0; a bound needs at least one emitted token; sample the context first")
    vocab_size = observed.size
    log_term = np.log(1 / delta)
    weissman = np.sqrt(2 * (vocab_size * np.log(2) + log_term) / num_tokens)
    mcdiarmid = np.sqrt((vocab_size - 1) / num_tokens) + np.sqrt(2 * log_term / num_tokens)
    distance = np.abs(observed / num_tokens - np.asarray(target_probs, dtype=np.float64)).sum()
    return float(min(1.0, 0.5 * distance + 0.5 * min(weissman, mcdiarmid)))
