"""The reference law against transformers' own processors, with histories made by hand."""

from typing import Any

import pytest
import torch
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from verify.models.coupling import drawn_again
from verify.models.law import alternative_laws, next_token_laws, processed_logits
from verify.protocol import Request, SamplingParams

PROMPT = (3, 1, 4)
OUTPUT = (1, 5, 9, 2)


def request(**settings: Any) -> Request:
    return Request(prompt_token_ids=PROMPT, max_new_tokens=8, sampling=SamplingParams(**settings))


def logits() -> torch.Tensor:
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


@pytest.mark.parametrize(
    ("settings", "processor"),
    [
        ({"temperature": 0.6}, TemperatureLogitsWarper(0.6)),
        ({"top_k": 3}, TopKLogitsWarper(3)),
        ({"top_p": 0.7}, TopPLogitsWarper(0.7)),
        ({"min_p": 0.2}, MinPLogitsWarper(0.2)),
        ({"repetition_penalty": 1.7}, RepetitionPenaltyLogitsProcessor(1.7)),
        ({"forbidden_token_ids": (2, 5)}, SuppressTokensLogitsProcessor([2, 5], device="cpu")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_processors_agree_with_transformers(settings: dict[str, Any], processor: Any) -> None:
    rows = logits()
    laws = next_token_laws(rows, request(**settings), OUTPUT)
    for position in range(5):
        history = torch.tensor([[*PROMPT, *OUTPUT[:position]]])
        expected = processor(history, rows[position : position + 1].clone()).softmax(-1)[0]
        assert torch.allclose(laws[position], expected, atol=1e-14)


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    rows = torch.zeros(4, 12, dtype=torch.float64)
    scores = processed_logits(rows, request(presence_penalty=0.3, frequency_penalty=0.1), (1, 5, 1))
    assert scores[0].abs().max() == 0  # the prompt does not count
    assert scores[3, 1].item() == pytest.approx(-0.3 - 0.2, abs=1e-15)
    assert scores[3, 5].item() == pytest.approx(-0.3 - 0.1, abs=1e-15)
    assert scores[3, 4].item() == 0


def test_stop_tokens_are_banned_below_the_minimum_length() -> None:
    one = Request(prompt_token_ids=PROMPT, max_new_tokens=8, min_new_tokens=2, stop_token_ids=(7,))
    laws = next_token_laws(logits(), one, OUTPUT)
    assert (laws[:2, 7] == 0).all()
    assert (laws[2:, 7] > 0).all()


def test_greedy_is_one_hot_on_the_lowest_of_the_tied() -> None:
    rows = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    assert next_token_laws(rows, request(temperature=0.0), ())[0].tolist() == [0, 1, 0, 0]


def test_top_k_keeps_ties() -> None:
    rows = torch.tensor([[3.0, 2.0, 2.0, 1.0]])
    assert (next_token_laws(rows, request(top_k=2), ())[0] > 0).tolist() == [True, True, True, False]


def test_alternatives_are_what_a_bug_would_use() -> None:
    rows = logits()
    one = request(temperature=0.5, repetition_penalty=1.5)
    laws = alternative_laws(rows, one, OUTPUT)
    assert torch.allclose(laws["unprocessed"], rows.softmax(-1))
    assert torch.allclose(laws["no_temperature"], next_token_laws(rows, request(repetition_penalty=1.5), OUTPUT))
    assert torch.allclose(laws["no_history"], next_token_laws(rows, request(temperature=0.5), OUTPUT))
    assert torch.allclose(laws["stale_history"][3], next_token_laws(rows[3:4], one_with_prompt(OUTPUT[:2]), ())[0])
    assert torch.allclose(laws["previous_row"][0], next_token_laws(rows, one, OUTPUT)[0])
    assert not torch.allclose(laws["previous_row"][2], next_token_laws(rows, one, OUTPUT)[2])


def one_with_prompt(output: tuple[int, ...]) -> Request:
    """The same settings where the output so far belongs to the prompt (the repetition penalty sees both)."""
    sampling = SamplingParams(temperature=0.5, repetition_penalty=1.5)
    return Request(prompt_token_ids=(*PROMPT, *output), max_new_tokens=8, sampling=sampling)


def test_tokens_drawn_with_the_same_numbers_have_these_laws() -> None:
    """By simulation; the law of the noise is exact for the token that comes again."""
    generator = torch.Generator().manual_seed(2)
    laws = torch.rand(2, 4, generator=generator, dtype=torch.float64).pow(2)
    laws /= laws.sum(1, keepdim=True)
    uniforms = torch.rand(200_000, 1, generator=generator, dtype=torch.float64)
    noise = torch.empty(200_000, 4, dtype=torch.float64).exponential_(generator=generator)
    by_uniform = [(law.cumsum(0) <= uniforms).sum(1) for law in laws]
    by_noise = [(law / noise).argmax(1) for law in laws]
    for first in range(4):
        found = drawn_again(laws, [first, 0])
        for name, (one, two) in {"uniform_again": by_uniform, "noise_again": by_noise}.items():
            assert torch.equal(found[name][0], laws[0])
            assert torch.allclose(found[name].sum(1), torch.ones(2, dtype=torch.float64))
            shares = two[one == first].bincount(minlength=4) / (one == first).sum()
            differences = (shares - found[name][1]).abs()
            assert differences[first] < 0.01
            assert name == "noise_again" or differences.max() < 0.01


def test_tokens_that_cannot_be_drawn_tell_nothing_about_the_next() -> None:
    laws = torch.tensor([[0.0, 1.0], [0.25, 0.75], [1.0, 0.0]], dtype=torch.float64)
    for law in drawn_again(laws, [0, 0, 0]).values():
        assert torch.equal(law[1], laws[1])
        assert torch.equal(law[2], laws[2])
    assert torch.equal(drawn_again(laws[:1], [])["noise_again"], laws[:1])
