"""The short forward reads as the library's does, is seen by hooks, and steps back where it would have to guess."""

import gc
import operator
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from dspark import Request, SamplingParams, SpeculativeDecoder, prefixes
from dspark.cache import BatchContext, open_context
from dspark.causal_model import CausalModel
from dspark.drafters import model as model_drafter
from dspark.drafters.factory import random_drafter
from dspark.drafters.model import ModelDrafter
from dspark.lean import context as lean_context
from dspark.lean import forward as lean_forward
from dspark.lean.context import LeanContext
from dspark.lean.forward import Block, LeanForward
from dspark.rowwise import RowwiseContext
from dspark.serving import Engine, Limits
from tests.dspark.conftest import VOCAB_SIZE
from tests.dspark.test_cache import PROMPTS, afresh, exercise

Tiny = Callable[..., PreTrainedModel]
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "initializer_range": 0.05}


def opened(model: PreTrainedModel, num_rows: int, **keywords: Any) -> LeanContext:
    context = open_context(CausalModel.of(model), num_rows, **keywords)
    assert isinstance(context, LeanContext)
    return context


def own_forward(model: PreTrainedModel) -> PreTrainedModel:
    """A model that runs the library's forward: something inside it looks changed."""
    model.base_model.layers[0].register_forward_pre_hook(lambda *_: None)  # type: ignore[union-attr,index]
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("heads", [(2, 1), (4, 4), (8, 2)])
def test_reads_as_the_library_in_float64(tiny: Tiny, kind: str, heads: tuple[int, int]) -> None:
    model = tiny(kind, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    assert exercise(model, opened(model, len(PROMPTS)), PROMPTS, rounds=14) < 1e-10
    assert exercise(model, opened(model, 1), [[1, 2, 3]], rounds=14, seed=1) < 1e-10


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reads_as_the_library_but_for_rounding(tiny: Tiny, kind: str, dtype: torch.dtype) -> None:
    """Wide enough for packed weights; the allowance is what another order of summation does to the library's own forward."""
    exact, model = tiny(kind, **WIDE), tiny(kind, dtype=dtype, **WIDE)
    exact.load_state_dict(model.state_dict())
    text = torch.arange(40)[None] % VOCAB_SIZE
    with torch.inference_mode():
        truth = exact(input_ids=text).logits
        theirs = (model(input_ids=text).logits - truth).abs().mean()
        context = opened(model, 1)
        parts = [context.extend(part, [part.shape[1]]).logits for part in text.split([20, 1, 8, 11], 1)]
        ours = (torch.cat(parts, 1) - truth).abs().mean()
    assert ours < 2 * theirs


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_features_and_last_logits(tiny: Tiny, kind: str) -> None:
    model = tiny(kind, num_hidden_layers=3)
    context = opened(model, 2, layers=(1, -1))
    first = context.extend(torch.tensor([[1, 2, 3], [6, 0, 0]]), [3, 1], last=True)
    assert first.features is not None
    assert first.logits.shape == (2, 1, VOCAB_SIZE)
    for row, text in enumerate([[1, 2, 3], [6]]):
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([text]), output_hidden_states=True).hidden_states
        expected = torch.cat([hidden[2], hidden[0]], -1)[0]
        assert (first.features[row, : len(text)] - expected).abs().max() < 1e-10
        assert (first.logits[row] - afresh(model, text, 1)).abs().max() < 1e-10
    assert isinstance(open_context(CausalModel.of(model), 2, layers=(0,)), LeanContext)  # recording left hooks behind


