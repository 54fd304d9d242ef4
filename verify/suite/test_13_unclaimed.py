"""Chapter 13: a feature that is not claimed raises; it is never silently left out."""

from typing import Any

import pytest

from verify.judge import Judge, NotApplicable, check
from verify.models.pairs import Relation, TableSpec
from verify.protocol import Request
from verify.results import Evidence, Finding, Verdict
from verify.subject import describe
from verify.suite.support import greedy, request, table_subject

SPEC = TableSpec(vocab_size=12, relation=Relation.CLOSE, seed=1301)
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
