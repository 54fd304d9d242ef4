"""The engine's bets on hundreds of millions of tokens: from counts, many runs in step."""

from dataclasses import dataclass

import numpy as np

from tests.measurements.world import Floats, Ints
from verify.betting.evidence import TokenEvidence
from verify.betting.hypotheses import Hypothesis
from verify.betting.shares import LARGEST_SHARE, LearnedShares
from verify.betting.wealth import Wealth


@dataclass(frozen=True, slots=True)
class Contexts:
    """C contexts, visited equally often, with everything that is known about them: laws [C, V] each."""

    target: Floats
    draft: Floats
    unprocessed: Floats

    @property
    def num_cells(self) -> int:
        """C V."""
        return self.target.size

    def evidence(self, token_ids: Ints | None = None, contexts: Ints | None = None) -> TokenEvidence:
        """The contexts as evidence: each once with token 0, or the emitted tokens at the given contexts."""
        where = np.arange(len(self.target)) if contexts is None else contexts
        return TokenEvidence(
            target_probs=self.target[where],
            token_ids=np.zeros(len(where), dtype=np.int64) if token_ids is None else token_ids,
            draft_probs=self.draft[where],
            alternatives=dict.fromkeys(("unprocessed", "no_temperature"), self.unprocessed[where]),
        )

    def law_of(self, hypothesis: Hypothesis) -> Floats | None:
        """The law of a hypothesis at every context, [C, V]."""
        return hypothesis.law(self.evidence())


def law_with_error(contexts: Contexts, wrong: Floats, total_variation: float) -> Floats | None:
    """The correct law with so much of the wrong one mixed in that the mean TV is the given one; None where all is too little."""
    distance = 0.5 * float(np.abs(wrong - contexts.target).sum(axis=1).mean())
    if distance < total_variation:
        return None
    share = total_variation / distance
    return (1 - share) * contexts.target + share * wrong


class BulkBets:
    """The blind account of `Wealth` over R runs at once, looked at after each batch of counts.

    Bettors, prior weights and payoffs are the engine's. Two differences, both to its disadvantage: learned shares learn once a
    batch instead of every 64 tokens and only for the `num_learned` hypotheses with the best prospects, and the learners of
    `verify.betting.learners` are left out; what is left out counts as wealth 0.
    """

    def __init__(
        self, contexts: Contexts, emitted: Floats, *, alpha: float, num_runs: int, num_learned: int = 6
    ) -> None:
        wealth = Wealth(alpha=alpha)
        gains = [
            np.zeros(contexts.num_cells) if law is None else (law / contexts.target - 1).ravel()
            for law in map(contexts.law_of, wealth.hypotheses)
        ]
        bettors = list(zip(wealth.blind.bettors, wealth.blind.log_prior, strict=True))
        fixed = [(each, prior) for each, prior in bettors if not each.learned and each.hypothesis < len(gains)]
        self._factors = np.log1p([each.share * gains[each.hypothesis] for each, _ in fixed])  # [B, CV]
        self._fixed_prior = np.array([prior for _, prior in fixed])
        learned = [(each, prior) for each, prior in bettors if each.learned]
        shares = np.geomspace(1e-6, LARGEST_SHARE, 30)[:, None]
        growth = [float((np.log1p(shares * gains[each.hypothesis]) @ emitted.ravel()).max()) for each, _ in learned]
        best = np.argsort(growth)[::-1][:num_learned]
        self._gains = np.stack([gains[learned[each][0].hypothesis] for each in best])  # [L, CV]
        self._learned_prior = np.array([learned[each][1] for each in best])
        self._shares = [LearnedShares(len(best)) for _ in range(num_runs)]
        self._wealth_of_fixed = np.zeros((num_runs, len(fixed)))  # [R, B]
        self._wealth_of_learned = np.zeros((num_runs, len(best)))  # [R, L]

    def update(self, counts: Ints) -> Floats:
        """Take counts [R, CV] in; the log wealth of every run, [R]."""
        self._wealth_of_fixed += counts @ self._factors.T
        shares = np.stack([each.shares for each in self._shares])  # [R, L]
        for index, gains in enumerate(self._gains):
            staked = 1 + shares[:, index, None] * gains  # [R, CV]
            self._wealth_of_learned[:, index] += np.einsum("rc,rc->r", counts, np.log(staked))
        scores = self._gains / (1 + shares[:, :, None] * self._gains)  # [R, L, CV]
        weighted = scores * counts[:, None, :]
        slopes, squares = weighted.sum(axis=2), np.einsum("rlc,rlc->rl", weighted, scores)
        for run, each in enumerate(self._shares):
            each.step(slopes[run], squares[run])
        everything = np.concatenate(
            [self._wealth_of_fixed + self._fixed_prior, self._wealth_of_learned + self._learned_prior], axis=1
        )
        log_wealth: Floats = np.logaddexp.reduce(everything, axis=1)
        return log_wealth


def tokens_until_rejection(
    contexts: Contexts,
    emitted: Floats,
    *,
    alpha: float,
    num_runs: int,
    limit: float,
    rng: np.random.Generator,
    growth: float = 1.04,
) -> Floats:
    """Tokens until each of the runs is rejected, [R]; inf beyond the limit. Batches grow by `growth`, so times are rounded up."""
    bets = BulkBets(contexts, emitted, alpha=alpha, num_runs=num_runs)
    times = np.full(num_runs, np.inf)
    num_contexts, seen = len(emitted), 0
    while seen < limit and np.isinf(times).any():
        each = max(1, round((growth - 1) * seen / num_contexts))
        counts = rng.multinomial(each, emitted, size=(num_runs, num_contexts)).reshape(num_runs, -1)
        seen += each * num_contexts
        crossed = bets.update(counts) >= -np.log(alpha)
        times[crossed & np.isinf(times)] = seen
    return times
