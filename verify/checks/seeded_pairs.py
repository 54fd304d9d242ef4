"""Two outputs of one request and one seed: the same, or parted, which rounding explains now and then."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import poisson

from verify.checks.log_audit import Audit
from verify.greedy.controls import first_divergence
from verify.protocol import Request
from verify.results import Evidence, Finding, Verdict
from verify.subject import describe

# So unlikely that rounding made so many seeded outputs part, and it did not: below any share of a budget.
BY_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class SeededPair:
    """Two outputs of `request`, with names; `told` is the beginning of a sentence in which they differ."""

    request: Request
    first: Sequence[int]
    second: Sequence[int]
    names: tuple[str, str]
    told: str


def judge_seeded_pairs(
    pairs: Sequence[SeededPair], *, audit: Audit, noun: str, unit: str, same: str, diagnosis: str
) -> Finding:
    """Outputs of one seed are the same.

    They may be computed in different shapes, so rounding may move a coin in a correct engine. As many that part as the noise of
    `audit` explains prove nothing; it is measured only where some do. `same` is the reason of a pass.
    """
    positions = [first_divergence(pair.first, pair.second) for pair in pairs]
    parted = [(pair, position) for pair, position in zip(pairs, positions, strict=True) if position is not None]
    if not parted:
        return Finding(
            verdict=Verdict.PASS,
            evidence=Evidence.CONTRACT,
            reason=same,
            observations=len(pairs),
            unit=unit,
            smallest_visible=1.0,
            smallest_visible_unit="different token",
        )
    same_tokens = sum(
        len(pair.first) if position is None else position + 1 for pair, position in zip(pairs, positions, strict=True)
    )
    moved = audit.noise.moved_tokens(same_tokens, vocab_size=audit.subject.models.vocab_size)
    explained = float(poisson.sf(len(parted) - 1, moved)) > BY_ROUNDING
    pair, position = parted[0]
    return Finding(
        verdict=Verdict.INCONCLUSIVE if explained else Verdict.FAIL,
        evidence=Evidence.CONTRACT,
        reason=f"{pair.told} differ from output position {position} on, as do {len(parted)} of {len(pairs)} {noun}"
        f"{'; rounding may have moved so many coins' if explained else ''}",
        observations=len(pairs),
        unit=unit,
        diagnosis=diagnosis,
        details={
            "request": describe(pair.request),
            "different": len(parted),
            "moved_by_rounding": moved,
            **dict(zip(pair.names, (list(pair.first), list(pair.second)), strict=True)),
        },
    )