@pytest.fixture
def nothing_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ragged block is read without its padding."""
    monkeypatch.setattr(lean_context, "FREE_TOKENS", (0, 0))


@pytest.mark.usefixtures("nothing_is_free")
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("chunk", [3, 512])
def test_padding_is_left_out(tiny: Tiny, kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_context, "CHUNK", chunk)
    model = tiny(kind)
    assert exercise(model, opened(model, len(PROMPTS)), PROMPTS, rounds=14) < 1e-10
    test_features_and_last_logits(tiny, kind)
    both = opened(model, 2, layers=(-1, 0))
    texts = [[1, 2, 3, 4, 5, 6, 7], [6, 7]]
    both.extend(torch.tensor([[9], [8]]), [1, 1])
    read = both.extend(torch.tensor([texts[0], [*texts[1], 0, 0, 0, 0, 0]]), [7, 2], last=True)
    assert read.features is not None
    for row, (first, text) in enumerate(zip((9, 8), texts, strict=True)):
        alone = opened(model, 1, layers=(-1, 0)).extend(torch.tensor([[first, *text]]), [1 + len(text)])
        assert alone.features is not None
        assert (read.logits[row, 0] - alone.logits[0, -1]).abs().max() < 1e-10
        assert (read.features[row, : len(text)] - alone.features[0, 1:]).abs().max() < 1e-10


def one_place_late(self: LeanContext, counts: Any, width: int) -> Any:
    kept = WITHOUT(self, counts, width)
    return kept if kept is None else (kept + 1) % (len(counts) * width)


WITHOUT = LeanContext._without_padding


def swapped_sign(self: LeanForward, num_positions: int) -> torch.Tensor:
    table = ROTATIONS(self, num_positions)
    return torch.stack([table[:, 0], -table[:, 1]], 1)


def one_too_many(self: LeanContext, width: int, counts: Any, skip: int = 0) -> Block:
    block = BLOCK(self, width, counts, skip)
    return block if block.mask is None else replace(block, mask=block.mask.roll(-1, -2))


def sees_the_future(self: LeanContext, width: int, counts: Any, skip: int = 0) -> Block:
    return replace(BLOCK(self, width, counts, skip), causal=False)


def rows_mixed(self: LeanContext, width: int, counts: Any, skip: int = 0) -> Block:
    block = BLOCK(self, width, counts, skip)
    return replace(block, places=block.places % self.slots.shape[2])


def chunks_at_the_same_place(self: LeanContext, width: int, counts: Any, skip: int = 0) -> Block:
    return BLOCK(self, width, counts, 0)


ROTATIONS, BLOCK = LeanForward.rotations, LeanContext._block
MISTAKES: dict[str, tuple[Any, str, Any]] = {
    "rotated backwards": (LeanForward, "rotations", swapped_sign),
    "masks of the token after": (LeanContext, "_block", one_too_many),
    "an unmasked prompt": (LeanContext, "_block", sees_the_future),
    "chunks at the same place": (LeanContext, "_block", chunks_at_the_same_place),
    "all rows in one": (LeanContext, "_block", rows_mixed),
    "padding for text": (LeanContext, "_without_padding", one_place_late),
    "a norm without eps": (
        lean_forward,
        "rms_norm",
        lambda weight, eps: lambda x: weight * functional.normalize(x, dim=-1),
    ),
    "committed one too many": (
        LeanContext,
        "commit",
        lambda self, lengths: setattr(self, "lengths", [length + 1 for length in lengths]),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.filterwarnings("ignore:.*computes something else")
def test_a_planted_mistake_is_seen(tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen3")
    owner, attribute, mistake = MISTAKES[name]
    monkeypatch.setattr(lean_context, "CHUNK", 2)
    monkeypatch.setattr(owner, attribute, mistake)
    context = LeanContext(model, LeanForward(model), len(PROMPTS), cache_keyword="cache")
    try:
        difference = exercise(model, context, PROMPTS, rounds=14)
    except AssertionError:  # the lengths are wrong
        return
    assert difference > 1e-3


def test_a_forward_that_differs_is_given_up_with_a_warning(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeanForward, "rotations", swapped_sign)
    model = CausalModel.of(tiny("qwen3"))
    with pytest.warns(UserWarning, match="computes something else"):
        assert isinstance(open_context(model, 2), BatchContext)
    assert isinstance(open_context(model, 2), BatchContext)  # without a second warning


def test_hooks_of_the_model_see_every_forward(tiny: Tiny) -> None:
    model = tiny("qwen3")
    described = CausalModel.of(model)
    before = model.forward
    seen: list[tuple[int, list[int]]] = []

    def watch(_: Any, arguments: Any, keywords: Any) -> None:
        seen.append((keywords[described.cache_keyword].get_seq_length(), list(keywords["input_ids"].shape)))

    context = open_context(described, 1)
    with model.register_forward_pre_hook(watch, with_kwargs=True):
        context.extend(torch.tensor([[1, 2, 3]]), [3])
        context.commit([2])
        context.extend(torch.tensor([[4, 5]]), [2])
    context.extend(torch.tensor([[4]]), [1])
    assert seen == [(0, [1, 3]), (2, [1, 2])]
    assert model.forward == before


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "mistral"])
def test_what_was_read_is_given_back_at_once(tiny: Tiny, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the next garbage collection: keys and values are large, and few objects."""
    target, alive = tiny(kind), weakref.WeakSet[Any]()
    drafters: list[Any] = [ModelDrafter(tiny("llama", seed=1)), None]
    drafters += [random_drafter(target, kind="eagle3", dtype=torch.float64)] if kind == "qwen3" else []
    for module in (prefixes, model_drafter):
        monkeypatch.setattr(module, "open_context", recorded(module.open_context, alive))
    asked = [Request(prompt_token_ids=(1, 2, 3), max_new_tokens=length, seed=1) for length in (4, 9)]
    gc.collect()
    gc.disable()
    try:
        for drafter in drafters:
            decoder = SpeculativeDecoder(target, drafter)
            decoder.generate(asked)
            next(decoder.stream(asked[0]))
            assert len(alive) == 0
            engine = Engine(target, drafter, limits=Limits(max_prefixes=0))
            engine.generate(asked)
            assert len(alive) == 0
    finally:
        gc.enable()


