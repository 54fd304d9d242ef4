"""The table model: its rows follow from what the cache holds, by every way to get there."""

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, StaticCache

from verify.models.compat import cache_keyword, forward_logits, new_cache
from verify.models.table import TableLM, row_index

HISTORIES: list[dict[str, Any]] = [{"history": "full"}, {"history": "window", "window": 3}]
VOCAB_SIZE = 5
NUM_ROWS = 4096  # so many that two contexts of a test never share a row


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=HISTORIES, ids=["full", "window"])
def model(request: pytest.FixtureRequest) -> TableLM:
    return table_model(**request.param)


def table_model(
    *, vocab_size: int = VOCAB_SIZE, dtype: torch.dtype = torch.float64, seed: int = 0, **settings: Any
) -> TableLM:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(NUM_ROWS, vocab_size, generator=generator, dtype=torch.float64)
    return TableLM.from_probs(logits.softmax(-1), dtype=dtype, **settings)


def text(*shape: int, vocab_size: int = VOCAB_SIZE) -> Tensor:
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(1))


def expected_logits(model: TableLM, token_ids: Tensor) -> Tensor:
    """Rows after each prefix of one text [T], by the slow reference."""
    rows = [model.row_index(token_ids[: length + 1].tolist()) for length in range(len(token_ids))]
    return model.logits_table[rows]


def test_rows_are_those_of_the_slow_reference(model: TableLM) -> None:
    token_ids = text(3, 12)
    logits = forward_logits(model, token_ids)
    assert torch.equal(logits, torch.stack([expected_logits(model, row) for row in token_ids]))


def test_rows_are_spread_and_depend_on_order() -> None:
    rows = [row_index((a, b, c), num_rows=NUM_ROWS) for a in range(8) for b in range(8) for c in range(8)]
    assert len(set(rows)) > 450  # 512 balls in 4,096 boxes leave 482 on average
    assert row_index((1, 2), num_rows=NUM_ROWS) != row_index((2, 1), num_rows=NUM_ROWS)


def test_window_repeats_contexts_and_full_history_does_not() -> None:
    here, there = (0, 3, 1, 2), (4, 4, 0, 3, 1, 2)
    assert row_index(here, num_rows=NUM_ROWS, window=2) == row_index(there, num_rows=NUM_ROWS, window=2)
    assert row_index(here, num_rows=NUM_ROWS, window=2) != row_index((0, 3, 2, 1), num_rows=NUM_ROWS, window=2)
    assert row_index(here, num_rows=NUM_ROWS) != row_index(there, num_rows=NUM_ROWS)


@pytest.mark.parametrize("cuts", [(1, 2, 3, 4), (5,), (3, 4, 9)])
def test_cached_equals_uncached(model: TableLM, cuts: tuple[int, ...]) -> None:
    token_ids = text(2, 12)
    cache = new_cache(model)
    pieces = [forward_logits(model, piece, cache=cache) for piece in token_ids.tensor_split(cuts, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), forward_logits(model, token_ids))


def test_a_bounded_context_has_no_position_beyond_its_limit(model: TableLM) -> None:
    probs = model.logits_table.softmax(-1)
    bounded = TableLM.from_probs(probs, max_position_embeddings=6, bounded=True)
    token_ids = text(2, 7)
    cache = new_cache(bounded)
    forward_logits(bounded, token_ids[:, :6], cache=cache)
    with pytest.raises(IndexError, match="position 6 is beyond the model's 6 positions"):
        forward_logits(bounded, token_ids[:, 6:], cache=cache)
    forward_logits(TableLM.from_probs(probs, max_position_embeddings=6), token_ids)


def test_rollback_equals_never_having_drafted(model: TableLM) -> None:
    token_ids = text(1, 9)
    cache = new_cache(model)
    forward_logits(model, token_ids[:, :5], cache=cache)
    forward_logits(model, (token_ids[:, 5:8] + 1) % VOCAB_SIZE, cache=cache)
    cache.crop(-3)
    assert torch.equal(forward_logits(model, token_ids[:, 5:], cache=cache), forward_logits(model, token_ids)[:, 5:])


def test_static_cache(model: TableLM) -> None:
    token_ids = text(1, 6)
    cache = StaticCache(config=model.config, max_cache_len=16)
    pieces = [forward_logits(model, piece, cache=cache) for piece in token_ids.tensor_split(2, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), forward_logits(model, token_ids))


def test_left_padding_does_not_matter(model: TableLM) -> None:
    lengths = (7, 3, 1)
    token_ids = text(3, 7)
    mask = torch.stack([torch.arange(7) >= 7 - length for length in lengths]).long()
    cache = new_cache(model)
    logits = forward_logits(model, token_ids, attention_mask=mask, cache=cache)
    mask = torch.cat([mask, torch.ones_like(mask[:, :2])], dim=1)
    more = forward_logits(model, token_ids[:, :2], attention_mask=mask, cache=cache)
    for row, length in enumerate(lengths):
        alone = torch.cat([token_ids[row, 7 - length :], token_ids[row, :2]])
        assert torch.equal(torch.cat([logits[row, 7 - length :], more[row]]), expected_logits(model, alone))


