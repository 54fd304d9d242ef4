"""Chapter 14: streaming gives the same tokens, and a cancelled stream leaves no trace."""

import pytest

from verify.checks.streaming import judge_cancellation, judge_stream
from verify.judge import Judge, check
from verify.models.pairs import Relation, TableSpec
from verify.results import Evidence
from verify.suite.support import greedy, prompts, request, scaled, table_subject

SPEC = TableSpec(vocab_size=32, relation=Relation.CLOSE, seed=1401, num_rows=4096, sharpness=2.0)


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


@check(chapter=14, property="cancellation", evidence=Evidence.CONTRACT)
def test_cancellation(judge: Judge) -> None:
    """A stream closed after its first chunk does not change the next request."""
    subject = table_subject(judge, SPEC)
    subject.require("streaming", "greedy")
    asked = [
        greedy(prompt, max_new_tokens=20) for prompt in prompts(judge, scaled(judge, 10), vocab_size=SPEC.vocab_size)
    ]
    judge.conclude(judge_cancellation(subject, asked))
