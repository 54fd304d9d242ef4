"""The recurrent table: its state is what was read in order, no crop takes anything out of it, and it survives the disk."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from verify.models.compat import forward_logits, new_cache
from verify.models.observer import ForwardCall, Round, Trace
from verify.models.pairs import Relation, TableSpec, table_pair
from verify.models.recurrent import RecurrentTableLM

TEXT = [1, 3, 0, 2, 4, 4, 1, 0]


@pytest.fixture
def model() -> RecurrentTableLM:
    generator = torch.Generator().manual_seed(3)
    return RecurrentTableLM.from_probs(torch.randn(512, 5, generator=generator, dtype=torch.float64).softmax(-1))


def rows(model: RecurrentTableLM, text: list[int]) -> torch.Tensor:
    return model.logits_table[[model.row_index(text[: end + 1]) for end in range(len(text))]]


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_rows_are_those_of_the_definition(model: RecurrentTableLM, cut: int) -> None:
    token_ids = torch.tensor([TEXT])
    assert torch.equal(forward_logits(model, token_ids)[0], rows(model, TEXT))
    cache = new_cache(model)
    parts = [forward_logits(model, part, cache=cache) for part in (token_ids[:, :cut], token_ids[:, cut:])]
    assert torch.equal(torch.cat(parts, 1)[0], rows(model, TEXT))


def test_a_crop_leaves_the_rejected_tokens_in_the_state(model: RecurrentTableLM) -> None:
    cache = DynamicCache(config=model.config)
    assert not cache.is_croppable
    forward_logits(model, torch.tensor([TEXT[:4]]), cache=cache)
    with pytest.raises(RuntimeError):
        cache.crop(-1)  # only after the layer of attention was cropped
    logits = forward_logits(model, torch.tensor([TEXT[3:]]), cache=cache)
    assert cache.get_seq_length() == len(TEXT)
    assert not torch.equal(logits[0], rows(model, TEXT)[3:])


def test_hidden_slots_do_not_enter_the_state(model: RecurrentTableLM) -> None:
    padded = torch.tensor([[0, 0, *TEXT]])
    mask = torch.tensor([[0, 0, *[1] * len(TEXT)]])
    positions = torch.tensor([[0, 0, *range(len(TEXT))]])
    assert torch.equal(
        forward_logits(model, padded, attention_mask=mask, position_ids=positions)[0, 2:], rows(model, TEXT)
    )
    with pytest.raises(ValueError, match="4 dimensions"):
        model(input_ids=padded, attention_mask=torch.ones(1, 1, 10, 10))


def test_on_the_disk(tmp_path: Path) -> None:
    spec = TableSpec(vocab_size=8, relation=Relation.CLOSE, recurrent=True)
    pair = table_pair(spec, device=torch.device("cpu"), dtype=torch.float64, folder=tmp_path)
    assert pair.name.startswith("recurrent-")
    loaded = AutoModelForCausalLM.from_pretrained(pair.target_dir, dtype=torch.float64)
    assert isinstance(loaded, RecurrentTableLM)
    token_ids = torch.tensor([[1, 7, 2]])
    assert torch.equal(forward_logits(loaded, token_ids), forward_logits(pair.target, token_ids))
    assert not isinstance(pair.draft, RecurrentTableLM)


def test_replays_are_no_rounds() -> None:
    # Prompt of 3: 2 drafts, 1 accepted and replayed; then 2 drafts, all accepted; then 1 draft.
    calls = [
        ForwardCall(1, 0, 2),
        ForwardCall(1, 2, 3),
        ForwardCall(1, 2, 2),
        ForwardCall(1, 4, 3),
        ForwardCall(1, 7, 2),
    ]
    assert Trace(calls).rounds(3, 7) == [Round(0, 2, 1), Round(2, 2, 2), Round(5, 1, 1)]
