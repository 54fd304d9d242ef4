"""One way to call a model, whatever the version of the library calls its cache."""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from verify.models.compat import cache_keyword, forward_logits, new_cache
from verify.models.table import TableLM


def tiny_llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=11, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    model = LlamaForCausalLM(config)
    model.to(torch.float64).train(False)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("build", [tiny_llama, lambda: TableLM.from_probs(torch.ones(7, 11).double() / 11)])
def test_cached_pieces_equal_the_whole(build: Callable[[], PreTrainedModel]) -> None:
    torch.set_num_threads(1)
    model = build()
    token_ids = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(0))
    cache = new_cache(model)
    pieces = [forward_logits(model, piece, cache=cache) for piece in token_ids.tensor_split((3, 6), dim=1)]
    whole = forward_logits(model, token_ids)
    assert torch.allclose(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-12)
    assert whole.shape == (2, 8, 11)
    assert not whole.requires_grad
    assert cache.get_seq_length() == 8


def test_masks_and_positions_reach_the_model() -> None:
    model = tiny_llama()
    token_ids = torch.tensor([[0, 0, 5, 6]])
    mask = torch.tensor([[0, 0, 1, 1]])
    padded = forward_logits(model, token_ids, attention_mask=mask, position_ids=torch.tensor([[0, 0, 0, 1]]))
    assert torch.allclose(padded[:, 2:], forward_logits(model, token_ids[:, 2:]), rtol=0, atol=1e-12)
    assert not torch.allclose(forward_logits(model, token_ids)[:, 2:], padded[:, 2:])


def test_model_without_a_cache_is_named() -> None:
    class Recurrent(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    with pytest.raises(ValueError, match=r"Recurrent.forward takes input_ids; a decoder needs"):
        cache_keyword(Recurrent())  # type: ignore[arg-type]
