"""The library's own assisted generation on two table models, its code untouched, against the target's product law."""

import itertools
from typing import Any

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicLayer

from verify.exact.distance import total_variation
from verify.exact.enumeration import Enumeration, enumerate_outcomes
from verify.models.table import TableLM

PROMPT = (0, 1)
NUM_TOKENS = 3
# The library computes probabilities from logits cast to float32; the bound is some ten roundings of that.
FLOAT32_BOUND = 5e-7


def table_model(seed: int) -> TableLM:
    generator = torch.Generator().manual_seed(seed)
    model = TableLM.from_probs(torch.randn(32, 3, generator=generator, dtype=torch.float64).softmax(-1))
    model.generation_config.num_assistant_tokens = 2
    model.generation_config.num_assistant_tokens_schedule = "constant"
    model.generation_config.assistant_confidence_threshold = 0.0
    return model


def target_law(target: TableLM) -> dict[tuple[int, ...], float]:
    law = {}
    for tokens in itertools.product(range(3), repeat=NUM_TOKENS):
        probability = 1.0
        for length in range(NUM_TOKENS):
            row = target.logits_table[target.row_index([*PROMPT, *tokens[:length]])]
            probability *= float(row.softmax(-1)[tokens[length]])
        law[tokens] = probability
    return law


def enumerate_generate(target: TableLM, **settings: Any) -> Enumeration[tuple[int, ...]]:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    prompt = torch.tensor([PROMPT])

    def run() -> tuple[int, ...]:
        output = target.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NUM_TOKENS, top_k=0, **settings
        )
        return tuple(output[0, len(PROMPT) :].tolist())

    return enumerate_outcomes(run, max_paths=5000)


@pytest.mark.parametrize("drafting", ["assistant", "prompt lookup", "none"])
def test_sampled_generation_follows_the_target(drafting: str) -> None:
    target = table_model(0)
    with_drafts: dict[str, dict[str, Any]] = {
        "assistant": {"assistant_model": table_model(1)},
        "prompt lookup": {"prompt_lookup_num_tokens": 2},
        "none": {},
    }
    found = enumerate_generate(target, do_sample=True, **with_drafts[drafting])
    assert found.complete
    assert found.refused == ""
    assert abs(found.mass - 1) < 1e-12
    assert found.num_paths > (150 if drafting == "assistant" else 26)
    assert total_variation(found.law, target_law(target)) <= FLOAT32_BOUND


def test_greedy_generation_is_one_path_and_the_target_s() -> None:
    target = table_model(0)
    expected = list(PROMPT)
    for _ in range(NUM_TOKENS):
        expected.append(int(target.logits_table[target.row_index(expected)].argmax()))
    found = enumerate_generate(target, do_sample=False, assistant_model=table_model(1))
    assert found.law == {tuple(expected[len(PROMPT) :]): 1.0}
    assert found.num_paths == 1


def test_stale_cache_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejected drafts stay in the cache: the table sees them."""
    monkeypatch.setattr(DynamicLayer, "crop", lambda self, tokens_to_remove: None)
    target = table_model(0)
    found = enumerate_generate(target, do_sample=True, assistant_model=table_model(1))
    assert found.complete
    assert total_variation(found.law, target_law(target)) > 1e-3
