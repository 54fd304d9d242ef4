"""Reported log-probabilities against the target's, number by number."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from verify.checks.logprobs import judge_logprobs
from verify.protocol import Capabilities, Generation, Request, SamplingParams
from verify.results import Verdict

TOP_1 = Request(
    prompt_token_ids=(0,), max_new_tokens=2, sampling=SamplingParams(temperature=1.0, top_k=1), logprobs=True
)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ((0.0, -torch.inf), Verdict.PASS),  # that the token was impossible is another check's business
        ((0.0, -20.0), Verdict.FAIL),
        ((-torch.inf, -torch.inf), Verdict.FAIL),
        ((0.0, torch.nan), Verdict.FAIL),
        ((1e-6, -torch.inf), Verdict.FAIL),
    ],
)
def test_an_impossible_token_has_a_log_probability_too(said: tuple[float, float], verdict: Verdict) -> None:
    """Under top-k 1 the second token that was emitted has probability 0."""
    rows = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]], dtype=torch.float64)
    subject: Any = SimpleNamespace(
        capabilities=Capabilities(sampled=True, top_k=True, logprobs="processed", arithmetic="float64"),
        reference=SimpleNamespace(logits_of=lambda texts: [rows for _ in texts]),
    )
    answer: Any = SimpleNamespace(
        request=TOP_1, generation=Generation(token_ids=(0, 1), finish_reason="length", logprobs=said)
    )
    assert judge_logprobs(subject, [answer]).verdict is verdict
