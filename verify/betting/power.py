"""How small an error a test would have seen: from moments of the bets over the contexts of a run."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from verify.betting.evidence import MAX_PIECE_ELEMENTS, Floats, TokenEvidence
from verify.betting.hypotheses import Hypothesis
from verify.betting.rows import Rows
from verify.betting.wealth import Wealth

EXPONENT_STEP = 0.1
NUM_EXPONENTS = 7
EXPONENTS = EXPONENT_STEP * np.arange(1, NUM_EXPONENTS + 1)  # [S]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisibleLeak:
    """The smallest share of tokens from a bug's law that is rejected in `num_tokens` with probability >= `power`."""

    label: str
    leak: float
    total_variation: float
    num_tokens: int
    alpha: float
    power: float


class Moments:
    """Streaming moments of the bets on each hypothesis over the contexts of a run; no law is stored.

    A bettor with factor F = 1 + share (law/target - 1) misses with probability P(prod F < threshold), at most
    threshold^s E[F^-s]^n for any s in (0, 1) (Chernoff). Under a leak l the mean is linear in l:
    (1 - l) E_target[F^-s] + l E_law[F^-s]; so the two means per share and exponent s give the smallest visible leak in
    closed form. F^-s is bounded, so tokens of tiny or zero target probability need no care. The bound treats the
    contexts of the run as draws from the contexts of use.

    Dense, thus dear: each hypothesis takes in the first `max_contexts` contexts that hold its laws; spread calls over the
    prompts. The moments are by far the dearest part: `visible` names the hypotheses whose smallest visible leak will be
    asked (None: all).
    """

    def __init__(
        self, hypotheses: Sequence[Hypothesis], *, max_contexts: int = 1000, visible: Collection[str] | None = None
    ) -> None:
        self.hypotheses = tuple(hypotheses)
        self._has_moments = [visible is None or each.name in visible for each in self.hypotheses]  # [H]
        self.max_contexts = max_contexts
        count = len(self.hypotheses)
        # Hypotheses with one law (everything accepted, bonus from the draft, a leak) back each other.
        self._shares = [
            tuple(
                sorted({share for other in self.hypotheses if other.formula is each.formula for share in other.shares})
            )
            for each in self.hypotheses
        ]  # H x [W]
        self.num_contexts = np.zeros(count, dtype=np.int64)  # [H]
        self._distance = np.zeros(count)  # [H]
        self._under_target = [np.zeros((len(shares), NUM_EXPONENTS)) for shares in self._shares]  # H x [W, S]
        self._under_law = [np.zeros((len(shares), NUM_EXPONENTS)) for shares in self._shares]  # H x [W, S]

    def update(self, evidence: TokenEvidence) -> None:
        """Take the contexts of N tokens in; the emitted tokens do not matter."""
        for piece in evidence.chunks(max(1, MAX_PIECE_ELEMENTS // evidence.vocab_size)):
            self._update_piece(piece)

    def _update_piece(self, piece: TokenEvidence) -> None:
        rows = Rows(piece, emitted_only=False)
        for index, hypothesis in enumerate(self.hypotheses):
            taken = min(piece.num_tokens, self.max_contexts - int(self.num_contexts[index]))
            if taken and hypothesis.applies(piece):
                self._add(index, piece.target_probs[:taken], hypothesis.formula(rows)[:taken])
                self.num_contexts[index] += taken

    def _add(self, index: int, target: Floats, law: Floats) -> None:
        self._distance[index] += 0.5 * np.abs(law - target).sum()
        if not self._has_moments[index]:
            return
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            gain = np.where(target > 0, law / target, np.inf) - 1  # [N, V]
        for which, share in enumerate(self._shares[index]):
            step = (1 + share * gain) ** -EXPONENT_STEP
            factor = np.ones_like(step)
            for exponent in range(NUM_EXPONENTS):
                factor *= step
                self._under_target[index][which, exponent] += (target * factor).sum()
                self._under_law[index][which, exponent] += (law * factor).sum()

    def mean_distance(self, label: str) -> float:
        """Mean TV between the target and the law of `label` over the contexts."""
        index = self._index(label)
        return float(self._distance[index] / self.num_contexts[index])

    def smallest_visible_leak(
        self, label: str, *, wealth: Wealth, num_tokens: int, power: float = 0.95
    ) -> VisibleLeak | None:
        """The smallest leak of `label` that `wealth` rejects within `num_tokens` with probability >= `power`.

        Takes alpha, tolerance and the prior weights of the bettors from `wealth`, and counts only the bettors on this
        law, so the true power is higher. None where even a leak of 1 may go unseen. ValueError for a hypothesis that was
        not named `visible`.
        """
        index = self._index(label)
        if not self._has_moments[index]:
            raise ValueError(f"{label!r} has no moments; name it in `visible` of Moments, or leave that out")
        account = wealth.blind
        with np.errstate(divide="ignore"):
            # Log wealth needed by the bettor on each share; inf where nobody bets it, [W, 1].
            threshold = -np.log(account.alpha * self._prior(index, wealth))[:, None]
        discount = np.exp(EXPONENTS * (wealth.tolerance + wealth.support_floor))  # [S]
        under_target = self._under_target[index] / self.num_contexts[index] * discount  # [W, S]
        under_law = self._under_law[index] / self.num_contexts[index] * discount
        needed = np.exp(-(EXPONENTS * threshold - np.log(1 - power)) / num_tokens)  # [W, S]
        with np.errstate(divide="ignore", invalid="ignore"):
            leaks = np.where(under_law < needed, (under_target - needed) / (under_target - under_law), np.inf)
        leak = float(np.min(leaks))
        if not leak <= 1:
            return None
        return VisibleLeak(
            label=label,
            leak=leak,
            total_variation=leak * self.mean_distance(label),
            num_tokens=num_tokens,
            alpha=account.alpha,
            power=power,
        )

    def _prior(self, index: int, wealth: Wealth) -> Floats:
        """Prior weight in `wealth` of this law at each share, [W]."""
        law, shares = self.hypotheses[index], self._shares[index]
        prior = np.zeros(len(shares))
        for bettor, log_prior in zip(wealth.blind.bettors, wealth.blind.log_prior, strict=True):
            if bettor.hypothesis < len(wealth.hypotheses) and bettor.share in shares:
                other = wealth.hypotheses[bettor.hypothesis]
                if other.formula is law.formula or other.label == law.label:
                    prior[shares.index(bettor.share)] += np.exp(log_prior)
        return prior

    def _index(self, label: str) -> int:
        for index, hypothesis in enumerate(self.hypotheses):
            if hypothesis.label == label and self.num_contexts[index]:
                return index
        known = [each.label for each, seen in zip(self.hypotheses, self.num_contexts, strict=True) if seen]
        raise ValueError(f"no contexts seen for {label!r}; it must be one of {known}; call update with its laws first")
