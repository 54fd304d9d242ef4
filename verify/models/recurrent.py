"""A table model with a recurrent state beside its key-value cache: what has entered the state cannot be cropped out of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from verify.models.table import _MULTIPLIER_1, TableConfig, TableLM, _from_bytes, _mix, _mix_int, _wrap, row_index

RECURRENT = 1


class RecurrentTableConfig(TableConfig):
    """A hybrid model as the library knows them: one layer of attention and one of linear attention."""

    model_type = "verify_recurrent_table"

    num_hidden_layers: int = 2
    layer_types: list[str] | tuple[str, ...] | None = ("full_attention", "linear_attention")


class RecurrentTableLM(TableLM):
    """A `TableLM` whose row depends on a recurrent state too: 64 bits, hashed with every token that is read.

    The state is kept in a linear attention layer of the cache. Like those of real models it does not depend on positions, only
    on the order of reading, and a slot that a 2D mask hides leaves it as it was. So a token that was read and rejected, read
    twice or not at all changes every later row, though keys and values may be right.
    """

    config_class = RecurrentTableConfig

    def row_index(self, token_ids: Sequence[int]) -> int:
        """As `TableLM.row_index`, in Python integers."""
        state = 0
        for token in token_ids:
            state = _mix_int(_wrap(state * _MULTIPLIER_1) + token + 1)
        attended = row_index(token_ids, num_rows=1 << 64, window=self.config.window)
        return _mix_int(_wrap(attended + state)) % self.num_rows

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
        """As `TableLM.forward`; a 4D mask raises ValueError, because a state has no branches."""
        if attention_mask is not None and attention_mask.ndim == 4:
            raise ValueError(
                "attention_mask has 4 dimensions; a recurrent state reads one token after the other. Give a 2D mask"
            )
        cache = past_key_values if cache is None else cache
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        output: Any = super().forward(
            input_ids, attention_mask, position_ids, cache=cache, use_cache=False, output_hidden_states=True
        )
        assert input_ids is not None  # the table has refused its absence
        attended = _from_bytes(output.hidden_states[-1][:, None])  # [B, T]
        states = self._read(input_ids, attention_mask, cache)  # [B, T]
        rows = _mix(attended + states)
        if isinstance(logits_to_keep, Tensor):
            rows = rows[:, logits_to_keep]
        elif logits_to_keep:
            rows = rows[:, -logits_to_keep:]
        output.logits = self.logits_table[rows % self.num_rows]  # [B, T, V]
        if not output_hidden_states:
            output.hidden_states = None
        answer: CausalLMOutputWithPast | tuple[Any, ...] = output
        return output.to_tuple() if kwargs.get("return_dict") is False else answer

    def _read(self, input_ids: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Tensor:
        """The state after each token, `[B, T]`; the last one is left in the cache."""
        batch, length = input_ids.shape
        layers: list[Any] = [] if cache is None else list(cache.layers)
        before = layers[RECURRENT].recurrent_states[0] if layers else None
        state = input_ids.new_zeros(batch) if before is None else before[:, 0]
        seen = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            seen = attention_mask[:, attention_mask.shape[1] - length :].bool()
        states = []
        with torch._C.DisableTorchFunction():
            for place in range(length):
                state = torch.where(seen[:, place], _mix(state * _MULTIPLIER_1 + input_ids[:, place] + 1), state)
                states.append(state)
        if cache is not None:
            cache.update_recurrent_state(state[:, None].clone(), RECURRENT)
        return torch.stack(states, 1)


AutoConfig.register("verify_recurrent_table", RecurrentTableConfig, exist_ok=True)
AutoModelForCausalLM.register(RecurrentTableConfig, RecurrentTableLM, exist_ok=True)
