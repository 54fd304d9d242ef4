"""What the suite found in universal assisted generation, as minimal cases; see reports/engines/FINDINGS-transformers.md.

Where one of these fails, the library has changed: judge it again and bring the findings up to date.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import parse
from torch import Tensor
from transformers.generation.candidate_generator import (
    AssistantToTargetTranslator,
    UniversalSpeculativeDecodingGenerator,
)

from verify.adapters import transformers_universal as universal
from verify.adapters.transformers import constant_schedule
from verify.exact.distance import total_variation
from verify.exact.enumeration import enumerate_outcomes
from verify.models.observer import observed
from verify.models.pairs import Relation, TableSpec, table_pair
from verify.protocol import ModelPair, Request, SamplingParams

pytestmark = pytest.mark.skipif(parse(transformers.__version__) < parse("5.24"), reason="judged in 5.24")
SPEC = TableSpec(vocab_size=3, relation=Relation.CLOSE, seed=7, num_rows=64, sharpness=1.5)
FLOAT32_BOUND = 5e-7


@pytest.fixture
def pair(tmp_path: Path) -> ModelPair:
    return table_pair(SPEC, device=torch.device("cpu"), dtype=torch.float64, folder=tmp_path)


def put_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy: the pruned head's logits go to the tokens that its rows were taken from."""

    def get_target_logits(self: Any, assistant_logits: Any) -> Tensor:
        shape = (*assistant_logits.shape[:-1], self.target_vocab_size)
        target_logits = torch.full(shape, self.FILTER_VALUE)
        kept = self._assistant_to_target_input_ids[self.assistant_overlap_token_ids]
        target_logits[..., kept] = assistant_logits.to(target_logits.dtype)
        return target_logits

    monkeypatch.setattr(AssistantToTargetTranslator, "get_target_logits", get_target_logits)


def misplaced(vocab_size: int) -> int:
    """How many of the pruned head's logits are declared for another token than the one their row was taken from."""
    meanings = torch.randperm(vocab_size + 1, generator=torch.Generator().manual_seed(0))
    spec = TableSpec(vocab_size=vocab_size, relation=Relation.SAME)
    models = table_pair(spec, device=torch.device("cpu"), dtype=torch.float64, folder=Path())
    assistant = universal.RenamedTable(models.draft, meanings)  # type: ignore[arg-type]
    translator = AssistantToTargetTranslator(
        universal._letters(torch.arange(vocab_size)), universal._letters(meanings), vocab_size, assistant, True
    )
    rows: Any = torch.arange(vocab_size, dtype=torch.float32)  # the logit of row j of the pruned head is j
    owners = meanings[translator.assistant_overlap_token_ids]  # the target token that row j was taken from
    declared = translator.get_target_logits(rows)
    return int((declared[owners] != rows).sum())


def divergence(pair: ModelPair) -> float:
    """Total variation of two sampled tokens from the target's law."""
    decoder = universal.make_decoder(pair)
    request = Request(prompt_token_ids=(1, 2), max_new_tokens=2, num_draft_tokens=1, sampling=SamplingParams())
    target: Any = pair.target
    found = enumerate_outcomes(lambda: tuple(decoder.generate([request])[0].token_ids), max_paths=2000)
    law = {}
    for first in range(3):
        for second in range(3):
            rows = [target.logits_table[target.row_index([1, 2, *head])] for head in ((), (first,))]
            chosen = [row.softmax(-1)[token] for row, token in zip(rows, (first, second), strict=True)]
            law[first, second] = float(chosen[0] * chosen[1])
    assert found.complete
    return total_variation(found.law, law)


def share_accepted(pair: ModelPair) -> float:
    """Accepted / drafted tokens with the target as its own draft, sampled."""
    decoder = universal.make_decoder(replace(pair, draft=copy.deepcopy(pair.target)))
    drafted = accepted = 0
    for seed in range(4):
        with observed(pair.target) as trace:
            (generation,) = decoder.generate([Request(prompt_token_ids=(1, 2), max_new_tokens=16, seed=seed)])
        for each in (trace.rounds(2, len(generation.token_ids)) or [])[:-1]:
            drafted += each.num_draft_tokens
            accepted += each.num_accepted
    return accepted / drafted


def test_logits_of_the_pruned_head_are_declared_for_other_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert misplaced(48) > 0
    put_in_order(monkeypatch)
    assert misplaced(48) == 0


def always_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's order of a vocabulary changes from process to process; this one is from the last token to the first."""
    in_any_order: Any = universal._letters

    def letters(meanings: Tensor) -> Any:
        tokenizer = in_any_order(meanings)
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: -entry[1])
        tokenizer.get_vocab = lambda: dict(vocabulary)
        return tokenizer

    monkeypatch.setattr(universal, "_letters", letters)


def test_the_sampled_law_is_not_the_targets(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    always_out_of_order(monkeypatch)
    assert divergence(pair) > 0.01
    put_in_order(monkeypatch)
    assert divergence(pair) < FLOAT32_BOUND


def test_an_assistant_whose_tokens_the_target_has_all_cannot_sample(pair: ModelPair) -> None:
    meanings = torch.tensor([2, 0])
    assistant = universal.RenamedTable(pair.draft, meanings)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="assistant_overlap_token_ids"):
        sample(pair, assistant, universal._letters(meanings))


def test_the_assistant_reads_accepted_drafts_as_other_tokens(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    always_out_of_order(monkeypatch)
    put_in_order(monkeypatch)
    assert share_accepted(pair) < 0.95
    get_candidates = UniversalSpeculativeDecodingGenerator.get_candidates

    def in_its_own_ids(self: Any, input_ids: Any, **inputs: Any) -> Any:
        """The remedy: what the pruned head drafted is kept in the assistant's own ids."""
        candidates, logits = get_candidates(self, input_ids, **inputs)
        if logits is not None:
            drafted = self._prev_assistant_ids[:, -logits.shape[1] :]
            drafted[:] = self._atm_translator.assistant_overlap_token_ids[drafted]
        return candidates, logits

    monkeypatch.setattr(UniversalSpeculativeDecodingGenerator, "get_candidates", in_its_own_ids)
    assert share_accepted(pair) == 1.0


def test_sampling_leaves_the_assistant_pruned(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    always_out_of_order(monkeypatch)
    decoder = universal.make_decoder(pair)
    greedy = Request(prompt_token_ids=(1, 2), max_new_tokens=3, sampling=SamplingParams(temperature=0.0))
    decoder.generate([greedy])
    decoder.generate([Request(prompt_token_ids=(1, 2), max_new_tokens=3, seed=0)])
    with pytest.raises((RuntimeError, IndexError)):
        decoder.generate([greedy])


def test_a_second_assistant_is_given_the_first_ones_translator(pair: ModelPair) -> None:
    meanings = torch.tensor([3, 1, 0, 2])
    letters = universal._letters(meanings)
    tokenizer = universal._letters(torch.arange(3))
    for attempt in range(2):
        assistant = universal.RenamedTable(pair.draft, meanings)  # type: ignore[arg-type]
        if attempt == 0:
            sample(pair, assistant, letters, tokenizer)
        else:
            with pytest.raises((RuntimeError, IndexError)):
                sample(pair, assistant, letters, tokenizer)


def sample(pair: ModelPair, assistant: Any, letters: Any, tokenizer: Any = None) -> None:
    prompt = torch.tensor([[1, 2]])
    constant_schedule(assistant, 2)
    target: Any = pair.target
    target.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=6,
        do_sample=True,
        assistant_model=assistant,
        tokenizer=tokenizer or universal._letters(torch.arange(3)),
        assistant_tokenizer=letters,
    )
