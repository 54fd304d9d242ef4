"""Acceptance: rounds as the target saw them against theory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from verify.betting.evidence import Floats
from verify.coverage import HOW_TO_BE_SEEN
from verify.models.observer import Round
from verify.protocol import Request
from verify.results import Evidence, Finding, Verdict
from verify.scoring import score
from verify.subject import Observed, Subject, describe

# Alternatives to theory that the bet stakes on: acceptance shifted by so much.
SHIFTS = (-0.3, -0.2, -0.1, -0.07, -0.05, -0.03, -0.02, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3)


@dataclass(slots=True)
class _Offset:
    """Trials at one offset of the block: all earlier drafts were accepted."""

    reached: int = 0
    accepted: int = 0
    expected: float = 0.0


def judge_acceptance_rate(
    subject: Subject, answers: Sequence[Observed], *, alpha: float, tolerance: float = 0.0
) -> Finding:
    """Measured conditional acceptance equals 1 - TV(target, draft) at every context that was reached.

    Given the text so far, the next draft token is accepted with probability 1 - TV. A bet on shifted probabilities is a
    non-negative martingale under the standard rule, so P(alarm) <= alpha. Answers to requests without stop tokens.
    `tolerance`: largest change of 1 - TV between correct computations of both models, measured.
    """
    trials: list[tuple[int, float, bool]] = []
    unseen = 0
    for each, evidence in zip(answers, score(subject, answers), strict=True):
        if each.rounds is None or evidence.draft_probs is None:
            unseen += 1
            continue
        overlap = np.minimum(evidence.target_probs, evidence.draft_probs).sum(-1)  # [N]
        for one in whole_rounds(each.rounds, each.request):
            for offset in range(min(one.num_accepted + 1, one.num_draft_tokens)):
                trials.append((offset, float(overlap[one.output_offset + offset]), offset < one.num_accepted))
    if not trials:
        return Finding(
            verdict=Verdict.INCONCLUSIVE,
            evidence=Evidence.BETTING,
            reason=f"no round could be observed from the target ({unseen} of {len(answers)} answers unseen)",
        )
    expected = np.array([theory for _, theory, _ in trials])
    accepted = np.array([outcome for _, _, outcome in trials])
    largest = largest_log_wealth(expected, accepted, tolerance=tolerance)
    offsets: dict[int, _Offset] = {}
    for offset, theory, outcome in trials:
        tally = offsets.setdefault(offset, _Offset())
        tally.reached += 1
        tally.accepted += outcome
        tally.expected += theory
    measured, theory = float(accepted.mean()), float(expected.mean())
    failed = largest >= -math.log(alpha)
    visible = _visible_shift(expected, alpha, tolerance=tolerance)
    passed = Verdict.PASS if visible else Verdict.INCONCLUSIVE
    return Finding(
        verdict=Verdict.FAIL if failed else passed,
        evidence=Evidence.BETTING,
        reason=f"conditional acceptance {measured:.4f} where 1 - TV is {theory:.4f} ({len(trials)} drafts"
        f"{'' if visible else f', too few to see a shift of {max(SHIFTS):g}'})",
        observations=len(trials),
        unit="draft tokens",
        false_alarm=alpha,
        smallest_visible=visible,
        smallest_visible_unit="acceptance rate",
        diagnosis=_diagnosis(measured, theory) if failed else "",
        details={"pictures": [_picture(offsets)], "log10_wealth": largest / math.log(10), "tolerance": tolerance},
    )


def whole_rounds(rounds: Sequence[Round], request: Request) -> list[Round]:
    """The rounds that `max_new_tokens` could not cut, whatever they accept: where they begin decides, not how they end.

    Without the last round, those that accepted much would be missing. ValueError with stop tokens: these cut too.
    """
    if request.stop_token_ids:
        raise ValueError(
            f"stop_token_ids are {request.stop_token_ids}; a stop cuts rounds by what they accept; ask without stop tokens"
        )
    longest = request.num_draft_tokens + 1
    return [one for one in rounds if one.output_offset + longest <= request.max_new_tokens]


def largest_log_wealth(expected: Floats, accepted: npt.NDArray[np.bool_], *, tolerance: float = 0.0) -> float:
    """The largest wealth that the bet on drafts with chances `expected` [N] ever had, in nats; infinite where theory errs."""
    log_wealth = _log_stakes(expected, accepted, tolerance=tolerance).cumsum(1)  # [S, N]
    return float((np.logaddexp.reduce(log_wealth, axis=0) - math.log(len(SHIFTS))).max())


def _shifted(expected: Floats) -> Floats:
    """Acceptance under each alternative, `[S, N]`; never 0 or 1, so that no single draft ruins a bettor."""
    shifted: Floats = np.clip(expected + np.array(SHIFTS)[:, None], 1e-3, 1 - 1e-3)
    return shifted


def _largest_chances(expected: Floats, tolerance: float) -> tuple[Floats, Floats]:
    """The largest chances of acceptance and of rejection, [N] each, where rounding may move either by `tolerance`."""
    return np.minimum(1, expected + tolerance), np.minimum(1, 1 - expected + tolerance)


def _log_stakes(expected: Floats, accepted: npt.NDArray[np.bool_], *, tolerance: float = 0.0) -> Floats:
    """Logarithm of each bettor's factor at each draft, `[S, N]`; infinite where theory excludes the outcome."""
    shifted = _shifted(expected)
    truth = np.where(accepted, *_largest_chances(expected, tolerance))
    with np.errstate(divide="ignore"):
        stakes: Floats = np.log(np.where(accepted, shifted, 1 - shifted)) - np.log(np.where(truth > 1e-12, truth, 0.0))
    return stakes