def recorded(opened: Any, alive: weakref.WeakSet[Any]) -> Any:
    def open_recorded(*arguments: Any, **keywords: Any) -> Any:
        context = opened(*arguments, **keywords)
        alive.add(context)
        return context

    return open_recorded


def test_new_weights_are_read(tiny: Tiny) -> None:
    model = tiny("qwen3")
    described = CausalModel.of(model)
    open_context(described, 1)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    logits = open_context(described, 1).extend(torch.tensor([[1, 2, 3]]), [3]).logits
    assert (logits[0] - afresh(model, [1, 2, 3], 3)).abs().max() < 1e-10
    model.base_model.layers[1].mlp.up_proj.weight = nn.Parameter(torch.randn(32, 16).double())  # type: ignore[union-attr,index]
    logits = open_context(described, 1).extend(torch.tensor([[1, 2, 3]]), [3]).logits
    assert (logits[0] - afresh(model, [1, 2, 3], 3)).abs().max() < 1e-10


def changed_forward(model: Any) -> None:
    inner = model.base_model.layers[0].mlp.forward
    model.base_model.layers[0].mlp.forward = lambda states: 2 * inner(states)


def adapted(model: Any) -> None:
    class Adapter(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(states)

    layer = model.base_model.layers[1].self_attn
    replacement = Adapter(16, 8, bias=False).double()
    replacement.weight = layer.k_proj.weight
    layer.k_proj = replacement


CHANGES: dict[str, tuple[dict[str, Any], Callable[[Any], object]]] = {
    "scaled positions": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "max_position_embeddings": 64},
        lambda model: None,
    ),
    "biases": ({"attention_bias": True}, lambda model: [each.data.normal_() for each in model.parameters()]),
    "another activation": ({"hidden_act": "gelu"}, lambda model: None),
    "another attention": ({}, lambda model: model.set_attn_implementation("eager")),
    "a changed forward": ({}, changed_forward),
    "an adapter": ({}, adapted),
    "a hook inside": ({}, lambda model: model.base_model.norm.register_forward_hook(lambda m, a, output: 2 * output)),
    "training mode": ({}, lambda model: model.train()),
    "two dtypes": ({}, lambda model: model.base_model.norm.float()),
}


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("name", CHANGES)
def test_anything_unusual_runs_the_forward_of_the_library(tiny: Tiny, kind: str, name: str) -> None:
    changes, alter = CHANGES[name]
    model = tiny(kind, **changes)
    alter(model)
    context = open_context(CausalModel.of(model), 2)
    assert not isinstance(context, LeanContext)
    logits = context.extend(torch.tensor([[1, 2, 3], [4, 0, 0]]), [3, 1]).logits
    assert (logits[0] - afresh(model, [1, 2, 3], 3)).abs().max() < 1e-5


