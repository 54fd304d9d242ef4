"""The gate: whatever breaks the protocol is named with value, rule and remedy."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from verify.intake import Malformed, admit, admit_record
from verify.protocol import Generation, Request

ASKED = Request(prompt_token_ids=(1,), max_new_tokens=4, stop_token_ids=(9,))


def answer(token_ids: Any = (1, 2, 3, 4), finish_reason: str = "length", **more: Any) -> SimpleNamespace:
    return SimpleNamespace(token_ids=token_ids, finish_reason=finish_reason, **more)


def test_valid_answers_pass() -> None:
    roles = ["first", "accepted", "bonus", "recovered"]
    (whole,) = admit([ASKED], [answer(logprobs=[-1, -2, -3, 0], roles=roles)], vocab_size=10)
    assert whole == Generation(
        token_ids=[1, 2, 3, 4],
        finish_reason="length",
        logprobs=[-1.0, -2.0, -3.0, 0.0],
        roles=["first", "accepted", "bonus", "recovered"],
    )
    for ids in (torch.tensor([1, 2, 3, 4]), np.arange(1, 5), (1, 2, 3, 4)):
        assert admit([ASKED], [answer(ids)], vocab_size=10)[0].token_ids == [1, 2, 3, 4]
    (stopped,) = admit([ASKED], [answer([1, 9], "stop")], vocab_size=10)
    assert stopped.finish_reason == "stop"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (None, "it must return a sequence"),
        ([], "0 generations for 1 requests"),
        ([SimpleNamespace(token_ids=[1])], "has no 'finish_reason'"),
        ([answer([1, 2, 3, 10])], "token id 10 is not in the target's vocabulary of 10"),
        ([answer([1, 2, 3, -1])], "token id -1 is not in"),
        ([answer("ab")], "it must be a sequence of integers"),
        ([answer([1, 2.5, 3, 4])], "it must be a sequence of integers"),
        ([answer(torch.tensor([[1, 2, 3, 4]]))], "it must be a sequence of integers"),
        ([answer([1, 2, 3])], "ended too early"),
        ([answer([])], "ended too early"),
        ([answer([1, 2, 3, 4, 5])], "5 tokens emitted where max_new_tokens is 4"),
        ([answer([1, 9, 3, 4], "stop")], "2 tokens follow the stop token 9"),
        ([answer([1, 9], "length")], 'must be "stop"'),
        ([answer([1, 2, 3, 4], "stop")], 'must be "length"'),
        ([answer([1, 2, 3, 4], "eos")], "finish_reason is 'eos'"),
        ([answer(logprobs=[0.0])], "1 logprobs for 4 tokens"),
        ([answer(logprobs=[0.0, 0.0, 0.0, float("nan")])], "a logprob is NaN"),
        ([answer(roles=["accepted"])], "1 roles for 4 tokens"),
        ([answer(roles=["drafted"] * 4)], "role 'drafted' is not one of"),
    ],
)
def test_malformed_answers_are_named(answers: Any, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        admit([ASKED], answers, vocab_size=10)


def record(**changes: Any) -> SimpleNamespace:
    values: dict[str, Any] = {
        "num_spec_steps": 3,
        "num_draft_tokens": 6,
        "num_accepted_draft_tokens": 3,
        "acceptance_histogram": [1, 1, 1],
    }
    return SimpleNamespace(**values | changes)


def test_a_record_keeps_its_identities() -> None:
    assert admit_record(record()).num_accepted_draft_tokens == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_spec_steps": 4}, "sums to 3 but num_spec_steps is 4"),
        ({"num_accepted_draft_tokens": 6}, "stands for 3 accepted tokens"),
        ({"num_draft_tokens": 2}, "accepted cannot exceed drafted"),
        ({"num_draft_tokens": -1}, "negative"),
        ({"accepted_per_step": [1, 2]}, "accepted_per_step has 2 entries"),
    ],
)
def test_a_record_that_does_not_add_up_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Malformed, match=message):
        admit_record(record(**changes))
