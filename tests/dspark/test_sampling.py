"""Processors against transformers' own, with the true history of every row inside a block."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dspark.request import Request, SamplingParams
from dspark.sampling import Processors, one_hot_of_best
from verify.models.law import next_token_laws
from verify.protocol import Request as SuiteRequest
from verify.protocol import SamplingParams as SuiteSampling

V, K = 17, 4
PROMPT, OUTPUT, DRAFTS = (3, 5, 5, 2), (7, 3, 7), (7, 9, 0, 9)


def logits(rows: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(rows, K + 1, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2).to(dtype)


def request(*, min_new_tokens: int = 0, stop: tuple[int, ...] = (), **settings: Any) -> Request:
    return Request(
        prompt_token_ids=PROMPT,
        max_new_tokens=20,
        min_new_tokens=min_new_tokens,
        stop_token_ids=stop,
        sampling=SamplingParams(**settings),
    )


def laws(requests: list[Request], scores: Tensor) -> Tensor:
    """The rows of a block after PROMPT + OUTPUT, with DRAFTS drafted."""
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    processors = Processors(requests, vocab_size=V, device=torch.device("cpu"), dtype=dtype)
    history = processors.history([[*each.prompt_token_ids, *OUTPUT] for each in requests])
    return processors.probs(scores, history, torch.tensor([DRAFTS] * len(requests)))


def text(row: int) -> Tensor:
    return torch.tensor([[*PROMPT, *OUTPUT, *DRAFTS[:row]]])


def by_rows(processor: Any) -> Tensor:
    scores = logits()[0]
    return torch.cat([processor(text(row), scores[row : row + 1].clone()) for row in range(K + 1)]).softmax(-1)


COUNTERPARTS = {
    "temperature": ({"temperature": 0.6}, TemperatureLogitsWarper(0.6)),
    "top_k": ({"top_k": 4}, TopKLogitsWarper(4)),
    "top_p": ({"top_p": 0.7}, TopPLogitsWarper(0.7)),
    "min_p": ({"min_p": 0.2}, MinPLogitsWarper(0.2)),
    "repetition_penalty": ({"repetition_penalty": 1.7}, RepetitionPenaltyLogitsProcessor(1.7)),
    "forbidden": ({"forbidden_token_ids": (0, 7)}, SuppressTokensLogitsProcessor([0, 7])),
    "min_new_tokens": (
        {"min_new_tokens": 5, "stop": (9, 0)},
        MinNewTokensLengthLogitsProcessor(len(PROMPT), 5, [9, 0]),
    ),
}


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_same_law_as_transformers(name: str) -> None:
    settings, processor = COUNTERPARTS[name]
    assert torch.allclose(laws([request(**settings)], logits())[0], by_rows(processor), atol=1e-14)


def test_min_new_tokens_ends_inside_the_block() -> None:
    law = laws([request(min_new_tokens=5, stop=(9,))], logits())[0]
    assert (law[:, 9] > 0).tolist() == [False, False, True, True, True]  # three tokens are out already


@pytest.mark.parametrize("setting", ["presence_penalty", "frequency_penalty"])
def test_output_penalties_by_hand(setting: str) -> None:
    expected = logits()[0].clone()
    for row in range(K + 1):
        output = [*OUTPUT, *DRAFTS[:row]]
        for token in set(output):
            expected[row, token] -= 0.8 * (1 if setting == "presence_penalty" else output.count(token))
    assert torch.allclose(laws([request(**{setting: 0.8})], logits())[0], expected.softmax(-1), atol=1e-14)


EVERYTHING = {
    "temperature": 0.8,
    "top_k": 9,
    "top_p": 0.9,
    "min_p": 0.02,
    "repetition_penalty": 1.3,
    "presence_penalty": 0.4,
    "frequency_penalty": 0.3,
    "logit_bias": {7: 1.5, 9: -0.5},
    "forbidden_token_ids": (1,),
    "allowed_token_ids": (0, 1, 2, 3, 5, 7, 9, 11, 12),
}
ASSORTED = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 5.0},
    EVERYTHING,
    {"top_p": 0.5},
    {"top_k": 1},
    {"frequency_penalty": -0.7},
    {"logit_bias": {0: 3.0}},
]


def suite_law(settings: dict[str, Any]) -> Tensor:
    """The suite's slow reference, written from the definitions alone."""
    asked = SuiteRequest(
        prompt_token_ids=PROMPT,
        max_new_tokens=20,
        min_new_tokens=5,
        stop_token_ids=(9,),
        sampling=SuiteSampling(**settings),
    )
    padded = torch.cat([torch.zeros(len(OUTPUT), V, dtype=torch.float64), logits()[0]])
    return next_token_laws(padded, asked, [*OUTPUT, *DRAFTS])[len(OUTPUT) :]


