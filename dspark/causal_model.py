"""What the forward of a transformers causal LM understands, asked once, so that the loop can rely on it."""

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalModel:
    """A causal LM with the facts about its forward that decide how it is cached.

    `cache_keyword` is the name of its cache argument ("cache", or "past_key_values" in older transformers); "" where
    it has none that can be rolled back. `batches_ragged`: rows of unequal length can share one forward, which takes
    explicit positions, a mask, and attention over the whole cache. `max_positions`: its context limit, or None.
    """

    model: PreTrainedModel
    vocab_size: int
    max_positions: int | None
    cache_keyword: str
    batches_ragged: bool
    has_window: bool
    keeps_logits: bool
    takes_use_cache: bool

    @classmethod
    def of(cls, model: PreTrainedModel) -> "CausalModel":
        """Inspect a model; warns where it must be recomputed without a cache."""
        accepted = inspect.signature(model.forward).parameters
        config = model.config.get_text_config()
        keyword = next((name for name in ("cache", "past_key_values") if name in accepted), "")
        layers: list[Any] = list(DynamicCache(config=model.config).layers) if keyword else []
        has_window = any(getattr(layer, "is_sliding", False) for layer in layers)
        if not keyword or not all(layer.is_croppable for layer in layers):
            warnings.warn(
                f"{type(model).__name__} has no key-value cache that can be rolled back; its whole text is recomputed "
                "at every step. Results are the same, only slower.",
                stacklevel=2,
            )
            keyword = ""
        return cls(
            model=model,
            vocab_size=int(config.vocab_size),
            max_positions=getattr(config, "max_position_embeddings", None),
            cache_keyword=keyword,
            batches_ragged=bool(keyword)
            and {"position_ids", "attention_mask"} <= set(accepted)
            and all(type(layer) is DynamicLayer for layer in layers),
            has_window=has_window,
            keeps_logits="logits_to_keep" in accepted,
            takes_use_cache="use_cache" in accepted,
        )

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return self.model.device

    def new_cache(self) -> DynamicCache:
        """An empty cache of the right layer types."""
        cache = DynamicCache(config=self.model.config)
        if self.has_window:
            cache.activate_past_recording()
        return cache

    def logits(self, token_ids: Tensor, cache: DynamicCache | None, **inputs: Any) -> Tensor:
        """One forward, `[B, T]` to `[B, T or fewer kept, V]`; fills the cache."""
        if cache is not None:
            inputs[self.cache_keyword] = cache
        if self.takes_use_cache:
            inputs["use_cache"] = cache is not None
        logits: Tensor = self.model(input_ids=token_ids, **inputs).logits
        return logits
