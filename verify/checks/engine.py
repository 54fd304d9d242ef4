"""An engine's answers where no law is asked: that they came, that seeds mean what is claimed, how exact its arithmetic is."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from verify.checks.log_audit import Audit, drafted_and_accepted, request_key
from verify.checks.log_contract import drafts_of, speculation_shown
from verify.checks.logprobs import true_logprobs
from verify.checks.seeded_pairs import SeededPair, judge_seeded_pairs
from verify.engines.campaign import Answers
from verify.greedy.noise import NoiseFloor
from verify.judge import NotApplicable
from verify.results import Evidence, Finding, Verdict
from verify.subject import describe

SHOWN = 5
# Without speculation, an engine whose log-probabilities are further from the target's than this runs another model.
OTHER_MODEL_NATS = 0.25


def judge_answered(answers: Sequence[Answers]) -> Finding:
    """Every request was answered; else an error, which no run passes with. What was answered is judged all the same."""
    answered = sum(len(each.generations) for each in answers)
    failures = [(each.group.name, failure) for each in answers for failure in each.failures.values()]
    details = {
        "answered": {each.group.name: len(each.generations) for each in answers},
        "failures": dict(Counter(f"{name}: {failure.kind}" for name, failure in failures)),
        "no_control": sorted({each.no_control for each in answers if each.no_control}),
    }
    if failures or not answered:
        reasons = Counter(f"{failure.kind}: {failure.message}" for _, failure in failures)
        told = "; ".join(f"{reason} ({count} times)" for reason, count in reasons.most_common(SHOWN))
        return Finding(
            verdict=Verdict.ERROR,
            evidence=Evidence.CONTRACT,
            reason=f"{len(failures)} of {answered + len(failures)} requests have no answer: {told}",
            observations=answered,
            unit="requests",
            details=details,
        )
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=f"{answered} requests answered",
        observations=answered,
        unit="requests",
        smallest_visible=1.0,
        smallest_visible_unit="lost request",
        details=details,
    )


def judge_speculates(answers: Sequence[Answers]) -> Finding:
    """The engine's own counts show accepted and rejected drafts, in greedy and in sampled answers."""
    signs: dict[str, list[tuple[int, int]]] = {}
    for each in answers:
        for index, generation in each.generations.items():
            kind = "greedy" if each.group.requests[index].sampling.greedy else "sampled"
            signs.setdefault(kind, []).append(drafts_of(drafted_and_accepted(generation.record), generation.roles))
    return speculation_shown(signs)


def judge_control(answers: Sequence[Answers]) -> Finding:
    """Answers to requests without speculation report no drafts."""
    told = [
        (each.group.name, each.group.requests[index], drafts_of(counts, generation.roles))
        for each in answers
        for index, generation in each.generations.items()
        if (counts := drafted_and_accepted(generation.record)) is not None or generation.roles is not None
    ]
    if not told:
        raise NotApplicable("no answer without speculation tells how many drafts it took")
    drafted = [
        (name, request, accepted + rejected) for name, request, (accepted, rejected) in told if accepted + rejected
    ]
    if drafted:
        name, request, count = drafted[0]
        return Finding(
            verdict=Verdict.FAIL,
            evidence=Evidence.CONTRACT,
            reason=f"{len(drafted)} of {len(told)} answers without speculation report drafts, "
            f"{count} of them the first, in {name!r}",
            observations=len(told),
            unit="answers",
            diagnosis="the engine speculates although it is asked not to (`speculative` False): nothing of this run is a control",
            details={"request": describe(request)},
        )
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=f"{len(told)} answers without speculation report no draft",
        observations=len(told),
        unit="answers",
        smallest_visible=1.0,
        smallest_visible_unit="draft",
    )


def judge_same_outputs(first: Answers, second: Answers, *, audit: Audit, claim: str, diagnosis: str) -> Finding:
    """The same requests with the same seeds gave the same outputs in both groups."""
    for each in (first, second):
        if each.no_control:
            raise NotApplicable(each.no_control)
    by_request = {
        request_key(second.group.requests[index]): generation for index, generation in second.generations.items()
    }
    pairs = []
    for index, ours in first.generations.items():
        request = first.group.requests[index]
        theirs = by_request.get(request_key(request))
        if theirs is not None:
            names = first.group.name, second.group.name
            told = f"{claim}: with seed {request.seed} the outputs of {names[0]!r} and {names[1]!r}"
            pairs.append(SeededPair(request, ours.token_ids, theirs.token_ids, names=names, told=told))
    if not pairs:
        raise NotApplicable("no request was answered in both groups")
    return judge_seeded_pairs(
        pairs,
        audit=audit,
        noun="outputs",
        unit="seeded outputs",
        same=f"{claim}: {len(pairs)} seeded outputs are the same",
        diagnosis=diagnosis,
    )


def engine_noise(audit: Audit) -> NoiseFloor:
    """The target's own noise floor, widened by how far the engine's plain log-probabilities lie from the target's.

    `audit` holds answers without speculation. They widen the floor up to `OTHER_MODEL_NATS`; beyond, it is another model, and the
    floor stays: whatever makes it differ is to be seen, not allowed.
    """
    floor = audit.noise
    worst = 0.0
    lines = [each for each in audit.lines if each.answer.generation.logprobs is not None]
    rows_of = audit.subject.reference.logits_of([(each.request, each.token_ids) for each in lines])
    for each, rows in zip(lines, rows_of, strict=True):
        truth = true_logprobs(rows, each.answer, of=audit.subject.capabilities.logprobs)
        said = torch.tensor(each.answer.generation.logprobs, dtype=torch.float64, device=truth.device)
        worst = max(worst, float((said - truth).abs().max()))
    if not worst <= OTHER_MODEL_NATS:
        return floor
    return replace(
        floor,
        max_logprob_difference=max(floor.max_logprob_difference, worst),
        max_logit_difference=max(floor.max_logit_difference, worst),
        max_total_variation=max(floor.max_total_variation, math.expm1(worst) / 2 if lines else 0.0),
        forms=(*floor.forms, "the engine without speculation") if lines else floor.forms,
    )
