"""The wealth of many bettors, tracked after every token, and of their mixture, which is the test."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verify.betting.evidence import Floats

MAX_CURVE_POINTS = 200
ROLES = ("first", "accepted", "recovered", "bonus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bettor:
    """A hypothesis with the share of the positions at which it is bet to act; `weight` is its prior among its name.

    `learned`: the share is learned from past tokens and `share` is what it starts from.
    """

    hypothesis: int
    label: str
    name: str
    family: str
    share: float
    weight: float = 1.0
    learned: bool = False


def log_priors(bettors: Sequence[Bettor]) -> Floats:
    """Uniform over families, then over the names of a family, then by weight among the bettors of a name; logs, [B]."""
    names: dict[str, set[str]] = {}
    total: dict[str, float] = {}
    for bettor in bettors:
        names.setdefault(bettor.family, set()).add(bettor.name)
        total[bettor.name] = total.get(bettor.name, 0.0) + bettor.weight
    priors = [bettor.weight / total[bettor.name] / len(names[bettor.family]) / len(names) for bettor in bettors]
    return np.log(np.asarray(priors, dtype=np.float64))


class Account:
    """Wealth of each bettor and of the prior-weighted mixture, in natural logarithms.

    While every factor has conditional mean at most 1, the mixture is a non-negative supermartingale that starts at 1,
    and P(it ever reaches 1/alpha) <= alpha (Ville's inequality). So it is read after every token and rejects for
    good.
    """

    def __init__(self, bettors: Sequence[Bettor], *, alpha: float) -> None:
        if not 0 < alpha < 1:
            raise ValueError(
                f"alpha is {alpha}; it must lie between 0 and 1; pass this check's share of the false-alarm budget"
            )
        self.bettors = tuple(bettors)
        self.alpha = alpha
        self.num_tokens = 0
        self.tokens_until_rejection: int | None = None
        self.log_prior = log_priors(self.bettors)  # [B]
        self.shares = np.array([bettor.share for bettor in self.bettors])[:, None]  # [B, 1]
        self.log_wealth_of = np.zeros(len(self.bettors))  # [B]
        self.largest_log_wealth_of = np.zeros(len(self.bettors))  # [B], each bettor is a test of its own
        # Role sums say where a bettor won. Given its own role a token does not follow the target, so they test nothing.
        self.log_wealth_by_role = np.zeros((len(ROLES), len(self.bettors)))  # [R, B]
        self.log_wealth = 0.0
        self.largest_log_wealth = 0.0
        self._curve: list[tuple[int, float]] = [(0, 0.0)]
        self._stride = 1

    @property
    def rejected(self) -> bool:
        """Whether the mixture has ever reached 1/alpha."""
        return self.tokens_until_rejection is not None

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """(tokens, log wealth of the mixture) at no more than 201 equidistant points and at the end."""
        last = (self.num_tokens, self.log_wealth)
        return tuple(self._curve) if self._curve[-1] == last else (*self._curve, last)

    @property
    def posterior(self) -> Floats:
        """Share of each bettor in the present wealth of the mixture, [B]."""
        scores = self.log_prior + self.log_wealth_of
        weights = np.exp(scores - scores.max())
        posterior: Floats = weights / weights.sum()
        return posterior

    def add(self, log_factors: Floats, roles: Sequence[str] | None = None) -> None:
        """Multiply in the factors of N tokens, [B, N], in order of emission."""
        if log_factors.shape[1] == 0:
            return
        paths = np.cumsum(log_factors, axis=1)  # [B, N]
        paths += (self.log_wealth_of + self.log_prior)[:, None]
        self.log_wealth_of = paths[:, -1] - self.log_prior
        np.maximum(self.largest_log_wealth_of, paths.max(axis=1) - self.log_prior, out=self.largest_log_wealth_of)
        peaks = paths.max(axis=0)  # [N]
        paths -= peaks
        mixture = peaks + np.log(np.exp(paths, out=paths).sum(axis=0))  # [N]
        crossed = mixture >= -np.log(self.alpha)
        if self.tokens_until_rejection is None and crossed.any():
            self.tokens_until_rejection = self.num_tokens + int(np.argmax(crossed)) + 1
        self.log_wealth = float(mixture[-1])
        self.largest_log_wealth = max(self.largest_log_wealth, float(mixture.max()))
        self._extend_curve(mixture)
        self.num_tokens += mixture.size
        if roles is not None:
            one_hot = np.asarray(roles)[None, :] == np.asarray(ROLES)[:, None]  # [R, N]
            self.log_wealth_by_role += one_hot.astype(np.float64) @ log_factors.T

    def _extend_curve(self, mixture: Floats) -> None:
        first = -self.num_tokens % self._stride or self._stride
        self._curve += [
            (self.num_tokens + after, float(mixture[after - 1]))
            for after in range(first, mixture.size + 1, self._stride)
        ]
        while len(self._curve) > MAX_CURVE_POINTS:
            self._curve = self._curve[::2]
            self._stride *= 2
