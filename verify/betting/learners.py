"""Bettors that know no bug and learn from the tokens that they have already seen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from verify.betting.evidence import Floats, TokenEvidence, at_tokens


class Learner(Protocol):
    """A bettor with a state that depends on past tokens only."""

    def ratios(self, evidence: TokenEvidence) -> Floats | None:
        """law(x)/target(x) at the emitted tokens under the present state, [N]; None where it cannot bet."""

    def learn(self, evidence: TokenEvidence) -> None:
        """Take these tokens into the state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedHypothesis:
    """A learner with its name and explanation; `make` gives a fresh one."""

    name: str
    explanation: str
    make: Callable[[], Learner]
    family: str = "LEARNED"
    shares: tuple[float, ...] = (0.5, 0.98)

    @property
    def label(self) -> str:
        """The name; learners have no variants."""
        return self.name


class TokenTilt:
    """Bets target(v) w(v), normalised, with w(v) = (seen(v) + shrinkage) / (expected(v) + shrinkage) over the past.

    Sees tokens that come too often or too seldom over all contexts: a lost id, an end token that is suppressed.
    """

    def __init__(self, *, shrinkage: float = 20.0) -> None:
        self._shrinkage = shrinkage
        self._seen: Floats | None = None  # [V]
        self._expected: Floats | None = None  # [V]

    def ratios(self, evidence: TokenEvidence) -> Floats:
        """See `Learner`."""
        if self._seen is None or self._expected is None:
            return np.ones(evidence.num_tokens)
        weights = (self._seen + self._shrinkage) / (self._expected + self._shrinkage)  # [V]
        ratios: Floats = weights[evidence.token_ids] / (evidence.target_probs @ weights)
        return ratios

    def learn(self, evidence: TokenEvidence) -> None:
        """See `Learner`."""
        seen = np.bincount(evidence.token_ids, minlength=evidence.vocab_size).astype(np.float64)
        expected = evidence.target_probs.sum(axis=0)
        self._seen = seen if self._seen is None else self._seen + seen
        self._expected = expected if self._expected is None else self._expected + expected


class FeatureTilt:
    """Bets target(v) exp(s f(v)), normalised; s is learned by one Newton step from 0 on the past log-likelihood.

    `feature` maps the evidence to f [N, V], or to None where it cannot be computed.
    """

    def __init__(self, feature: Callable[[TokenEvidence], Floats | None], *, prior_information: float = 10.0) -> None:
        self._feature = feature
        self._score = 0.0
        self._information = prior_information

    def ratios(self, evidence: TokenEvidence) -> Floats | None:
        """See `Learner`."""
        feature = self._feature(evidence)
        if feature is None:
            return None
        slope = float(np.clip(self._score / self._information, -2, 2))
        tilt = np.exp(slope * feature)  # [N, V]
        ratios: Floats = at_tokens(tilt, evidence.token_ids) / (evidence.target_probs * tilt).sum(axis=1)
        return ratios

    def learn(self, evidence: TokenEvidence) -> None:
        """See `Learner`."""
        feature = self._feature(evidence)
        if feature is None:
            return
        mean = (evidence.target_probs * feature).sum(axis=1)
        self._score += float((at_tokens(feature, evidence.token_ids) - mean).sum())
        self._information += float(((evidence.target_probs * feature**2).sum(axis=1) - mean**2).sum())


class SupportWatch:
    """Bets that tokens of reference probability 0 come more often than the allowed `floor` per position."""

    def __init__(self, floor: float) -> None:
        self._floor = floor
        self._share = min(0.5, 10 * floor)

    def ratios(self, evidence: TokenEvidence) -> Floats:
        """See `Learner`; outside the support share/floor, whose mean is at most `share` while the floor holds."""
        return np.where(
            at_tokens(evidence.target_probs, evidence.token_ids) == 0, self._share / self._floor, 1 - self._share
        )

    def learn(self, evidence: TokenEvidence) -> None:
        """Nothing to learn."""


def _log_target(evidence: TokenEvidence) -> Floats:
    return np.log(np.maximum(evidence.target_probs, 1e-9))


def _log_draft_over_target(evidence: TokenEvidence) -> Floats | None:
    if evidence.draft_probs is None:
        return None
    ratio = np.maximum(evidence.draft_probs, 1e-12) / np.maximum(evidence.target_probs, 1e-12)
    return np.clip(np.log(ratio), -3, 3)


def learned_hypotheses() -> tuple[LearnedHypothesis, ...]:
    """Every learning bettor of the suite, in a fixed order."""
    return (
        LearnedHypothesis(
            name="learned_tokens",
            explanation="Some tokens come too often or too seldom over all contexts; look at special ids.",
            make=TokenTilt,
        ),
        LearnedHypothesis(
            name="learned_sharpness",
            explanation="The law is a power of the target's; look at the temperature.",
            make=lambda: FeatureTilt(_log_target),
        ),
        LearnedHypothesis(
            name="learned_draft_pull",
            explanation="Tokens lean towards or away from the draft; look at the acceptance test.",
            make=lambda: FeatureTilt(_log_draft_over_target),
        ),
    )


def support_hypothesis(floor: float) -> LearnedHypothesis:
    """The bettor on the rate of tokens outside the reference support, for a floor above 0."""
    return LearnedHypothesis(
        name="outside_support",
        family="SUPPORT",
        explanation="Tokens of target probability 0 exceed the allowed rate; look at truncation and masks.",
        make=lambda: SupportWatch(floor),
        shares=(0.98,),
    )
