"""The bet against a decoder: every bug hypothesis and every learner stakes on the emitted tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from verify.betting.account import Account, Bettor
from verify.betting.evidence import Floats, TokenEvidence, at_tokens
from verify.betting.hypotheses import SHARES, Hypothesis, scored_pieces
from verify.betting.learners import LearnedHypothesis, learned_hypotheses, support_hypothesis
from verify.betting.library import library
from verify.betting.shares import LARGEST_SHARE, LearnedShares

# Learners keep their state for at most this many tokens: often enough to learn, seldom enough to be fast.
LEARNING_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportViolation:
    """An emitted token of target probability 0: `index` counts all tokens seen, from 0."""

    index: int
    token_id: int


class Wealth:
    """An anytime-valid test that emitted tokens follow the reference law.

    Null: each token's conditional law is at most exp(`tolerance`) times `target_probs` at every token, and tokens of
    reference probability 0 have mass at most `support_floor`. Under the null `blind.rejected` ever holds with
    probability at most `alpha`, whenever and however often one looks; with a floor of 0, a token outside the support
    rejects at once.

    Two accounts, each a test of its own at level alpha (spend 2 alpha to gate on both):
    - `blind` knows prefixes and laws, and nothing about rounds: valid against any decoder. A law that acts at some
      positions is staked as (1 - share) target + share law, with shares fixed beforehand and one that is learned.
    - `informed` also knows the offset inside the round and stakes a law only where its mistake could act. Valid where
      the offset depends on earlier tokens and coins only: the standard rule, not block verification. Gate on it only
      where that rule is claimed.

    Source: Ville's inequality; testing by betting, Shafer 2021 (JRSS A 184).
    """

    def __init__(
        self,
        hypotheses: Sequence[Hypothesis] | None = None,
        *,
        alpha: float,
        tolerance: float = 0.0,
        support_floor: float = 0.0,
        learners: Sequence[LearnedHypothesis] | None = None,
    ) -> None:
        if tolerance < 0 or not 0 <= support_floor < 1:
            raise ValueError(
                f"tolerance {tolerance}, support_floor {support_floor}; tolerance >= 0 and 0 <= support_floor < 1; "
                "pass measured numerical noise"
            )
        self.hypotheses = tuple(library() if hypotheses is None else hypotheses)
        learned = tuple(learned_hypotheses() if learners is None else learners)
        self.learned = (*learned, support_hypothesis(support_floor)) if support_floor else learned
        self.tolerance = tolerance
        self.support_floor = support_floor
        self.support_violation: SupportViolation | None = None
        self._states = [each.make() for each in self.learned]
        self._places = np.array([each.place for each in self.hypotheses] + ["any"] * len(self.learned))
        bettors = _bettors(self.hypotheses, self.learned)
        self._hypothesis_of = np.array([bettor.hypothesis for bettor in bettors if not bettor.learned], dtype=np.int64)
        # A bonus law acts at every bonus position once these are known: its largest share becomes that of the others.
        scale = {each.label: max(SHARES) / max(each.shares) for each in self.hypotheses if each.place == "bonus"}
        informed = [
            replace(bettor, share=bettor.share * scale[bettor.label]) if bettor.label in scale else bettor
            for bettor in bettors
        ]
        self.blind = Account(bettors, alpha=alpha)
        self.informed = Account(informed, alpha=alpha)
        self._blind_shares = LearnedShares(len(self.hypotheses))
        self._informed_shares = LearnedShares(len(self.hypotheses))
        self._vocab_size: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens judged so far."""
        return self.blind.num_tokens

    @property
    def rejected(self) -> bool:
        """Whether the tokens alone have rejected: support violation, or blind wealth at 1/alpha."""
        return self.tokens_until_rejection is not None

    @property
    def tokens_until_rejection(self) -> int | None:
        """Number of tokens after which `rejected` became true."""
        seen = [] if self.support_violation is None else [self.support_violation.index + 1]
        if self.blind.tokens_until_rejection is not None:
            seen.append(self.blind.tokens_until_rejection)
        return min(seen, default=None)

    @property
    def log_wealth(self) -> float:
        """Natural logarithm of the blind mixture's present wealth."""
        return self.blind.log_wealth

    def update(self, evidence: TokenEvidence) -> None:
        """Judge N more tokens; after a rejection they still sharpen the diagnosis."""
        for piece, ratios in scored_pieces(self.hypotheses, evidence):
            self.add(piece, ratios)

    def add(self, piece: TokenEvidence, ratios: Floats) -> None:
        """The same for a piece of `scored_pieces` of these hypotheses, with their ratios [H, N]."""
        if self._vocab_size not in (None, piece.vocab_size):
            raise ValueError(
                f"evidence has a vocabulary of {piece.vocab_size} after one of {self._vocab_size}; "
                "a Wealth judges one target; make another"
            )
        self._vocab_size = piece.vocab_size
        outside = at_tokens(piece.target_probs, piece.token_ids) == 0  # [N]
        if outside.any() and not self.support_floor and self.support_violation is None:
            first = int(np.argmax(outside))
            self.support_violation = SupportViolation(
                index=self.num_tokens + first, token_id=int(piece.token_ids[first])
            )
        gains = np.concatenate([ratios, self._learned_ratios(piece)])  # [H, N], learned ones too
        # Outside the support the bet pays 1: with mass <= floor there the mean factor is <= 1 + floor, which the
        # discount below takes back. `outside_support` alone stakes on these tokens.
        ordinary = len(gains) - bool(self.support_floor)
        gains[:ordinary, outside] = 1.0
        gains -= 1
        self.blind.add(self._log_factors(gains, self.blind, self._blind_shares), piece.roles)
        if piece.draft_offsets is not None:
            self._restrict(gains, piece)
            self.informed.add(self._log_factors(gains, self.informed, self._informed_shares), piece.roles)

    def _learned_ratios(self, piece: TokenEvidence) -> Floats:
        ratios = np.full((len(self._states), piece.num_tokens), np.nan)
        for start, part in enumerate(piece.chunks(LEARNING_TOKENS)):
            where = slice(start * LEARNING_TOKENS, start * LEARNING_TOKENS + part.num_tokens)
            for index, state in enumerate(self._states):
                bet = state.ratios(part)
                if bet is not None:
                    ratios[index, where] = bet
                state.learn(part)
        return ratios

    def _restrict(self, gains: Floats, piece: TokenEvidence) -> None:
        """Let a bet stand only where its mistake could act; `gains` [H, N] become NaN elsewhere."""
        offsets = np.full(piece.num_tokens, -1) if piece.draft_offsets is None else piece.draft_offsets
        num_draft_tokens = piece.num_draft_tokens or 0
        acts = {
            "draft": (offsets >= 0) & (offsets < num_draft_tokens),
            "bonus": offsets == num_draft_tokens,
        }
        for place, mask in acts.items():
            gains[np.ix_(self._places == place, ~mask)] = np.nan

    def _log_factors(self, gains: Floats, account: Account, learned: LearnedShares) -> Floats:
        """[H, N] to [B, N]; a bettor that sits out (NaN) pays exactly 1, without the discount for tolerance."""
        num_fixed = self._hypothesis_of.size
        factors = np.empty((len(account.bettors), gains.shape[1]))  # [B, N]
        fixed = np.take(gains, self._hypothesis_of, axis=0, out=factors[:num_fixed], mode="clip")
        fixed *= account.shares[:num_fixed]
        fixed += 1
        factors[num_fixed:] = learned.bet(gains[: len(self.hypotheses)])
        np.log(factors, out=factors)
        factors -= self.tolerance + self.support_floor
        factors[np.isnan(factors)] = 0
        return factors


def _bettors(hypotheses: Sequence[Hypothesis], learned: Sequence[LearnedHypothesis]) -> list[Bettor]:
    """One bettor per fixed share, then one with a learned share for every hypothesis of the library."""

    def bettor(index: int, each: Hypothesis | LearnedHypothesis, share: float, weight: float, learned: bool) -> Bettor:
        # A mistake in the code acts always rather than rarely, unless being rare is what it is about.
        return Bettor(
            hypothesis=index,
            label=each.label,
            name=each.name,
            family=each.family,
            share=share,
            weight=weight if max(each.shares) > 0.5 else 1.0,
            learned=learned,
        )

    everyone: list[Hypothesis | LearnedHypothesis] = [*hypotheses, *learned]
    fixed = [bettor(index, each, share, share, False) for index, each in enumerate(everyone) for share in each.shares]
    return fixed + [bettor(index, each, 0.0, LARGEST_SHARE, True) for index, each in enumerate(hypotheses)]
