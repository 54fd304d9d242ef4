"""Log-probabilities: what a decoder reports is the target's law at the emitted position."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from verify.models.law import next_token_laws
from verify.protocol import SamplingParams
from verify.results import Evidence, Finding, Verdict
from verify.subject import Observed, Subject, describe

# A log-probability computed in float32 from exact logits carries a few units of the last place of the logits.
ARITHMETIC = {"float64": 1e-9, "float32": 2e-5}


def judge_logprobs(subject: Subject, answers: Sequence[Observed], *, tolerance: float = 0.0) -> Finding:
    """Every reported log-probability against the reference; `tolerance` is the measured noise of the target."""
    allowed = ARITHMETIC[subject.capabilities.arithmetic] + tolerance
    checked = 0
    worst = 0.0
    rows_of = subject.reference.logits_of([(each.request, each.generation.token_ids) for each in answers])
    for each, rows in zip(answers, rows_of, strict=True):
        if each.generation.logprobs is None:
            return _fail("logprobs were requested and are claimed, but absent", each, checked)
        token_ids = list(each.generation.token_ids)
        expected = true_logprobs(rows, each, of=subject.capabilities.logprobs).tolist()
        for position, (said, truth) in enumerate(zip(each.generation.logprobs, expected, strict=True)):
            checked += 1
            difference = 0.0 if said == truth else abs(said - truth)  # both may be -inf, whose difference is NaN
            worst = max(worst, difference)
            if not difference <= allowed:
                return _fail(
                    f"logprob of token {token_ids[position]} at output position {position} is {said:.6f}, expected {truth:.6f} "
                    f"(allowed difference {allowed:.1e})",
                    each,
                    checked,
                )
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=f"{checked} logprobs are the target's; largest difference {worst:.1e}",
        observations=checked,
        smallest_visible=allowed,
        smallest_visible_unit="nats",
    )


def true_logprobs(rows: Tensor, answer: Observed, *, of: str) -> Tensor:
    """What should be reported of each emitted token, `[N]` float64.

    `rows` `[N, V]` are the target's logits; `of` is "raw" or "processed", as `Capabilities.logprobs`.
    """
    request, token_ids = answer.request, list(answer.generation.token_ids)
    if of == "raw":
        request = replace(request, sampling=SamplingParams(), min_new_tokens=0)
    elif request.sampling.greedy:  # the arg max has no temperature: the processed logits as they are
        request = replace(request, sampling=replace(request.sampling, temperature=1.0))
    return next_token_laws(rows, request, token_ids)[torch.arange(len(token_ids)), token_ids].log()


def _fail(reason: str, each: Observed, checked: int) -> Finding:
    return Finding(
        verdict=Verdict.FAIL,
        evidence=Evidence.CONTRACT,
        reason=reason,
        observations=checked,
        diagnosis="logprobs come from another row, from before or after the processors, or are placeholders (LPROB)",
        details={"request": describe(each.request), "token_ids": list(each.generation.token_ids)},
    )
