"""The only place in `verify` that knows how versions of transformers differ."""

import inspect
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

OUTPUT_CACHE_FIELD = (
    "cache" if any(each.name == "cache" for each in fields(CausalLMOutputWithPast)) else "past_key_values"
)
"""Name of the cache in the library's outputs: `past_key_values` up to 5.17, `cache` in 5.24."""


def cache_keyword(model: PreTrainedModel) -> str:
    """Name of the argument through which the model's forward takes its cache.

    Raises ValueError for a model without such an argument (recurrent models, for instance).
    """
    parameters = inspect.signature(model.forward).parameters
    for name in (OUTPUT_CACHE_FIELD, "cache", "past_key_values"):
        if name in parameters:
            return name
    raise ValueError(
        f"{type(model).__name__}.forward takes {', '.join(parameters)}; a decoder needs `cache` or `past_key_values`; "
        "use a causal LM of transformers 5.17 or newer"
    )


def new_cache(model: PreTrainedModel) -> Cache:
    """Return an empty cache that fits the model."""
    return DynamicCache(config=model.config)


def forward_logits(
    model: PreTrainedModel,
    token_ids: Tensor,
    *,
    cache: Cache | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Tensor:
    """Logits of the next token after each of `token_ids` [B, T], as [B, T, V] without gradient.

    With a cache, `token_ids` continue it and are added to it; without one, nothing is kept.
    """
    arguments: dict[str, Any] = {"use_cache": cache is not None}
    if cache is not None:
        arguments[cache_keyword(model)] = cache
    if attention_mask is not None:
        arguments["attention_mask"] = attention_mask
    if position_ids is not None:
        arguments["position_ids"] = position_ids
    with torch.no_grad():
        logits: Tensor = model(input_ids=token_ids, **arguments).logits  # [B, T, V]
    return logits
