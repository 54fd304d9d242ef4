"""A causal LM whose next-token law is a row of a table, chosen by what its cache really holds."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from verify.models.compat import OUTPUT_CACHE_FIELD

History: TypeAlias = Literal["full", "window"]

IMPOSSIBLE_LOGIT = -1e4
"""Logit of a token of probability zero: finite, and exactly zero after softmax in every dtype."""

# A slot of the cache is 8 bytes: 3 of token id, 3 of position, and a mark that a zeroed slot lacks. One byte is one
# number of the key, so a cache in bfloat16 (integers exact up to 256) holds it without loss.
_BYTES = 8
_FIELD_BITS = 24
_FIELD_MASK = (1 << _FIELD_BITS) - 1
_MARK = 1 << (2 * _FIELD_BITS)

# Odd 64-bit multipliers of the splitmix64 generator (Steele, Lea and Flood 2014), as signed integers.
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)


class TableConfig(PreTrainedConfig):
    """Shape of a `TableLM`: `num_rows` laws over `vocab_size` tokens, and what of the history chooses the row."""

    model_type = "verify_table"

    vocab_size: int = 3
    num_rows: int = 16
    history: str = "full"
    window: int = 0
    max_position_embeddings: int = 4096
    bounded: bool = False
    hidden_size: int = _BYTES
    head_dim: int = _BYTES
    num_hidden_layers: int = 1
    num_attention_heads: int = 1
    num_key_value_heads: int = 1
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


class TableLM(PreTrainedModel, GenerationMixin):
    """A transformers causal LM: logits are the row of `logits_table` [num_rows, V] that a hash of the visible cache picks.

    One layer, one head, a real cache. With history "full" the row depends on every (token, position) entry that the query
    sees; with "window" on the last `window` tokens by their distance from the query, so contexts repeat. A stale, missing,
    duplicated or misplaced entry therefore changes the logits. A query sees the slots up to its own, less those that the
    mask hides; a 4D mask decides alone. In a `bounded` model a position beyond the context limit raises IndexError, as a table of
    learned positions does (on the CPU only: elsewhere to look would mean to wait for the device).
    """

    config_class = TableConfig
    base_model_prefix = ""
    _no_split_modules: list[str] = []  # noqa: RUF012 - the library reads a list

    def __init__(self, config: TableConfig) -> None:
        super().__init__(config)
        if config.history not in ("full", "window") or (config.history == "window") != (config.window > 0):
            raise ValueError(
                f"history is {config.history!r} with window {config.window}; it must be 'full' with window 0 or 'window' "
                "with a positive window"
            )
        # Reading an attribute of the library's config costs more than hashing a token.
        self.num_rows, self.window = config.num_rows, config.window
        self.num_positions = config.max_position_embeddings if config.bounded else None
        self.logits_table = nn.Parameter(torch.zeros(config.num_rows, config.vocab_size), requires_grad=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_probs(
        cls,
        probs: Tensor | Sequence[Sequence[float]],
        *,
        history: History = "full",
        window: int = 0,
        dtype: torch.dtype = torch.float64,
        max_position_embeddings: int = 4096,
        bounded: bool = False,
        eos_token_id: int | None = None,
    ) -> "TableLM":
        """Build a model from rows of probabilities [num_rows, V]; raises ValueError unless each row is a law."""
        table = torch.as_tensor(probs, dtype=torch.float64)  # [num_rows, V]
        if table.ndim != 2 or bool((table < 0).any()) or not bool(((table.sum(-1) - 1).abs() < 1e-9).all()):
            raise ValueError(
                f"probs has shape {tuple(table.shape)} and row sums {table.sum(-1).tolist()}; every row must be non-negative "
                "with sum 1; normalise it in float64"
            )
        num_rows, vocab_size = table.shape
        config = cls.config_class(
            vocab_size=vocab_size,
            num_rows=num_rows,
            history=history,
            window=window,
            max_position_embeddings=max_position_embeddings,
            bounded=bounded,
            eos_token_id=eos_token_id,
            pad_token_id=eos_token_id,
        )
        model = cls(config)
        logits = torch.where(table > 0, table.log(), IMPOSSIBLE_LOGIT)
        model.logits_table.data = logits.to(dtype)
        model.config.dtype = dtype
        model.train(False)
        return model

    def row_index(self, token_ids: Sequence[int]) -> int:
        """Row of `logits_table` after the uncached prefix `token_ids` [N] at positions 0 to N-1."""
        config = self.config
        return row_index(token_ids, num_rows=config.num_rows, window=config.window)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B, T, V] for `input_ids` [B, T] that continue the cache.

        `attention_mask` is [B, L] over the cache with the new slots (1 = visible; slots beyond its end are hidden) or
        [B, 1, T, L], boolean (True = visible) or added to scores (0 = visible). `position_ids` [B, T] default to the count
        of visible slots before each, or to slot numbers without a 2D mask.
        """
        if input_ids is None or (cache is not None and past_key_values is not None):
            raise ValueError("a TableLM needs input_ids, and one of cache and past_key_values at most")
        cache = past_key_values if cache is None else cache
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        num_past = 0 if cache is None else int(cache.get_seq_length())
        # Nothing here draws. A judge that watches every torch call for randomness pays for each, so they are not watched, unless
        # there is a mask, which may come from anywhere.
        with torch._C.DisableTorchFunction() if attention_mask is None else nullcontext():
            batch, length = input_ids.shape
            slots = torch.arange(num_past, num_past + length, device=input_ids.device)  # [T]
            if position_ids is None:
                position_ids = _default_positions(attention_mask, slots)  # [B, T] or [1, T]
            positions = position_ids.expand(batch, length)
            codes, checks, embedded = self._remember(
                input_ids, positions, cache
            )  # [B, L], [B, L], [B, 1, L, 8] or None
            visible = _visible(attention_mask, slots, codes.shape[1])  # [B or 1, 1 or T, L]
            state = self._state(codes, checks, positions, visible)  # [B, T]
            if isinstance(logits_to_keep, Tensor):
                kept = state[:, logits_to_keep]
            else:
                kept = state[:, -logits_to_keep:] if logits_to_keep else state
            logits = self.logits_table[kept % self.num_rows]  # [B, T, V]

            hidden_states = None
            if output_hidden_states:
                first = _to_bytes(input_ids + _MARK, logits.dtype) if embedded is None else embedded[:, :, -length:]
                hidden_states = (first[:, 0], _to_bytes(state, logits.dtype)[:, 0])  # each [B, T, 8]
        fields: dict[str, Any] = {"logits": logits, "hidden_states": hidden_states, OUTPUT_CACHE_FIELD: cache}
        output = CausalLMOutputWithPast(**fields)
        return output.to_tuple() if kwargs.get("return_dict") is False else output

    def _remember(
        self, input_ids: Tensor, positions: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put the new slots [B, T] into the cache; keys and values of all its slots as words [B, L], and the keys as they are."""
        with torch._C.DisableTorchFunction():
            if self.num_positions is not None and not positions.is_cuda:
                last = int(positions.max())
                if last >= self.num_positions:
                    raise IndexError(f"position {last} is beyond the model's {self.num_positions} positions")
            codes = input_ids + ((positions & _FIELD_MASK) << _FIELD_BITS) + _MARK  # [B, T]
            if cache is None:
                return codes, _mix(codes), None
            dtype = self.logits_table.dtype
            keys, values = cache.update(_to_bytes(codes, dtype), _to_bytes(_mix(codes), dtype), 0)  # [B, 1, L, 8]
            return _from_bytes(keys), _from_bytes(values), keys

    def _state(self, codes: Tensor, checks: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Hash what each query [B, T] sees of the slots, whose keys and values are `codes` and `checks` [B, L]."""
        with torch._C.DisableTorchFunction():
            if not self.window:
                # A product, so that a key with the value of another slot shows.
                entries = (checks * (2 * codes + 1) + _INCREMENT)[:, None]  # [B, 1, L]
            else:
                tokens = codes & _FIELD_MASK  # [B, L]
                distance = positions[:, :, None] - ((codes >> _FIELD_BITS) & _FIELD_MASK)[:, None]  # [B, T, L]
                visible = visible & (distance >= 0) & (distance < self.window)
                stale = (checks - _mix(codes)) * (2 * codes + 1)  # [B, L], zero while a slot's value belongs to its key
                entries = _mix(tokens[:, None] + (distance << _FIELD_BITS) + _MARK) + stale[:, None]  # [B, T, L]
            return _mix((entries * visible).sum(-1))

    def get_input_embeddings(self) -> nn.Module:
        """Refuse: token ids go into the cache as they are."""
        raise NotImplementedError("a TableLM has no embeddings; hand it input_ids")

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the table alone: there is nothing random in it."""


def row_index(token_ids: Sequence[int], *, num_rows: int, window: int = 0) -> int:
    """Row that a `TableLM` picks after the plain prefix `token_ids` [N]; `window` 0 means the full history.

    In Python integers, and apart from the model's own path on purpose: it is what that path is tested against.
    """
    total = 0
    for position, token in enumerate(token_ids):
        code = token + (position << _FIELD_BITS) + _MARK
        distance = len(token_ids) - 1 - position
        if not window:
            total += _mix_int(code) * (2 * code + 1) + _INCREMENT
        elif distance < window:
            total += _mix_int(token + (distance << _FIELD_BITS) + _MARK)
    return _mix_int(total) % num_rows


def _wrap(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _mix_int(value: int) -> int:
    value = _wrap(value + _INCREMENT)
    value = _wrap((value ^ (value >> 30)) * _MULTIPLIER_1)
    value = _wrap((value ^ (value >> 27)) * _MULTIPLIER_2)
    return value ^ (value >> 31)


def _mix(value: Tensor) -> Tensor:
    """Scatter 64 bits over 64 bits; int64 arithmetic wraps around, shifts keep the sign."""
    value = value + _INCREMENT
    value = (value ^ (value >> 30)) * _MULTIPLIER_1
    value = (value ^ (value >> 27)) * _MULTIPLIER_2
    return value ^ (value >> 31)


def _to_bytes(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Write [B, T] words of 64 bits as [B, 1, T, 8] numbers from 0 to 255."""
    batch, length = words.shape
    return words.contiguous().view(torch.uint8).view(batch, 1, length, _BYTES).to(dtype)


def _from_bytes(states: Tensor) -> Tensor:
    """Read [B, 1, L, 8] numbers from 0 to 255 as [B, L] words of 64 bits."""
    return states.to(torch.uint8).contiguous().view(torch.int64)[:, 0, :, 0]


def _default_positions(attention_mask: Tensor | None, slots: Tensor) -> Tensor:
    """Positions [B, T] (or [1, T]) of the new slots [T] where the caller gave none."""
    if attention_mask is None or attention_mask.ndim != 2:
        return slots[None]
    counted = attention_mask.long().cumsum(-1) - 1  # [B, L]
    return counted.clamp(min=0)[:, slots.clamp(max=counted.shape[1] - 1)]


def _visible(attention_mask: Tensor | None, slots: Tensor, num_slots: int) -> Tensor:
    """Whether the query at each of `slots` [T] sees each slot: [B or 1, T, L] of bool."""
    if attention_mask is not None and attention_mask.ndim == 4:
        seen = attention_mask[:, 0, :, :num_slots]
        return seen > -1 if seen.is_floating_point() else seen.bool()
    causal = torch.arange(num_slots, device=slots.device) <= slots[:, None]  # [T, L]
    if attention_mask is None:
        return causal[None]
    padding = attention_mask[:, :num_slots].bool()  # [B, L]
    if padding.shape[1] < num_slots:
        padding = nn.functional.pad(padding, (0, num_slots - padding.shape[1]))
    return causal & padding[:, None]


AutoConfig.register("verify_table", TableConfig, exist_ok=True)
AutoModelForCausalLM.register(TableConfig, TableLM, exist_ok=True)