def test_holes_in_the_cache_do_not_matter(model: TableLM) -> None:
    """Rejected drafts stay in the cache, hidden by the mask: how a ragged batch rolls back."""
    token_ids = text(2, 6)
    cache = new_cache(model)
    forward_logits(model, token_ids[:, :4], cache=cache)
    mask = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]])
    positions = torch.tensor([[2, 3], [4, 5]])
    logits = forward_logits(model, token_ids[:, 4:], attention_mask=mask, position_ids=positions, cache=cache)
    short = torch.cat([token_ids[0, :2], token_ids[0, 4:]])
    assert torch.equal(logits[0], expected_logits(model, short)[2:])
    assert torch.equal(logits[1], expected_logits(model, token_ids[1])[4:])


def test_masks_of_four_dimensions(model: TableLM) -> None:
    token_ids = text(1, 6)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    added = torch.zeros(causal.shape, dtype=model.dtype).masked_fill(~causal, torch.finfo(model.dtype).min)
    for mask in (causal, added):
        assert torch.equal(forward_logits(model, token_ids, attention_mask=mask), forward_logits(model, token_ids))


def test_tree_mask_gives_each_branch_its_own_history(model: TableLM) -> None:
    trunk, left, right = [1, 2], 3, 4
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)[None, None]
    logits = forward_logits(
        model, torch.tensor([[*trunk, left, right]]), attention_mask=mask, position_ids=torch.tensor([[0, 1, 2, 2]])
    )
    for slot, leaf in ((2, left), (3, right)):
        assert torch.equal(logits[0, slot], model.logits_table[model.row_index([*trunk, leaf])])


def corrupt(cache: Any, how: str) -> None:
    layer = cache.layers[0]
    if how == "stale key":
        layer.keys[0, 0, 4, 0] += 1
    elif how == "stale value":
        layer.values[0, 0, 4, 0] += 1
    elif how == "zeroed slot":
        layer.keys[0, 0, 4], layer.values[0, 0, 4] = 0, 0
    elif how == "missing slot":
        cache.crop(-1)
    elif how == "duplicated slot":
        layer.keys = torch.cat([layer.keys, layer.keys[:, :, 4:]], dim=2)
        layer.values = torch.cat([layer.values, layer.values[:, :, 4:]], dim=2)
    elif how == "swapped keys":
        layer.keys = layer.keys[:, :, [0, 1, 2, 4, 3]]


@pytest.mark.parametrize(
    "how", ["stale key", "stale value", "zeroed slot", "missing slot", "duplicated slot", "swapped keys", "nothing"]
)
def test_every_error_in_the_cache_shows(model: TableLM, how: str) -> None:
    token_ids = torch.tensor([[0, 3, 1, 4, 2, 0]])
    cache = new_cache(model)
    forward_logits(model, token_ids[:, :5], cache=cache)
    corrupt(cache, how)
    logits = forward_logits(model, token_ids[:, 5:], cache=cache, position_ids=torch.tensor([[5]]))
    same = torch.equal(logits[0], expected_logits(model, token_ids[0])[5:])
    assert same == (how == "nothing")


def test_wrong_position_shows_with_full_history() -> None:
    model = table_model(history="full")
    token_ids = text(1, 4)
    shifted = forward_logits(model, token_ids, position_ids=torch.arange(1, 5)[None])
    assert not (shifted == forward_logits(model, token_ids)).all(-1).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_cache_loses_nothing(dtype: torch.dtype) -> None:
    model = table_model(vocab_size=300, dtype=dtype)
    wide = table_model(vocab_size=300)
    token_ids = text(2, 64, vocab_size=300)
    cache: Any = new_cache(model)
    pieces = [forward_logits(model, piece, cache=cache) for piece in token_ids.tensor_split(4, dim=1)]
    assert cache.layers[0].keys.dtype == dtype
    assert torch.equal(torch.cat(pieces, dim=1), forward_logits(wide, token_ids).to(dtype))


def test_large_tokens_and_positions() -> None:
    probs = torch.full((NUM_ROWS, 2), 0.5)
    model = TableLM.from_probs(probs, dtype=torch.bfloat16)
    model.logits_table.data[:, 0] = torch.arange(NUM_ROWS)  # the row's own number, in part
    token_ids = [151_935, 70_000, 256]
    cache = new_cache(model)
    forward_logits(model, torch.tensor([token_ids[:2]]), cache=cache)
    logits = forward_logits(model, torch.tensor([token_ids[2:]]), cache=cache)
    assert torch.equal(logits[0, 0], model.logits_table[model.row_index(token_ids)])
    far = forward_logits(model, torch.tensor([[1]]), position_ids=torch.tensor([[1_000_000]]))
    near = forward_logits(model, torch.tensor([[1]]), position_ids=torch.tensor([[16_960]]))
    assert not torch.equal(far, near)  # 1,000,000 and 16,960 agree in their last two bytes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_probability_zero_is_exactly_zero(dtype: torch.dtype) -> None:
    model = TableLM.from_probs([[0.25, 0.0, 0.75]], dtype=dtype)
    probs = forward_logits(model, torch.tensor([[0]]))[0, 0].softmax(-1)
    assert probs[1] == 0
    assert torch.allclose(probs.double(), torch.tensor([0.25, 0, 0.75]).double(), atol=float(torch.finfo(dtype).eps))