@pytest.mark.parametrize("settings", ASSORTED, ids=str)
def test_same_law_as_the_suite(settings: dict[str, Any]) -> None:
    computed = laws([request(min_new_tokens=5, stop=(9,), **settings)], logits())[0]
    assert torch.allclose(computed, suite_law(settings), atol=1e-14)


def test_stale_history_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Processors, "_draft_counts", lambda self, ids, start, rows: torch.zeros(1, rows, V, dtype=torch.float64)
    )
    for setting in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        computed = laws([request(min_new_tokens=5, stop=(9,), **{setting: 1.5})], logits())[0]
        assert torch.allclose(computed[0], suite_law({setting: 1.5})[0])
        # Row 2 stands after the drafts 7, which is in the text already, and 9, which is not.
        assert not torch.allclose(computed[2], suite_law({setting: 1.5})[2], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_are_the_same_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    requests = [request(**settings) for settings in ASSORTED]
    scores = logits(len(requests), dtype)
    together = laws(requests, scores)
    for row, each in enumerate(requests):
        assert torch.equal(together[row], laws([each], scores[row : row + 1])[0])
    assert together.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_draft_steps_see_the_rows_of_the_block() -> None:
    requests = [request(**EVERYTHING), request(min_new_tokens=5, stop=(9,), presence_penalty=1.0)]
    scores = logits(2)
    whole = laws(requests, scores)
    processors = Processors(requests, vocab_size=V, device=torch.device("cpu"), dtype=torch.float64)
    history = processors.history([[*PROMPT, *OUTPUT]] * 2)
    for step in range(K + 1):
        # What stands after the drafts so far is not known yet and must not matter.
        drafts = torch.tensor([[*DRAFTS[:step], *[0] * (K - step)]] * 2)
        law = processors.probs(scores[:, step : step + 1], history, drafts, start=step)
        assert torch.equal(law[:, 0], whole[:, step])


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    scores = torch.zeros(1, 1, V, dtype=torch.float64)
    scores[0, 0, [4, 6, 11]] = 1.0
    assert one_hot_of_best(scores)[0, 0].nonzero().flatten().tolist() == [4]


def test_ties_at_the_last_place_of_top_k_stay() -> None:
    scores = torch.zeros(1, K + 1, V, dtype=torch.float64)
    scores[..., 2] = 1.0
    assert (laws([request(top_k=2)], scores)[0] > 0).all()


def test_top_p_of_one_drops_nothing_in_a_batch_that_uses_it() -> None:
    # In float32 the cumulative sum reaches 1 before the tail: a bound of 1 would cut it.
    scores = torch.full((2, K + 1, V), -40.0)
    scores[..., 0] = 0.0
    assert (laws([request(), request(top_p=0.5)], scores)[0] > 0).all()


@pytest.mark.parametrize("settings", ASSORTED, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_logits_give_a_nan_law(settings: dict[str, Any], value: float) -> None:
    scores = logits()
    scores[0, 1, 5] = value
    law = laws([request(**settings)], scores)[0]
    assert law[1].isnan().all()
    assert not law[[0, 2, 3, 4]].isnan().any()
