"""Whether a decoder speculates at all: seen from the target or, where it cannot be seen, told by its record."""

import pytest

from verify.checks.acceptance import judge_speculation
from verify.models.observer import Round
from verify.protocol import AcceptanceRecord, Generation, Request
from verify.results import Verdict
from verify.subject import Observed

REQUEST = Request(prompt_token_ids=(1, 2), max_new_tokens=4)


def answered(*, rounds: list[Round] | None = None, num_spec_steps: int | None = None) -> Observed:
    record = None
    if num_spec_steps is not None:
        record = AcceptanceRecord(
            num_spec_steps=num_spec_steps, num_draft_tokens=4, num_accepted_draft_tokens=2, acceptance_histogram=()
        )
    return Observed(REQUEST, Generation(token_ids=[3, 4, 5, 6], finish_reason="length", record=record), rounds)


@pytest.mark.parametrize(
    ("answer", "verdict", "words"),
    [
        (
            answered(rounds=[Round(0, 2, 2), Round(3, 0, 0)]),
            Verdict.PASS,
            "4 tokens from 2 target forwards: 2.00 tokens a round",
        ),
        (answered(rounds=[Round(place, 1, 0) for place in range(4)]), Verdict.FAIL, "4 tokens from 4 target forwards"),
        (answered(num_spec_steps=2), Verdict.PASS, "by the decoder's own record"),
        (answered(num_spec_steps=4), Verdict.FAIL, "by the decoder's own record"),
        (answered(), Verdict.INCONCLUSIVE, "or return a `record`"),
    ],
)
def test_speculation(answer: Observed, verdict: Verdict, words: str) -> None:
    finding = judge_speculation([answer])
    assert finding.verdict is verdict
    assert words in finding.reason