def test_probabilities_survive_in_float64() -> None:
    probs = torch.rand(8, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(-1)
    assert (TableLM.from_probs(probs).logits_table.softmax(-1) - probs).abs().max() < 1e-15


@pytest.mark.parametrize("probs", [[[0.5, 0.6]], [[-0.5, 1.5]], [[float("nan"), 1.0]], [0.5, 0.5]])
def test_rows_that_are_no_law_are_refused(probs: Any) -> None:
    with pytest.raises(ValueError, match="every row must be non-negative with sum 1"):
        TableLM.from_probs(probs)
    with pytest.raises(ValueError, match="positive window"):
        TableLM.from_probs([[1.0]], history="window")


def test_checkpoint_round_trip(model: TableLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert isinstance(loaded, TableLM)
    assert loaded.dtype == torch.float64
    token_ids = text(1, 8)
    assert torch.equal(forward_logits(loaded, token_ids), forward_logits(model, token_ids))
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32
    narrow = copy.deepcopy(model).to(torch.float32)  # type: ignore[arg-type]
    assert torch.equal(forward_logits(narrow, token_ids), forward_logits(model, token_ids).float())


def test_generate_of_transformers(model: TableLM) -> None:
    draft = table_model(seed=3)
    prompt = text(1, 4)
    expected = prompt[0].tolist()
    for _ in range(8):
        expected.append(int(model.logits_table[model.row_index(expected)].argmax()))
    common: dict[str, Any] = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8}
    for settings in ({}, {"assistant_model": draft}, {"prompt_lookup_num_tokens": 2}, {"use_cache": False}):
        assert model.generate(prompt, do_sample=False, **settings, **common)[0].tolist() == expected
    for settings in ({}, {"assistant_model": draft}, {"prompt_lookup_num_tokens": 2}):
        assert model.generate(prompt, do_sample=True, **settings, **common).shape == (1, 12)


def test_generate_in_a_left_padded_batch(model: TableLM) -> None:
    prompts = text(2, 4)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    together = model.generate(prompts, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    alone = model.generate(prompts[1:, 2:], attention_mask=mask[1:, 2:], max_new_tokens=6, do_sample=False)
    assert together[1, 4:].tolist() == alone[0, 2:].tolist()


def test_stops_at_eos() -> None:
    model = table_model(eos_token_id=2)
    prompt = text(1, 2)
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False)[
        0
    ].tolist()
    assert output[-1] == 2
    assert 2 not in output[2:-1]


def test_other_outputs(model: TableLM) -> None:
    token_ids = text(2, 6)
    output = model(token_ids, output_hidden_states=True, logits_to_keep=2)
    assert torch.equal(output.logits, forward_logits(model, token_ids)[:, -2:])
    chosen = model(token_ids, logits_to_keep=torch.tensor([0, 3])).logits
    assert torch.equal(chosen, forward_logits(model, token_ids)[:, [0, 3]])
    assert [tuple(each.shape) for each in output.hidden_states] == [(2, 6, 8)] * 2
    assert not torch.equal(output.hidden_states[1][0, 1], output.hidden_states[1][0, 2])
    assert isinstance(model(token_ids, return_dict=False), tuple)
    with pytest.raises(ValueError, match="one of cache and past_key_values"):
        model(token_ids, cache=new_cache(model), past_key_values=new_cache(model))


def test_cache_goes_under_the_name_of_the_library(model: TableLM) -> None:
    output = model(text(1, 3), use_cache=True)
    assert getattr(output, cache_keyword(model)).get_seq_length() == 3


def test_forward_is_fast() -> None:
    """The exact law runs it hundreds of thousands of times. Best of many, as the machine may be busy."""
    model = table_model(vocab_size=3)
    cache = new_cache(model)
    forward_logits(model, text(1, 8, vocab_size=3), cache=cache)
    token_ids = text(1, 4, vocab_size=3)
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        forward_logits(model, token_ids, cache=cache)
        seconds.append(time.perf_counter() - start)
        cache.crop(-4)
    assert min(seconds) < 1e-3


def test_what_is_watched_in_a_forward(model: TableLM) -> None:
    """The judge of exact laws watches every torch function: it pays for those on a mask, which it must see, and no others."""
    token_ids, seen = text(1, 6), []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        model(input_ids=token_ids, use_cache=False)
    assert seen == []
    with Watch():
        model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids), use_cache=False)
    assert torch.Tensor.bool in seen