def _visible_shift(expected: Floats, alpha: float, *, tolerance: float = 0.0) -> float | None:
    """The smallest of `SHIFTS` that is seen with probability 0.95 (normal approximation), in both directions.

    A direction in which chances cannot move by half of it, as upwards where the draft is the target, is none.
    """
    shifted = _shifted(expected)
    likely, unlikely = (np.maximum(each, 1e-9) for each in _largest_chances(expected, tolerance))
    gain, loss = np.log(shifted / likely), np.log((1 - shifted) / unlikely)  # [S, N]
    mean = (shifted * gain + (1 - shifted) * loss).sum(1)
    spread = np.sqrt((shifted * (1 - shifted) * (gain - loss) ** 2).sum(1))
    seen = mean - 1.645 * spread >= math.log(len(SHIFTS) / alpha)
    exists = np.abs(shifted - expected).mean(1) >= np.abs(SHIFTS) / 2
    sizes = {abs(shift) for shift, each in zip(SHIFTS, exists, strict=True) if each}
    sizes -= {abs(shift) for shift, each, there in zip(SHIFTS, seen, exists, strict=True) if there and not each}
    return min(sizes, default=None)


def _diagnosis(measured: float, theory: float) -> str:
    if measured > theory:
        return "too much is accepted: a test too generous, or with probabilities that are not the draft's (ACC, QMIS)"
    return "too little is accepted: draft_probs, positions or the drafter's inputs are wrong (QMIS, HID, PERF)"


def _picture(offsets: dict[int, _Offset]) -> dict[str, Any]:
    positions = sorted(offsets)
    tallies = [offsets[position] for position in positions]
    return {
        "kind": "acceptance",
        "title": "Conditional acceptance by position in the block",
        "definition": "conditional",
        "positions": [position + 1 for position in positions],
        "measured": [tally.accepted / tally.reached for tally in tallies],
        "low": [float(beta.ppf(0.025, t.accepted, t.reached - t.accepted + 1)) if t.accepted else 0.0 for t in tallies],
        "high": [
            float(beta.ppf(0.975, t.accepted + 1, t.reached - t.accepted)) if t.accepted < t.reached else 1.0
            for t in tallies
        ],
        "theory": [tally.expected / tally.reached for tally in tallies],
    }


def judge_all_accepted(answers: Sequence[Observed]) -> Finding:
    """With the target itself as the draft every draft token must be accepted."""
    drafted = accepted = 0
    for each in answers:
        for one in (each.rounds or [])[:-1]:
            drafted += one.num_draft_tokens
            accepted += one.num_accepted
            if one.num_accepted < one.num_draft_tokens:
                return Finding(
                    verdict=Verdict.FAIL,
                    evidence=Evidence.CONTRACT,
                    reason=f"draft = target, but only {one.num_accepted} of {one.num_draft_tokens} drafts were accepted "
                    f"at output position {one.output_offset}",
                    observations=drafted,
                    unit="draft tokens",
                    diagnosis="draft and target compute different laws for the same text: draft cache, positions "
                    "or processors (QMIS, HID, KV)",
                    details={"request": describe(each.request)},
                )
    if not drafted:
        return Finding(
            verdict=Verdict.INCONCLUSIVE,
            evidence=Evidence.CONTRACT,
            reason="no draft token was observed from the target",
        )
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=f"draft = target: all {accepted} draft tokens accepted",
        observations=drafted,
        unit="draft tokens",
        smallest_visible=1.0,
        smallest_visible_unit="rejected draft token",
    )


def judge_speculation(answers: Sequence[Observed]) -> Finding:
    """A decoder that calls the target once per token passes every other check and speculates nothing."""
    counted = [(each, rounds) for each in answers if (rounds := _num_rounds(each))]
    tokens = sum(len(each.generation.token_ids) for each, _ in counted)
    rounds = sum(rounds for _, rounds in counted)
    if not counted:
        return Finding(
            verdict=Verdict.INCONCLUSIVE,
            evidence=Evidence.CONTRACT,
            reason=f"the rounds could not be seen from the target; {HOW_TO_BE_SEEN}",
        )
    told = "" if any(each.rounds or each.num_tree_forwards for each, _ in counted) else ", by the decoder's own record"
    speculates = rounds < tokens
    return Finding(
        verdict=Verdict.PASS if speculates else Verdict.FAIL,
        evidence=Evidence.CONTRACT,
        reason=f"{tokens} tokens from {rounds} target forwards: {tokens / rounds:.2f} tokens a round (the final token counts)"
        f"{told}",
        observations=rounds,
        unit="rounds",
        diagnosis="" if speculates else "nothing is ever accepted, or nothing is drafted (PERF)",
    )


def _num_rounds(answer: Observed) -> int:
    """As the target saw them or, where it was not asked in a way that shows them, as the decoder says."""
    record = answer.generation.record
    return len(answer.rounds or ()) or answer.num_tree_forwards or (record.num_spec_steps if record else 0)
