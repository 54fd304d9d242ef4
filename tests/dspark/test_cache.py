"""A context with rollback equals reading each row's text afresh, whatever the order of events."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark.cache import BatchContext, Context, open_context
from dspark.causal_model import CausalModel
from dspark.rowwise import RowwiseContext
from tests.dspark.conftest import MAX_POSITIONS, VOCAB_SIZE
from tests.mutants.serving import padding_counts


def afresh(model: PreTrainedModel, text: list[int], num_rows: int) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -num_rows:]


def exercise(
    model: PreTrainedModel,
    context: Context,
    prompts: list[list[int]],
    *,
    rounds: int,
    seed: int = 0,
    newcomer: Callable[[], Context] | None = None,
) -> float:
    """Random rounds of reading and rolling back; the largest difference from reading afresh.

    With `newcomer`, which opens a context of one row, rows also join, and copies go on in place of what was copied.
    """
    rng = random.Random(seed)
    texts = [list(prompt) for prompt in prompts]
    width = max(map(len, texts))
    worst = 0.0

    def compare(logits: Tensor, counts: list[int]) -> None:
        nonlocal worst
        for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
            if count:
                worst = max(worst, float((logits[row, :count] - afresh(model, text, count)).abs().max()))

    with torch.inference_mode():
        block = torch.tensor([text + [0] * (width - len(text)) for text in texts])
        if width:
            compare(context.extend(block, [len(text) for text in texts]).logits, [len(text) for text in texts])
            context.commit([len(text) for text in texts])
        for _ in range(rounds):
            counts = [rng.randint(1, 4) for _ in texts]
            width = max(counts)
            block = torch.randint(
                VOCAB_SIZE, (len(texts), width), generator=torch.Generator().manual_seed(rng.randint(0, 9**9))
            )
            before = [len(text) for text in texts]
            texts = [text + row[:count] for text, row, count in zip(texts, block.tolist(), counts, strict=True)]
            compare(context.extend(block, counts).logits, counts)
            kept = [start + rng.randint(0, count) for start, count in zip(before, counts, strict=True)]
            texts = [text[:length] for text, length in zip(texts, kept, strict=True)]
            context.commit(kept)
            if newcomer and rng.random() < 0.4:
                fresh, text = newcomer(), [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(0, 9))]
                if text:
                    fresh.extend(torch.tensor([text]), [len(text)])
                    fresh.commit([len(text)])
                context.join(fresh)
                texts.append(text)
            if newcomer and rng.random() < 0.3:
                rows, copied = rng.sample(range(len(texts)), max(1, len(texts) - 1)), context
                texts, context = [texts[row] for row in rows], copied.copy(rows)
                copied.extend(torch.full((len(copied.lengths), 3), 7), [3] * len(copied.lengths))  # must not matter
            if len(texts) > 1 and rng.random() < 0.1:
                rows = rng.sample(range(len(texts)), len(texts) - 1)
                texts = [texts[row] for row in rows]
                context.select(rows)
            assert context.lengths == [len(text) for text in texts]
    return worst


PROMPTS = [[1], [4, 5, 6, 7, 8, 9], [2, 3], []]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_ragged_batch_equals_reading_afresh(tiny: Callable[..., PreTrainedModel], kind: str, attention: str) -> None:
    model = tiny(kind)
    model.set_attn_implementation(attention)
    context = BatchContext(CausalModel.of(model), len(PROMPTS))
    # The library's eager attention computes its softmax in float32, whatever the dtype of the model.
    tolerance = 1e-12 if attention == "sdpa" or kind == "gpt2" else 1000 * torch.finfo(torch.float32).eps
    assert exercise(model, context, PROMPTS, rounds=14) < tolerance


def exercise_joining(model: PreTrainedModel, *, seed: int) -> float:
    described = CausalModel.of(model)
    context = open_context(described, 2)
    return exercise(model, context, [[1, 2, 3], []], rounds=14, seed=seed, newcomer=lambda: open_context(described, 1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "mamba"])
@pytest.mark.filterwarnings("ignore:.*recomputed")
def test_rows_join_and_are_copied(tiny: Callable[..., PreTrainedModel], kind: str, seed: int) -> None:
    """In slots, in one cache with holes, in caches of their own, and without any."""
    assert exercise_joining(tiny(kind), seed=seed) < 1e-10


def rows_reversed(self: BatchContext, rows: Any) -> BatchContext:
    """Keys and values are copied in another order than lengths."""
    twin = COPY(self, rows)
    twin.cache = COPY(self, list(rows)[::-1]).cache
    return twin


COPY = BatchContext.copy


@pytest.mark.parametrize(("name", "mistake"), [("_valid_of", padding_counts), ("copy", rows_reversed)])
def test_a_join_or_copy_with_a_planted_mistake_is_seen(
    tiny: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch, name: str, mistake: Any
) -> None:
    monkeypatch.setattr(BatchContext, name, mistake)
    assert max(exercise_joining(tiny("gpt2"), seed=seed) for seed in range(4)) > 1e-3


def test_one_row_needs_no_mask_and_no_positions(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny("qwen3")
    seen: list[set[str]] = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    context = BatchContext(CausalModel.of(model), 1)
    seen.clear()
    with torch.inference_mode():
        for _ in range(4):
            context.extend(torch.tensor([[1, 2, 3]]), [3])
            context.commit([context.lengths[0] - 2])
    assert len(seen) == 4
    assert not any({"attention_mask", "position_ids"} & names for names in seen)


@pytest.mark.parametrize("kind", ["mistral", "mamba"])
@pytest.mark.filterwarnings("ignore:.*recomputed")
def test_caches_that_do_not_crop_are_still_right(tiny: Callable[..., PreTrainedModel], kind: str) -> None:
    model = tiny(kind)
    context = open_context(CausalModel.of(model), 3)
    assert isinstance(context, RowwiseContext)
    assert exercise(model, context, [[1], [4, 5, 6, 7, 8, 9, 10, 11], []], rounds=12) < 1e-12


def test_reading_twice_before_a_commit_within_a_window(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny("mistral")
    context = open_context(CausalModel.of(model), 1)
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    with torch.inference_mode():
        context.extend(torch.tensor([text]), [8])
        context.commit([8])
        for step in range(3):
            logits = context.extend(torch.tensor([[step]]), [1]).logits
            text.append(step)
            assert torch.allclose(logits[0], afresh(model, text, 1), atol=1e-12)
        context.commit([9])
        logits = context.extend(torch.tensor([[7, 8]]), [2]).logits
    assert torch.allclose(logits[0], afresh(model, [*text[:9], 7, 8], 2), atol=1e-12)


def test_recomputation_is_announced(tiny: Callable[..., PreTrainedModel]) -> None:
    with pytest.warns(UserWarning, match="recomputed"):
        assert CausalModel.of(tiny("mamba")).cache_keyword == ""


def test_a_forward_without_positions_gets_rows_of_its_own(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny("llama")
    inner = model.forward
    if "cache" in CausalModel.of(model).cache_keyword:
        model.forward = lambda input_ids, cache=None, use_cache=None: inner(
            input_ids=input_ids, cache=cache, use_cache=use_cache
        )
    else:
        model.forward = lambda input_ids, past_key_values=None, use_cache=None: inner(
            input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache
        )
    described = CausalModel.of(model)
    context = open_context(described, 3)
    assert isinstance(context, RowwiseContext)
    assert exercise(model, context, PROMPTS[:3], rounds=6) < 1e-12
    context = open_context(described, 1)
    assert exercise(model, context, [[1, 2]], rounds=6) < 1e-12
    if context.lengths[0] > 1:  # a cache without windows gives up what was committed long ago
        context.commit([1])
    forwards: list[int] = []
    model.model.register_forward_pre_hook(lambda module, args, kwargs: forwards.append(1), with_kwargs=True)
    with torch.inference_mode():
        for _ in range(3):
            assert context.extend(torch.tensor([[5]]), [1]).logits.shape[1] == 1
    assert len(forwards) == 3


def test_padding_stays_within_the_positions_of_the_model(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny("gpt2", n_positions=8)
    context = open_context(CausalModel.of(model), 2)
    with torch.inference_mode():
        context.extend(torch.tensor([[1, 2, 3, 4, 5, 6, 7], [1, 0, 0, 0, 0, 0, 0]]), [7, 1])
        logits = context.extend(torch.tensor([[8, 0, 0], [2, 3, 4]]), [1, 3]).logits  # positions 7 to 9 of 8 in row 0
    assert torch.allclose(logits[0, :1], afresh(model, [1, 2, 3, 4, 5, 6, 7, 8], 1), atol=1e-12)
    assert torch.allclose(logits[1], afresh(model, [1, 2, 3, 4], 3), atol=1e-12)


def test_holes_are_given_back(tiny: Callable[..., PreTrainedModel]) -> None:
    context = BatchContext(CausalModel.of(tiny("llama")), 2)
    with torch.inference_mode():
        for step in range(12):  # the rows take turns in accepting: half of the slots are holes
            context.extend(torch.tensor([[1, 2, 3], [4, 5, 6]]), [3, 3])
            lengths = context.lengths
            context.commit([lengths[row] - (0 if row == step % 2 else 3) for row in range(2)])
            assert context.num_slots <= 2 * max(context.lengths) + 3
            assert context.num_slots == context.cache.get_seq_length() < MAX_POSITIONS
        context.select([1])
    assert context.valid is None
    assert context.num_slots == context.lengths[0] == 18


PLANTED = {
    "no mask": lambda self, valid, width: {},
    "positions from slots": lambda self, valid, width: {
        "attention_mask": GOOD(self, valid, width)["attention_mask"],
        "position_ids": torch.arange(self.num_slots, self.num_slots + width).expand(len(self.lengths), -1),
    },
    "mask of the row before": lambda self, valid, width: {
        **GOOD(self, valid, width),
        "attention_mask": GOOD(self, valid, width)["attention_mask"].roll(1, 0),
    },
}
GOOD = BatchContext._mask_and_positions


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bug_is_seen(tiny: Callable[..., PreTrainedModel], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchContext, "_mask_and_positions", PLANTED[name])
    model = tiny("qwen3")
    assert exercise(model, BatchContext(CausalModel.of(model), 4), PROMPTS, rounds=14) > 1e-3


def test_cropping_one_too_few_is_seen(tiny: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    crop = BatchContext._crop

    def too_few(self: Any, num_slots: int) -> None:
        crop(self, min(num_slots + 1, self.num_slots))

    monkeypatch.setattr(BatchContext, "_crop", too_few)
    model = tiny("qwen3")
    assert exercise(model, BatchContext(CausalModel.of(model), 1), [[1, 2, 3]], rounds=6) > 1e-3


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("context_type", [BatchContext, RowwiseContext])
def test_features_are_the_tapped_hidden_states(
    tiny: Callable[..., PreTrainedModel], kind: str, context_type: type
) -> None:
    model = tiny(kind)
    described = CausalModel.of(model)
    context = context_type(described, 2, layers=(-1, 0))
    texts = [[1, 2, 3, 4, 5], [6, 7]]
    first = context.extend(torch.tensor([[1, 2, 3], [6, 0, 0]]), [3, 1]).features
    context.commit([2, 1])
    second = context.extend(torch.tensor([[3, 4, 5], [7, 0, 0]]), [3, 1], last=True).features
    for row, (text, kept) in enumerate(zip(texts, [2, 1], strict=True)):
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([text]), output_hidden_states=True).hidden_states
        expected = torch.cat([hidden[0], hidden[1]], -1)[0]
        seen = torch.cat([first[row, :kept], second[row, : len(text) - kept]])
        assert (seen - expected).abs().max() < 1e-12


def test_the_last_layer_gives_no_features(tiny: Callable[..., PreTrainedModel]) -> None:
    described = CausalModel.of(tiny("llama"))
    described.require_layers((-1, 0))
    with pytest.raises(ValueError, match=r"layers \[1\]; this target has layers -1 \(embeddings\) to 0"):
        described.require_layers((1,))


@pytest.mark.parametrize("kind", ["mistral", "gpt2"])
def test_a_prefill_row_by_row_makes_the_logits_of_one_position(tiny: Callable[..., PreTrainedModel], kind: str) -> None:
    model = tiny(kind)
    context = RowwiseContext(CausalModel.of(model), 2)
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    texts = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7]]
    with torch.inference_mode():
        padded = torch.tensor([text + [0] * (8 - len(text)) for text in texts])
        logits = context.extend(padded, [8, 3], last=True).logits
        context.commit([8, 3])
        block = context.extend(torch.tensor([[1, 2], [3, 0]]), [2, 1]).logits
    assert seen == [1, 1, 2, 1]
    assert logits.shape == (2, 1, VOCAB_SIZE)
    for row, (text, tail) in enumerate(zip(texts, [[1, 2], [3]], strict=True)):
        assert torch.allclose(logits[row], afresh(model, text, 1), atol=1e-12)
        assert torch.allclose(block[row, : len(tail)], afresh(model, text + tail, len(tail)), atol=1e-12)
