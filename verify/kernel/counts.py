"""Betting on counts: millions of outcomes with known laws, against every known mistake and one that learns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from verify.betting.evidence import Floats, Ints

SHARES = (0.002, 0.01, 0.05, 0.25, 0.98)
# How sure the learner is of the null at the start, in observations a table.
STRENGTHS = (30.0, 1_000.0, 30_000.0)
LEARNED = "learned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A finite set of outcomes: its law, `[C]`, and the law that each mistake would give it."""

    law: Floats
    mistakes: Mapping[str, Floats]


class CountBet:
    """Wealth against the hypothesis that independent outcomes follow the laws of their tables.

    Each bettor's factor has mean 1 under the null given the past, so the mixture ever reaches 1/alpha with probability at most
    `alpha` (Ville), however often `update` is called. Bettors: each mistake at each of `SHARES` (the same share in all
    tables), and a Dirichlet prior around each law, which sees any fixed deviation. Half of the prior learns. All tables
    must know the same mistakes.
    """

    def __init__(self, tables: Sequence[Table], *, alpha: float) -> None:
        self.tables = tuple(tables)
        self.alpha = alpha
        self.names = tuple(self.tables[0].mistakes)
        self.counts = [np.zeros(table.law.size, dtype=np.int64) for table in self.tables]
        self.impossible: tuple[int, int] | None = None
        self.largest_log_wealth = 0.0
        self._rejected_after: int | None = None
        num_named = len(self.names) * len(SHARES)
        named, learned = (0.5, 0.5) if num_named else (0.0, 1.0)
        self._log_prior = np.log([named / max(1, num_named)] * num_named + [learned / len(STRENGTHS)] * len(STRENGTHS))
        self._bets = [self._stakes(table) for table in self.tables]  # [B, C] each

    @property
    def num_outcomes(self) -> int:
        """Outcomes counted so far."""
        return int(sum(counts.sum() for counts in self.counts))

    @property
    def rejected(self) -> bool:
        """Whether an outcome of probability 0 was seen, or the wealth has ever reached 1/alpha."""
        return self._rejected_after is not None

    @property
    def rejected_after(self) -> int | None:
        """Outcomes seen when it was rejected."""
        return self._rejected_after

    def update(self, counts: Sequence[Ints]) -> None:
        """Take more outcomes in, counted by table."""
        for index, (table, more) in enumerate(zip(self.tables, counts, strict=True)):
            self.counts[index] += more
            outside = (table.law <= 0) & (self.counts[index] > 0)
            if outside.any() and self.impossible is None:
                self.impossible = (index, int(np.argmax(outside)))
        scores = self._log_prior + self._log_wealth()
        peak = float(scores.max())
        log_wealth = peak + math.log(np.exp(scores - peak).sum())
        self.largest_log_wealth = max(self.largest_log_wealth, log_wealth)
        if self._rejected_after is None and (self.impossible is not None or log_wealth >= -math.log(self.alpha)):
            self._rejected_after = self.num_outcomes

    def posterior(self) -> dict[str, float]:
        """Share of each mistake, and of the learner, in the present wealth."""
        scores = self._log_prior + self._log_wealth()
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        shares = {
            name: float(weights[index * len(SHARES) : (index + 1) * len(SHARES)].sum())
            for index, name in enumerate(self.names)
        }
        return shares | {LEARNED: float(weights[len(self.names) * len(SHARES) :].sum())}

    def distance(self, name: str) -> float:
        """TV that mistake `name` makes, averaged over the outcomes so far."""
        sizes = [counts.sum() for counts in self.counts]
        distances = [0.5 * float(np.abs(table.mistakes[name] - table.law).sum()) for table in self.tables]
        return float(np.average(distances, weights=sizes)) if sum(sizes) else 0.0

    def visible(self, name: str, *, power: float = 1.645) -> float | None:
        """Smallest TV, as a share of mistake `name`, that the outcomes so far would have shown.

        With probability 0.95: an impossible outcome is met, or (normal approximation, `power` standard deviations below the
        mean) the bettors on that mistake alone are rich enough. None where even the whole mistake may go unseen.
        """
        first = self.names.index(name) * len(SHARES)
        needed = -math.log(self.alpha) - self._log_prior[first]
        sizes = np.array([counts.sum() for counts in self.counts])
        distance = self.distance(name)
        impossible = [float(table.mistakes[name][table.law <= 0].sum()) for table in self.tables]
        for leak in np.geomspace(1e-5, 1, 101):
            if leak * float(sizes @ impossible) >= -math.log(0.05):
                return float(leak) * distance
            mean = spread = np.zeros(len(SHARES))
            for table, stakes, size in zip(self.tables, self._bets, sizes, strict=True):
                law = (1 - leak) * table.law + leak * table.mistakes[name]
                gains = stakes[first : first + len(SHARES)]
                average = gains @ law
                mean = mean + size * average
                spread = spread + size * ((gains - average[:, None]) ** 2 @ law)
            if (mean - power * np.sqrt(spread) >= needed).any():
                return float(leak) * distance
        return None

    def _stakes(self, table: Table) -> Floats:
        """Logarithm of each named bettor's factor at each outcome, `[B, C]`; 0 at impossible ones, judged apart."""
        possible = table.law > 0
        stakes = [
            np.where(possible, np.log1p(share * (table.mistakes[name] / np.where(possible, table.law, 1.0) - 1)), 0.0)
            for name in self.names
            for share in SHARES
        ]
        return np.array(stakes).reshape(len(stakes), table.law.size)

    def _log_wealth(self) -> Floats:
        named = np.zeros(len(self.names) * len(SHARES))
        for stakes, counts in zip(self._bets, self.counts, strict=True):
            named += stakes @ counts
        learned = [
            sum(_learned(table.law, counts, strength) for table, counts in zip(self.tables, self.counts, strict=True))
            for strength in STRENGTHS
        ]
        return np.concatenate([named, learned])


def _learned(law: Floats, counts: Ints, strength: float) -> float:
    """Log of the Dirichlet-multinomial likelihood of the counts over their likelihood under `law`."""
    possible = law > 0
    law, counts = law[possible], counts[possible]
    prior = strength * law
    gain = gammaln(prior + counts) - gammaln(prior) - counts * np.log(law)
    return float(gain.sum() + gammaln(strength) - gammaln(strength + counts.sum()))
