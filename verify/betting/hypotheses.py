"""A bug hypothesis: the law that a known mistake would give to the emitted tokens, and what to look at."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from verify.betting.evidence import MAX_PIECE_ELEMENTS, MAX_PIECE_TOKENS, Floats, TokenEvidence
from verify.betting.laws import Law
from verify.betting.rows import Rows

Place: TypeAlias = Literal["draft", "bonus", "any"]

# Shares of the positions at which the mistake is bet to act. A share sees leaks down to about half of itself, so the
# grid is geometric; smaller ones are learned (`verify.betting.shares`). None is 1, so that a single token that a law
# excludes costs a bettor a factor 50 and not its life.
SHARES = (0.02, 0.1, 0.5, 0.98)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """One mistake: `law` is what it makes of an emitted token, at the positions named by `place`.

    `family` is the prefix of the public bug catalog (ACC, QMIS, RES, BON, LOGP, POS, BATCH, VOCAB, LOSSY) or GENERIC.
    Several hypotheses may share a `name` and differ in `variant`; the diagnosis adds them up. `keeps_acceptance`: drafts are
    accepted as often as by the standard rule, so the mistake is behind it.
    """

    name: str
    family: str
    explanation: str
    formula: Law
    place: Place = "draft"
    needs: tuple[str, ...] = ("draft",)
    variant: str = ""
    keeps_acceptance: bool = False
    shares: tuple[float, ...] = SHARES

    @property
    def label(self) -> str:
        """Name with variant, unique in a library."""
        return f"{self.name}[{self.variant}]" if self.variant else self.name

    def applies(self, evidence: TokenEvidence) -> bool:
        """Whether the evidence holds every law that this hypothesis is made of."""
        return all(
            evidence.draft_probs is not None if need == "draft" else need in evidence.alternatives
            for need in self.needs
        )

    def law(self, evidence: TokenEvidence) -> Floats | None:
        """The law of the emitted token under this mistake, [N, V]; None where the evidence lacks what it needs."""
        return self.formula(Rows(evidence, emitted_only=False)) if self.applies(evidence) else None


def emitted_ratios(hypotheses: tuple[Hypothesis, ...], evidence: TokenEvidence) -> Floats:
    """law(x)/target(x) at the emitted tokens, [H, N]; NaN in the rows of hypotheses that do not apply.

    Ratios are clipped to [0, 1e300], which also stands for a token of target probability 0.
    """
    rows = Rows(evidence, emitted_only=True)
    ratios = np.full((len(hypotheses), evidence.num_tokens), np.nan)
    target = np.maximum(rows.target[:, 0], 1e-300)
    for index, hypothesis in enumerate(hypotheses):
        if hypothesis.applies(evidence):
            ratios[index] = hypothesis.formula(rows)[:, 0] / target
    return np.clip(ratios, 0, 1e300, out=ratios)


def scored_pieces(
    hypotheses: tuple[Hypothesis, ...], evidence: TokenEvidence
) -> Iterator[tuple[TokenEvidence, Floats]]:
    """Yield consecutive pieces of the evidence, each with its `emitted_ratios`: one pass for all who judge by them."""
    for piece in evidence.chunks(max(1, min(MAX_PIECE_TOKENS, MAX_PIECE_ELEMENTS // evidence.vocab_size))):
        yield piece, emitted_ratios(hypotheses, piece)
