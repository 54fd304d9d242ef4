"""Bugs that leave the law alone are real bugs all the same: the trained drafter is accepted less often with each of them.

That their law is the target's is judged like a control's: their check is one of the exact law, and must pass.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import fixtures
from dspark.loading import default_drafter_dir, default_target_dir
from tests.mutants import MUTANTS, mutant_named
from tests.mutants.drafters import MUTANTS as MISTAKES
from verify.models.pairs import checkpoint_pair
from verify.protocol import ModelPair, Request, SamplingParams

PROMPTS = ("def read_", "class Token", "import os\n", "for name in ")


def shipped(id: str) -> bool:  # noqa: A002 (the word of the catalog)
    """Whether the trained drafter of this mistake is in the repository."""
    kind = "eagle3" if MUTANTS[id].make.__name__ == "make_eagle3_decoder" else "dflash"
    return default_drafter_dir(kind).is_dir()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    return checkpoint_pair(
        default_target_dir(),
        Path(fixtures.__file__).parent / "draft",
        device=torch.device("cpu"),
        dtype=torch.float32,
        folder=tmp_path_factory.mktemp("models"),
        name="fixture-pair",
    )


@pytest.fixture(scope="module")
def acceptance(pair: ModelPair) -> Callable[[Any], float]:
    """Accepted of drafted tokens by an adapter's decoder, greedy."""
    tokenizer = AutoTokenizer.from_pretrained(default_target_dir())
    settings: dict[str, Any] = {
        "max_new_tokens": 24,
        "num_draft_tokens": 4,
        "sampling": SamplingParams(temperature=0.0),
    }
    asked = [Request(prompt_token_ids=tuple(tokenizer(text)["input_ids"]), **settings) for text in PROMPTS]

    @cache
    def measured(make: Any) -> float:
        decoder = make(pair)
        records = [decoder.generate([each])[0].record for each in asked]
        return float(
            sum(each.num_accepted_draft_tokens for each in records) / sum(each.num_draft_tokens for each in records)
        )

    return measured


@pytest.mark.parametrize("id", [mutant.id for mutant in MISTAKES])
def test_acceptance_falls(acceptance: Callable[[Any], float], id: str) -> None:  # noqa: A002
    if not shipped(id):
        pytest.skip("the trained drafter is not in this repository")
    correct, mistaken = acceptance(MUTANTS[id].make), acceptance(mutant_named(id))
    print(f"{id}: {correct:.3f} -> {mistaken:.3f}")
    assert mistaken < correct  # greedy, on fixed prompts: no chance in it
