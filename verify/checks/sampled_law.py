"""Sampled law by betting: emitted tokens against the target's law, until decided or out of requests."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from verify.betting.certificates import LeakBounds
from verify.betting.diagnosis import diagnose
from verify.betting.evidence import Floats, TokenEvidence
from verify.betting.hypotheses import scored_pieces
from verify.betting.library import library
from verify.betting.power import Moments
from verify.betting.wealth import Wealth
from verify.coverage import Coverage
from verify.protocol import Request
from verify.results import Evidence, Finding, Verdict
from verify.scoring import joined, score
from verify.subject import Observed, Subject

CERTIFICATE_DELTA = 1e-3
CALLS_BETWEEN_LOOKS = 8
# The moments of whole laws are dear: at most so many numbers of each are looked at.
MAX_MOMENT_ELEMENTS = 2**19
_LN10 = math.log(10)
Select: TypeAlias = Callable[[Observed, TokenEvidence], TokenEvidence | None]
# The error whose visibility a check states: a share of the tokens drawn from the draft, or uniformly without a draft.
STATED_ERRORS = ("draft_leak", "uniform_leak")


def judge_sampled_law(
    subject: Subject,
    answers: Iterable[Sequence[Observed]],
    *,
    alpha: float,
    tolerance: float = 0.0,
    coverage: Coverage,
    required_paths: Sequence[str] = (),
    select: Select = lambda _, evidence: evidence,
) -> Finding:
    """Bet on every token of the answers.

    Args:
        subject: the decoder and its reference.
        answers: taken group by group until rejection; `in_turn` makes them as they are needed.
        alpha: false-alarm probability of this check; halved between two accounts where the standard rule is claimed.
        tolerance: largest difference in log-probability between correct computations of the target, measured.
        coverage: filled here.
        required_paths: labels without which the verdict is inconclusive.
        select: keeps the part of an answer that the check is about; may use earlier tokens and rounds only.

    Guarantees: a lossless decoder fails with probability at most `alpha`, however many tokens are judged.

    """
    informed = subject.capabilities.standard_acceptance
    hypotheses = library()
    wealth = Wealth(hypotheses, alpha=alpha / 2 if informed else alpha, tolerance=tolerance)
    bounds = LeakBounds(hypotheses, delta=CERTIFICATE_DELTA, tolerance=tolerance)
    moments = Moments(
        hypotheses,
        max_contexts=max(64, min(1000, MAX_MOMENT_ELEMENTS // subject.models.vocab_size)),
        visible=STATED_ERRORS,
    )
    trail: list[tuple[int, Floats]] = [(0, wealth.blind.log_wealth_of.copy())]
    for group in answers:
        for evidence in joined(_selected(subject, group, coverage, select)):
            for piece, ratios in scored_pieces(hypotheses, evidence):
                wealth.add(piece, ratios)
                bounds.add(ratios)
            moments.update(evidence)
        trail.append((wealth.num_tokens, wealth.blind.log_wealth_of.copy()))
        if wealth.rejected or (informed and wealth.informed.rejected):
            break
    details: dict[str, Any] = {
        "log10_wealth": wealth.blind.largest_log_wealth / _LN10,
        "tolerance": tolerance,
        "coverage": dict(coverage.counts),
        "leak_upper_bounds": {
            label: {
                "leak": bound.leak,
                "estimated_total_variation": bound.total_variation(moments.mean_distance(label)),
            }
            for label, bound in bounds.bounds().items()
        },
        "certificate_confidence": 1 - CERTIFICATE_DELTA,
        "pictures": [_picture(wealth, trail), coverage.picture("Paths reached")],
    }
    return _conclude(
        wealth,
        _visible(moments, wealth),
        alpha=alpha,
        informed=informed,
        missing=coverage.missing(required_paths),
        details=details,
    )


def _selected(
    subject: Subject, group: Sequence[Observed], coverage: Coverage, select: Select
) -> Iterator[TokenEvidence]:
    """The part of each answer that the check is about; the paths of all of it are counted."""
    for each, evidence in zip(group, score(subject, group), strict=True):
        coverage.add(each.rounds, each.generation.record)
        kept = select(each, evidence)
        if kept is not None and kept.num_tokens:
            yield kept


def in_turn(subject: Subject, requests: Sequence[Request]) -> Iterator[Sequence[Observed]]:
    """Answer the requests in groups, each when it is asked for; every second one seeded, where seeds are claimed."""
    requests = seeded(subject, requests)
    for start in range(0, len(requests), CALLS_BETWEEN_LOOKS):
        subject.judge.progress(start, len(requests), "sampled requests")
        yield subject.generate_each(requests[start : start + CALLS_BETWEEN_LOOKS])


def seeded(subject: Subject, requests: Sequence[Request]) -> Sequence[Request]:
    """The requests, every second one with a seed of its own from the check's seed, where the decoder claims to heed seeds.

    The others are asked as most users ask: what serves them is often another sampler.
    """
    if not subject.capabilities.seeds:
        return requests
    first = subject.judge.seed % 2**31
    return [request if index % 2 else replace(request, seed=first + index) for index, request in enumerate(requests)]


def _conclude(
    wealth: Wealth,
    visible: tuple[str, float] | None,
    *,
    alpha: float,
    informed: bool,
    missing: Sequence[str],
    details: dict[str, Any],
) -> Finding:
    num_tokens = wealth.num_tokens
    common: dict[str, Any] = {
        "evidence": Evidence.BETTING,
        "observations": num_tokens,
        "false_alarm": alpha,
        "smallest_visible": visible[1] if visible else None,
        "smallest_visible_unit": f"TV ({visible[0]})" if visible else "",
        "details": details,
    }
    blind, by_offset = wealth.rejected, informed and wealth.informed.rejected
    if blind or by_offset:
        diagnosis = diagnose(wealth, informed=wealth.informed.num_tokens > 0)
        after = wealth.tokens_until_rejection if blind else wealth.informed.tokens_until_rejection
        details["diagnosis_ranking"] = [list(entry) for entry in diagnosis.ranking]
        if wealth.support_violation is not None:
            violation = wealth.support_violation
            reason = f"token {violation.token_id} was emitted although the target gives it probability 0"
            details["impossible_at"] = violation.index  # among the tokens that were judged
        else:
            account = wealth.blind if blind else wealth.informed
            reason = (
                f"the tokens do not follow the target's law: a bet against it grew to "
                f"10^{account.largest_log_wealth / _LN10:.1f} after {after} tokens (the alarm is at 10^{_threshold(wealth):.1f})"
            )
        return Finding(verdict=Verdict.FAIL, reason=reason, diagnosis=str(diagnosis), **common)
    if missing or not num_tokens:
        what = f"these paths were never reached: {', '.join(missing)}" if missing else "no token could be judged"
        return Finding(
            verdict=Verdict.INCONCLUSIVE, reason=f"nothing wrong in {num_tokens} tokens, but {what}", **common
        )
    if visible is None:
        return Finding(
            verdict=Verdict.INCONCLUSIVE,
            reason=f"nothing wrong in {num_tokens} tokens, but they are too few to see even a whole leak",
            **common,
        )
    return Finding(
        verdict=Verdict.PASS,
        reason=f"{num_tokens} tokens follow the target's law; an error of TV {visible[1]:.2g} ({visible[0]}) would have been "
        "seen with probability 0.95",
        **common,
    )


def _threshold(wealth: Wealth) -> float:
    return -math.log10(wealth.blind.alpha)


def _visible(moments: Moments, wealth: Wealth) -> tuple[str, float] | None:
    """The stated error and the smallest TV at which it would have been rejected with probability 0.95."""
    seen = {
        each.name: each.label for each, count in zip(moments.hypotheses, moments.num_contexts, strict=True) if count
    }
    for name in STATED_ERRORS:
        if name in seen:
            leak = moments.smallest_visible_leak(seen[name], wealth=wealth, num_tokens=wealth.num_tokens)
            return None if leak is None else (name, leak.total_variation)
    return None


def _picture(wealth: Wealth, trail: Sequence[tuple[int, Floats]]) -> dict[str, Any]:
    """Wealth over tokens: the mixture, and of each bug hypothesis its best bettor; the eight highest are drawn."""
    best: dict[str, int] = {}
    final = trail[-1][1]
    for index, bettor in enumerate(wealth.blind.bettors):
        if bettor.name not in best or final[index] > final[best[bettor.name]]:
            best[bettor.name] = index
    drawn = sorted(best, key=lambda name: -final[best[name]])[:8]
    curves = {name: [float(wealths[best[name]]) / _LN10 for _, wealths in trail] for name in drawn}
    mixture = dict(wealth.blind.curve)
    tokens = [count for count, _ in trail]
    known = np.array(list(mixture)), np.array(list(mixture.values()))
    curves["all together"] = [float(value) / _LN10 for value in np.interp(tokens, *known)]
    return {
        "kind": "wealth",
        "title": "Wealth of the bets against the decoder",
        "tokens": tokens,
        "log10_wealth": curves,
        "threshold": _threshold(wealth),
    }
