"""Greedy identity: every emitted token is the target's own arg max given what was emitted before it.

Teacher forcing the emitted tokens proves identity with the target's greedy output by induction, and judges every position
even after a first divergence.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from verify.betting.library import STALE_HISTORIES
from verify.coverage import HOW_TO_BE_SEEN, Coverage
from verify.greedy.controls import divergences_do_not_cluster
from verify.greedy.teacher import Divergence, judge_greedy
from verify.judge import ContractViolation
from verify.models.law import alternative_laws, history_alternatives, processed_logits
from verify.results import Evidence, Finding, Verdict
from verify.scoring import starts
from verify.subject import Observed, Subject, describe

# By name, where it is one of the library's, the family in the catalog and what to look at.
EXPLANATIONS = {
    "acceptance_too_generous": (
        "ACC",
        "the emitted token is the draft's arg max: a draft token was accepted that the target did not choose",
    ),
    "unprocessed": ("LOGP", "the emitted token is the arg max of the unprocessed logits: processors were skipped"),
    "no_history": ("LOGP", "the emitted token ignores the penalties: processors saw no history"),
    "stale_history": (
        "LOGP",
        "the emitted token fits penalties of another history: one of the block's start, or with a token missing or doubled",
    ),
    "previous_row": (
        "POS",
        "the emitted token is the arg max one position earlier: a row of the verified block is shifted",
    ),
    "next_row": ("POS", "the emitted token is the arg max one position later: a row of the verified block is shifted"),
    "bonus_from_draft": ("BON", "the token after full acceptance is the draft's arg max, everywhere else all is well"),
    "bonus_previous_row": (
        "BON",
        "the token after full acceptance is the arg max of the last draft's row, not of its own",
    ),
    "bonus_unprocessed": ("BON", "the token after full acceptance is the arg max of the unprocessed logits"),
    "random": (
        "RNG",
        "the same greedy request gives another output when it is asked again: the stochastic branch runs (ACC, RNG)",
    ),
    "state": (
        "KV",
        "the emitted token fits no row of the target for this text: the cache or the positions are wrong (KV, POS)",
    ),
}
# What a mistake is called that is seen behind full acceptance only.
AT_THE_BONUS = {
    "acceptance_too_generous": "bonus_from_draft",
    "previous_row": "bonus_previous_row",
    "unprocessed": "bonus_unprocessed",
}
# Fewer divergences than these say nothing about where in a round they stand.
ENOUGH_FOR_A_PLACE = 5


def judge_identity(
    subject: Subject,
    answers: Sequence[Observed],
    *,
    floor: float,
    coverage: Coverage,
    required_paths: Sequence[str] = (),
) -> Finding:
    """Judge greedy answers against the target.

    Args:
        subject: the decoder and its reference.
        answers: what it emitted.
        floor: largest difference of a logit between two correct computations of the target, measured; 0 for tables.
        coverage: counters that these answers have filled.
        required_paths: labels without which the verdict is inconclusive.

    """
    rows_of = subject.reference.logits_of([(each.request, each.generation.token_ids) for each in answers])
    positions = near_ties = 0
    largest_gap = 0.0
    found: list[tuple[Observed, Divergence, dict[str, int]]] = []
    departures: list[bool] = []
    after_rejection: list[bool] = []
    for each, rows in zip(answers, rows_of, strict=True):
        token_ids = each.generation.token_ids
        scores = processed_logits(rows, each.request, token_ids)
        judged = judge_greedy(token_ids, scores.cpu().numpy(), floor=floor)
        positions += judged.num_positions
        near_ties += judged.near_ties
        largest_gap = max(largest_gap, judged.largest_gap)
        departs = [False] * judged.num_positions
        for position in (*judged.near_tie_positions, *(divergence.position for divergence in judged.divergences)):
            departs[position] = True
        departures.extend(departs)
        after_rejection.extend(_after_rejections(each))
        if judged.divergences:
            candidates = _candidates(subject, each, rows)
            for divergence in judged.divergences:
                at_position = {name: int(choice[divergence.position]) for name, choice in candidates.items()}
                found.append((each, divergence, at_position))
    details: dict[str, Any] = {
        "near_ties": near_ties,
        "largest_gap": largest_gap,
        "floor": floor,
        "coverage": dict(coverage.counts),
        "pictures": [coverage.picture("Paths reached")],
    }
    if any(departures):
        clustering = divergences_do_not_cluster(departures, after_rejection)
        details["clustering"] = clustering.reason
    common: dict[str, Any] = {
        "evidence": Evidence.GREEDY,
        "observations": positions,
        "smallest_visible": 1.0,
        "smallest_visible_unit": f"wrong token (gap above {2 * floor:.2g})" if floor else "wrong token",
        "details": details,
    }
    if found:
        each, first, _ = found[0]
        details["pictures"].append(
            {
                "kind": "divergences",
                "title": "Where the output left the target, and by how much",
                "positions": [divergence.position for _, divergence, _ in found],
                "gaps": [divergence.gap for _, divergence, _ in found],
                "floor": 2 * floor,
            }
        )
        details["first_divergence"] = {
            "request": describe(each.request),
            "output_position": first.position,
            "emitted": first.emitted,
            "expected": first.argmax,
            "gap": first.gap,
            "output": list(each.generation.token_ids[:64]),
        }
        return Finding(
            verdict=Verdict.FAIL,
            reason=f"{len(found)} of {positions} greedy tokens are not the target's arg max; first at output position "
            f"{first.position}: expected {first.argmax}, emitted {first.emitted} (logit gap {first.gap:.3g}, "
            f"allowed {2 * floor:.2g})",
            diagnosis=_diagnosis(subject, found) + ("" if clustering.holds else f"; {clustering.reason}"),
            **common,
        )
    missing = coverage.missing(required_paths)
    if missing:
        unseen = ""
        if coverage.unseen:
            unseen = (
                f"; the rounds of {coverage.unseen} answers could not be seen: {HOW_TO_BE_SEEN}, or record each step"
            )
        return Finding(
            verdict=Verdict.INCONCLUSIVE,
            reason=f"all {positions} tokens agree, but these paths were never reached: {', '.join(missing)}{unseen}",
            **common,
        )
    note = f", {near_ties} of them near ties (largest gap {largest_gap:.2g})" if near_ties else ""
    return Finding(
        verdict=Verdict.PASS, reason=f"all {positions} greedy tokens are the target's arg max{note}", **common
    )


def _candidates(subject: Subject, each: Observed, rows: Tensor) -> dict[str, Tensor]:
    """What each known kind of mistake would have emitted, `[N]` by name."""
    token_ids = each.generation.token_ids
    choices = {name: law.argmax(-1) for name, law in alternative_laws(rows, each.request, token_ids).items()}
    if each.rounds is not None:
        began = starts(each.rounds, len(token_ids))
        for name, law in history_alternatives(rows, each.request, token_ids, began).items():
            choices[name] = law.argmax(-1)
    num_read = len(each.request.prompt_token_ids) + len(token_ids) - 1
    if subject.capabilities.draft_model and subject.draft_reference.has_room(num_read):
        draft_rows = subject.draft_reference.logits(each.request, token_ids)
        choices["acceptance_too_generous"] = processed_logits(draft_rows, each.request, token_ids).argmax(-1)
    return {name: choice.to(torch.int64).cpu() for name, choice in choices.items()}


def _repeats(subject: Subject, each: Observed) -> bool:
    """Whether the request, asked twice alone, gives the same output; taken to be so where nobody can be asked (a log)."""
    try:
        first, second = (list(subject.generate([each.request])[0].token_ids) for _ in range(2))
    except ContractViolation:
        return True
    return first == second


def _diagnosis(subject: Subject, found: Sequence[tuple[Observed, Divergence, dict[str, int]]]) -> str:
    """The mistake that explains most divergences, with its share; where none explains half of them, chance or the state."""
    votes = Counter(name for _, divergence, choice in found for name in choice if choice[name] == divergence.emitted)
    name, count = votes.most_common(1)[0] if votes else ("state", 0)
    if count < len(found) / 2:
        name, count = ("state" if _repeats(subject, found[0][0]) else "random"), len(found) - count
    elif len(found) >= ENOUGH_FOR_A_PLACE and all(
        _is_bonus(each, divergence.position) for each, divergence, _ in found
    ):
        name = AT_THE_BONUS.get(name, name)
    name = "stale_history" if name in STALE_HISTORIES else name
    family, explanation = EXPLANATIONS[name]
    return f"{name} ({family}; explains {count} of {len(found)}): {explanation}"


def _is_bonus(each: Observed, position: int) -> bool:
    """Whether an output position came after the full acceptance of at least one draft."""
    return any(
        one.num_draft_tokens
        and position == one.output_offset + one.num_accepted == one.output_offset + one.num_draft_tokens
        for one in each.rounds or ()
    )


def _after_rejections(each: Observed) -> list[bool]:
    """For each output position, whether the round before its own rejected a draft."""
    marks = [False] * len(each.generation.token_ids)
    for earlier, later in pairwise(each.rounds or []):
        if earlier.num_accepted < earlier.num_draft_tokens:
            end = min(later.output_offset + later.num_emitted, len(marks))
            marks[later.output_offset : end] = [True] * (end - later.output_offset)
    return marks
