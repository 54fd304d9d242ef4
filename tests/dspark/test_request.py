"""Every request that cannot be answered is refused before the first forward, with value, rule and remedy."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedModel

from dspark import Request, SamplingParams, SpeculativeDecoder
from dspark.record import AcceptanceRecord
from dspark.request import validate

GOOD: dict[str, Any] = {"prompt_token_ids": (1, 2), "max_new_tokens": 5}
BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt_token_ids": ()}, "prompt_token_ids is empty"),
    ({"prompt_token_ids": (1, 10)}, "prompt_token_ids contains 10"),
    ({"prompt_token_ids": (-1,)}, "prompt_token_ids contains -1"),
    ({"prompt_token_ids": (1.0,)}, "prompt_token_ids contains 1.0"),
    ({"stop_token_ids": (10,)}, "stop_token_ids contains 10"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"min_new_tokens": -1}, "min_new_tokens is -1"),
    ({"min_new_tokens": 6}, "min_new_tokens is 6 and max_new_tokens 5"),
    ({"num_draft_tokens": -1}, "num_draft_tokens is -1"),
    ({"seed": -1}, "seed is -1"),
    ({"max_new_tokens": 19}, r"prompt \(2\) \+ max_new_tokens \(19\) is 21 tokens"),
]
BAD_SAMPLING: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.1}, "temperature is -0.1"),
    ({"temperature": 1e-9}, "temperature is 1e-09"),
    ({"temperature": math.nan}, "temperature is nan"),
    ({"top_k": -1}, "top_k is -1"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"top_p": 1.1}, "top_p is 1.1"),
    ({"min_p": -0.1}, "min_p is -0.1"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ({"presence_penalty": math.inf}, "presence_penalty is inf"),
    ({"frequency_penalty": math.nan}, "frequency_penalty is nan"),
    ({"logit_bias": {10: 1.0}}, "logit_bias contains 10"),
    ({"logit_bias": {1: math.inf}}, r"logit_bias\[1\] is inf"),
    ({"forbidden_token_ids": (10,)}, "forbidden_token_ids contains 10"),
    ({"allowed_token_ids": (10,)}, "allowed_token_ids contains 10"),
    ({"allowed_token_ids": ()}, "every token is banned"),
    ({"allowed_token_ids": (1,), "forbidden_token_ids": (1,)}, "every token is banned"),
    ({"allowed_token_ids": (1,), "logit_bias": {1: -math.inf}}, "every token is banned"),
    ({"forbidden_token_ids": tuple(range(10))}, "every token is banned"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_REQUESTS)
def test_bad_request(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(Request(**{**GOOD, **changes}), vocab_size=10, max_positions=20)


@pytest.mark.parametrize(("changes", "message"), BAD_SAMPLING)
def test_bad_sampling(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(Request(**GOOD, sampling=SamplingParams(**changes)), vocab_size=10, max_positions=20)


def test_minimum_length_with_nothing_but_stop_tokens() -> None:
    asked = Request(**GOOD, min_new_tokens=1, stop_token_ids=(1,), sampling=SamplingParams(allowed_token_ids=(1,)))
    with pytest.raises(ValueError, match="every token is banned"):
        validate(asked, vocab_size=10, max_positions=None)


def test_good_requests() -> None:
    validate(Request(**GOOD), vocab_size=10, max_positions=7)
    sampling = SamplingParams(temperature=0.0, top_p=1.0, logit_bias={1: -math.inf}, allowed_token_ids=(0, 1))
    validate(Request(**GOOD, sampling=sampling), vocab_size=10, max_positions=None)


def test_the_decoder_refuses_before_it_starts(tiny: Callable[..., PreTrainedModel]) -> None:
    decoder = SpeculativeDecoder(tiny("llama"))
    with pytest.raises(ValueError, match="is empty"):
        decoder.generate([Request(**GOOD), Request(prompt_token_ids=(), max_new_tokens=1)])
    with pytest.raises(ValueError, match="is empty"):
        decoder.stream(Request(prompt_token_ids=(), max_new_tokens=1))  # at the call, not at the first chunk


def test_record_by_hand() -> None:
    record = AcceptanceRecord.of(drafted_per_step=[3, 3, 2, 0], accepted_per_step=[3, 1, 0, 0])
    assert (record.num_spec_steps, record.num_draft_tokens, record.num_accepted_draft_tokens) == (4, 8, 4)
    assert record.acceptance_histogram == (2, 1, 0, 1)
    assert record.mean_acceptance_length == 2.0
    assert record.draft_acceptance_rate == 0.5
    assert AcceptanceRecord.of(drafted_per_step=[], accepted_per_step=[]).mean_acceptance_length == 0
