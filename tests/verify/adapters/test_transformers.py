"""What the suite found in transformers' assisted generation, as minimal cases; see reports/engines/FINDINGS-transformers.md.

Where one of these fails, the library has changed: judge it again and bring the findings up to date.
"""

from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import parse
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
from transformers.generation.utils import _speculative_sampling

from verify.adapters import transformers_early_exit
from verify.adapters.transformers import AssistedGeneration, make_decoder, make_prompt_lookup_decoder
from verify.models.observer import observed
from verify.models.pairs import Relation, TableSpec, table_pair
from verify.protocol import ModelPair, Request, SamplingParams

BEFORE_5_24 = parse(transformers.__version__) < parse("5.24")
SAME = TableSpec(vocab_size=32, relation=Relation.SAME, seed=1001, num_rows=4096)


@pytest.fixture
def pair(tmp_path: Path) -> ModelPair:
    return table_pair(SAME, device=torch.device("cpu"), dtype=torch.float64, folder=tmp_path)


def share_accepted(decoder: AssistedGeneration, pair: ModelPair, temperature: float) -> float:
    """Accepted / drafted tokens with the target as its own draft."""
    drafted = accepted = 0
    for seed in range(12):
        request = Request(
            prompt_token_ids=(9, 4),
            max_new_tokens=24,
            seed=seed,
            sampling=SamplingParams(temperature=temperature),
        )
        with observed(pair.target) as trace:
            (generation,) = decoder.generate([request])
        for each in (trace.rounds(2, len(generation.token_ids)) or [])[:-1]:
            drafted += each.num_draft_tokens
            accepted += each.num_accepted
    return accepted / drafted


def test_the_draft_applies_the_temperature_twice(pair: ModelPair) -> None:
    decoder = make_decoder(pair)
    assert share_accepted(decoder, pair, 1.0) == 1.0
    assert share_accepted(decoder, pair, 0.0) == 1.0
    assert share_accepted(decoder, pair, 0.7) < 0.95


@pytest.mark.skipif(BEFORE_5_24, reason="came with 5.24")
def test_the_draft_masks_real_tokens_equal_to_the_pad_token(pair: ModelPair) -> None:
    make_decoder(pair)  # clears the checkpoints' own end of text
    pair.draft.generation_config.num_assistant_tokens = 3
    pair.draft.generation_config.num_assistant_tokens_schedule = "constant"
    pair.draft.generation_config.assistant_confidence_threshold = 0.0

    def rounds_to_decode(pad_token_id: int | None) -> int:
        prompt = torch.tensor([[18, 0, 2]])  # holds token 0, with an attention mask that says it is real
        config = GenerationConfig(do_sample=False, max_new_tokens=24, pad_token_id=pad_token_id)
        with observed(pair.target) as trace:
            pair.target.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                assistant_model=pair.draft,
            )
        return len(trace.calls)

    assert rounds_to_decode(None) == 6  # 24 tokens, 4 a round
    assert rounds_to_decode(0) > 6


@pytest.mark.skipif(BEFORE_5_24, reason="another signature before 5.24")
def test_a_residual_that_rounds_to_nothing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 the draft law can lie one step above the target's for one token and nowhere below it."""
    target = torch.tensor([[[-2.1423747539520264, 0.2454024851322174, -1.1326349973678589]]])
    draft = torch.tensor([[[-2.1423747539520264, 0.24540242552757263, -1.1326349973678589]]])
    assert (draft.softmax(-1) - target.softmax(-1)).tolist() == [[[2**-27, 0.0, 0.0]]]
    highest = 1 - 2**-24  # the largest number that torch.rand draws in float32, one time in 2^24
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, highest))
    with pytest.raises(RuntimeError, match="`nan` or element < 0"):
        _speculative_sampling(torch.tensor([[0]]), draft, 1, torch.cat([target, target], 1))


def test_drafts_are_read_beyond_the_context() -> None:
    """With learned positions: the assistant's own context is not asked for, and lookup forgets how little the target has left."""

    def gpt2(num_positions: int) -> GPT2LMHeadModel:
        config = GPT2Config(vocab_size=6, n_positions=num_positions, n_embd=8, n_layer=1, n_head=1, eos_token_id=None)
        return GPT2LMHeadModel(config).eval()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        target, short = gpt2(48), gpt2(24)
    config = GenerationConfig(do_sample=False, max_new_tokens=40)
    whole = {"inputs": torch.tensor([[1, 2, 3, 1, 2, 3, 1, 2]]), "generation_config": config}
    assert target.generate(**whole).shape[1] == 48
    with pytest.raises(IndexError):
        target.generate(**whole, assistant_model=short)
    with pytest.raises(IndexError):
        target.generate(**whole, prompt_lookup_num_tokens=4)


def test_prompt_lookup_drafts_nothing_from_the_draft_model(pair: ModelPair) -> None:
    decoder = make_prompt_lookup_decoder(pair)
    calls = []
    pair.draft.register_forward_pre_hook(lambda *_: calls.append(1))
    decoder.generate([Request(prompt_token_ids=(1, 2, 1, 2, 1), max_new_tokens=6)])
    assert not calls
    assert not decoder.capabilities.draft_model


def test_penalties_that_generate_lacks_are_refused(pair: ModelPair) -> None:
    request = Request(prompt_token_ids=(1,), max_new_tokens=2, sampling=SamplingParams(presence_penalty=1.0))
    with pytest.raises(NotImplementedError, match="presence or frequency"):
        make_decoder(pair).generate([request])


@pytest.mark.skipif(BEFORE_5_24, reason="5.17 cannot crop a layer that holds nothing")
def test_early_exit_has_the_context_of_its_target(tmp_path: Path) -> None:
    spec = TableSpec(vocab_size=32, relation=Relation.CLOSE, seed=1003, num_rows=4096, draft_max_positions=8)
    models = table_pair(spec, device=torch.device("cpu"), dtype=torch.float64, folder=tmp_path)
    request = Request(prompt_token_ids=(9, 4), max_new_tokens=24, sampling=SamplingParams(temperature=0.0))
    (generation,) = transformers_early_exit.make_decoder(models).generate([request])
    assert len(generation.token_ids) == 24
