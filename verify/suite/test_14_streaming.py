"""Chapter 14: streaming gives the same tokens, and a cancelled stream leaves no trace."""

from typing import Any

import pytest

from verify.cases import case
from verify.checks.exact_law import judge_exact_law
from verify.checks.streaming import Streamed, judge_cancellation, judge_stream
from verify.judge import Judge, NotApplicable, check
from verify.models.pairs import Relation, TableSpec
from verify.results import Evidence
from verify.subject import Subject
from verify.suite.support import claimed_of, greedy, prompts, request, scaled, table_subject

SPEC = TableSpec(vocab_size=32, relation=Relation.CLOSE, seed=1401, num_rows=4096, sharpness=2.0)
EXACT = case("streamed", vocab_size=3, num_draft_tokens=2, max_new_tokens=3, temperature=0.6, seed=1402)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 3.0},
    {"presence_penalty": 2.5},
    {"frequency_penalty": 2.5},
    {"logit_bias": dict.fromkeys(range(0, 32, 3), 4.0)},
    {"forbidden_token_ids": tuple(range(0, 32, 2))},
    {"allowed_token_ids": tuple(range(1, 32, 2))},
    {"stop_token_ids": tuple(range(0, 32, 2)), "min_new_tokens": 6},
)


@check(chapter=14, property="streaming = non-streaming", evidence=Evidence.CONTRACT)
@pytest.mark.parametrize("mode", ["greedy", "stop", "seeded"])
def test_stream(judge: Judge, mode: str) -> None:
    """The concatenated chunks are the output of `generate`, with stop tokens and limits inside blocks too."""
    subject = table_subject(judge, SPEC)
    subject.require(
        "streaming", *{"greedy": ["greedy"], "stop": ["greedy", "stop_tokens"], "seeded": ["sampled", "seeds"]}[mode]
    )
    chosen = prompts(judge, scaled(judge, 10), vocab_size=SPEC.vocab_size)
    make = request if mode == "seeded" else greedy
    stops = tuple(range(0, SPEC.vocab_size, 4)) if mode == "stop" else ()
    asked = [
        make(prompt, max_new_tokens=7 + index, seed=index, stop_token_ids=stops) for index, prompt in enumerate(chosen)
    ]
    judge.conclude(judge_stream(subject, asked))


@check(chapter=14, property="streaming = non-streaming", evidence=Evidence.CONTRACT)
def test_settings(judge: Judge) -> None:
    """A stream heeds every setting that is claimed."""
    subject = table_subject(judge, SPEC)
    subject.require("streaming", "greedy")
    settings = claimed_of(subject, SETTINGS, temperature=0.0)
    if not settings:
        raise NotApplicable("not claimed: any processor, min_new_tokens")
    asked = [
        greedy(prompt, max_new_tokens=12, **each)
        for each, prompt in zip(settings, prompts(judge, len(settings), vocab_size=SPEC.vocab_size), strict=True)
    ]
    judge.conclude(judge_stream(subject, asked))


@check(chapter=14, property="streaming = non-streaming", evidence=Evidence.EXACT)
def test_law_of_a_stream(judge: Judge) -> None:
    """The exact law of what is streamed, without a seed and at a temperature of its own."""
    subject = table_subject(judge, EXACT.spec)
    subject.require("streaming")
    subject.require_for(EXACT.requests[0])
    streams = Subject(judge, subject.models, make_decoder=lambda models: Streamed(judge.make_decoder(models)))
    judge.conclude(judge_exact_law(streams, EXACT))


@check(chapter=14, property="cancellation", evidence=Evidence.CONTRACT)
def test_cancellation(judge: Judge) -> None:
    """A stream closed after its first chunk does not change the next request."""
    subject = table_subject(judge, SPEC)
    subject.require("streaming", "greedy")
    asked = [
        greedy(prompt, max_new_tokens=20) for prompt in prompts(judge, scaled(judge, 10), vocab_size=SPEC.vocab_size)
    ]
    judge.conclude(judge_cancellation(subject, asked))
