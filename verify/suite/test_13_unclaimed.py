"""Chapter 13: a feature that is not claimed raises; it is never silently left out."""

from typing import Any

import pytest

from verify.grammar import TokenAutomaton
from verify.intake import admit
from verify.judge import Judge, NotApplicable, check
from verify.models.pairs import Relation, TableSpec
from verify.models.reference import Reference
from verify.protocol import Request
from verify.results import Evidence, Finding, Verdict
from verify.subject import describe
from verify.suite.support import greedy, prompts, request, table_models, table_subject

SPEC = TableSpec(vocab_size=12, relation=Relation.CLOSE, seed=1301)
RECURRENT = TableSpec(vocab_size=24, relation=Relation.CLOSE, seed=1302, num_rows=4096, sharpness=2.0, recurrent=True)
NEEDS: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 2},
    "top_p": {"top_p": 0.5},
    "min_p": {"min_p": 0.3},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "presence_penalty": {"presence_penalty": 1.0},
    "frequency_penalty": {"frequency_penalty": 1.0},
    "logit_bias": {"logit_bias": {1: 5.0}},
    "forbidden_tokens": {"forbidden_token_ids": (1, 2)},
    "allowed_tokens": {"allowed_token_ids": (1, 2)},
    "grammar": {"grammar": TokenAutomaton({0: {1: 1}, 1: {2: 0}})},
    "min_new_tokens": {"min_new_tokens": 4, "stop_token_ids": (0,)},
    "stop_tokens": {"stop_token_ids": (0,)},
    "logprobs": {"logprobs": True},
    "sampled": {},
    "greedy": {},
}


@check(chapter=13, property="unclaimed features raise", evidence=Evidence.CONTRACT)
@pytest.mark.parametrize("name", NEEDS)
def test_raises(judge: Judge, name: str) -> None:
    """A request that needs an unclaimed feature must be refused with an exception."""
    subject = table_subject(judge, SPEC)
    if getattr(subject.capabilities, name):
        raise NotApplicable(f"{name} is claimed, and verified in its own chapter")
    make = greedy if name == "greedy" or not subject.capabilities.sampled else request
    asked: list[Request] = [make((1, 2, 3), max_new_tokens=6, **NEEDS[name])]
    try:
        answers = subject.decoder.generate(asked)
    except Exception as error:
        finding = Finding(
            verdict=Verdict.PASS,
            evidence=Evidence.CONTRACT,
            reason=f"refused: {type(error).__name__}: {error}",
            observations=1,
            unit="requests",
        )
    else:
        finding = Finding(
            verdict=Verdict.FAIL,
            evidence=Evidence.CONTRACT,
            reason=f"{name} is not claimed, yet a request that needs it was answered; raise instead of leaving it out",
            observations=1,
            unit="requests",
            diagnosis="silent downgrade (LOGP): the setting is probably ignored",
            details={"request": describe(asked[0]), "answer": repr(answers)[:400]},
        )
    judge.conclude(finding)


@check(chapter=13, property="unclaimed features raise", evidence=Evidence.CONTRACT)
def test_recurrent_target(judge: Judge) -> None:
    """A target whose state cannot be cropped is refused, when the decoder is built or asked; or it is answered rightly."""
    subject = table_subject(judge, SPEC)
    subject.require("greedy")
    if subject.capabilities.recurrent_targets:
        raise NotApplicable("recurrent_targets is claimed, and verified in chapter 6")
    models = table_models(judge, RECURRENT)
    asked = [greedy(prompt, max_new_tokens=24) for prompt in prompts(judge, 6, vocab_size=RECURRENT.vocab_size)]
    common: dict[str, Any] = {"evidence": Evidence.CONTRACT, "observations": len(asked), "unit": "requests"}
    try:
        decoder = judge.make_decoder(models)
        answers = [decoder.generate([each])[0] for each in asked]
    except Exception as error:
        judge.conclude(Finding(verdict=Verdict.PASS, reason=f"refused: {type(error).__name__}: {error}", **common))
        return
    reference = Reference(models.target)
    for each, answer in zip(asked, admit(asked, answers, vocab_size=RECURRENT.vocab_size), strict=True):
        expected = reference.greedy(each)
        if tuple(answer.token_ids) != expected:
            finding = Finding(
                verdict=Verdict.FAIL,
                reason="a target with a recurrent state is answered wrongly, without a word; raise where it cannot roll back",
                diagnosis="rejected drafts stay in the recurrent state (SSM)",
                details={"request": describe(each), "expected": list(expected), "observed": list(answer.token_ids)},
                **common,
            )
            judge.conclude(finding)
            return
    judge.conclude(
        Finding(verdict=Verdict.PASS, reason="answered rightly; recurrent_targets could be claimed", **common)
    )
