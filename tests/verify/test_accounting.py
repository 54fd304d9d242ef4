"""Whether a first token from prefill is counted is the decoder's choice; nothing else is."""

import pytest

from verify.checks.accounting import judge_record
from verify.models.observer import Round
from verify.protocol import AcceptanceRecord, Generation, Request
from verify.results import Verdict
from verify.subject import Observed

REQUEST = Request(prompt_token_ids=(1, 2), max_new_tokens=4)
PREFILLED = [Round(0, 0, 0), Round(1, 1, 1), Round(3, 0, 0)]
DRAFTED = [Round(0, 1, 1), Round(2, 1, 0), Round(3, 0, 0)]


@pytest.mark.parametrize(
    ("rounds", "num_spec_steps", "verdict"),
    [
        (PREFILLED, 3, Verdict.PASS),
        (PREFILLED, 2, Verdict.PASS),
        (PREFILLED, 1, Verdict.FAIL),
        (DRAFTED, 3, Verdict.PASS),
        (DRAFTED, 2, Verdict.FAIL),
    ],
)
def test_rounds_from_prefill_may_be_left_out(rounds: list[Round], num_spec_steps: int, verdict: Verdict) -> None:
    drafted, accepted = (sum(getattr(each, name) for each in rounds) for name in ("num_draft_tokens", "num_accepted"))
    record = AcceptanceRecord(
        num_spec_steps=num_spec_steps,
        num_draft_tokens=drafted,
        num_accepted_draft_tokens=accepted,
        acceptance_histogram=(),
    )
    answer = Generation(token_ids=[3, 4, 5, 6], finish_reason="length", record=record)
    assert judge_record([Observed(REQUEST, answer, rounds)]).verdict is verdict