def test_sliding_layers_run_the_forward_of_the_library(tiny: Tiny) -> None:
    model = tiny("qwen3", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    context = open_context(CausalModel.of(model), 1)
    assert isinstance(context, RowwiseContext)
    assert exercise(model, context, [[1, 2, 3, 4, 5, 6]], rounds=6) < 1e-12


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", ["model", "dspark", "eagle3"])
def test_both_forwards_decode_the_same_text(tiny: Tiny, temperature: float, drafter: Any) -> None:
    def decoded(target: PreTrainedModel, draft: PreTrainedModel) -> list[Any]:
        if drafter == "model":
            drafts: Any = ModelDrafter(draft)
        else:
            drafts = random_drafter(target, kind=drafter, dtype=torch.float64)
        requests = [
            Request(
                prompt_token_ids=prompt,
                max_new_tokens=20,
                num_draft_tokens=3,
                sampling=SamplingParams(temperature=temperature),
                seed=index,
            )
            for index, prompt in enumerate([(1, 2, 3), (4,), (5, 6, 7, 8)])
        ]
        return SpeculativeDecoder(target, drafts).generate(requests)

    lean = decoded(tiny("qwen3"), tiny("llama", seed=1))
    assert lean == decoded(own_forward(tiny("qwen3")), own_forward(tiny("llama", seed=1)))


def test_slots_grow_with_the_text(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_context, "SMALLEST", 1)
    model = tiny("llama")
    assert exercise(model, opened(model, 2), [[1], [2, 3]], rounds=14) < 1e-10


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_long_prompts_are_read_in_chunks(tiny: Tiny, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_context, "CHUNK", 3)
    model = tiny(kind)
    assert exercise(model, opened(model, len(PROMPTS)), PROMPTS, rounds=14) < 1e-10
    context = opened(model, 3, layers=(0,))
    beginnings, prompts = [[1, 2], [], [7, 8, 9]], [[3, 4, 5, 6, 7, 8, 9, 10], [11, 12, 13], [1, 2, 3, 4, 5, 6, 7]]
    context.extend(torch.tensor([[1, 2, 0], [0, 0, 0], [7, 8, 9]]), [2, 0, 3])
    padded = torch.tensor([prompt + [0] * (8 - len(prompt)) for prompt in prompts])
    reading = context.extend(padded, [len(prompt) for prompt in prompts], last=True)
    assert reading.features is not None
    for row, text in enumerate(map(operator.add, beginnings, prompts)):
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([text]), output_hidden_states=True).hidden_states[1]
        count = len(prompts[row])
        assert (reading.features[row, :count] - hidden[0, -count:]).abs().max() < 1e-10
        assert (reading.logits[row] - afresh(model, text, 1)).abs().max() < 1e-10


def test_memory_grows_with_the_prompt_and_not_with_its_square(tiny: Tiny) -> None:
    model = tiny("llama", max_position_embeddings=4096)
    masks: list[torch.Size | None] = []

    def watched(self: LeanContext, width: int, counts: Any, skip: int = 0) -> Block:
        block = BLOCK(self, width, counts, skip)
        masks.append(None if block.mask is None else block.mask.shape)
        return block

    text = torch.zeros(2, 1200, dtype=torch.long)
    empty, begun = opened(model, 2), opened(model, 2)
    begun.extend(text[:, :2], [1, 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LeanContext, "_block", watched)
        empty.extend(text, [1200, 700], last=True)
        begun.extend(text, [1200, 700], last=True)
    assert masks == [None, (2, 1, 512, 514), (2, 1, 512, 1026), (2, 1, 176, 1202)]
    assert begun.slots.shape[2] == 1202 + lean_context.LARGEST_RESERVE
