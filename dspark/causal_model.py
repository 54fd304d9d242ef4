"""What the forward of a transformers causal LM understands, asked once, so that the loop can rely on it."""

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from dspark.lean.agreement import agree
from dspark.lean.source import LeanSource
from dspark.reading import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalModel:
    """A causal LM with the facts about its forward that decide how it is cached.

    `cache_keyword` is the name of its cache argument ("cache", or "past_key_values" in older transformers); "" where
    it has none that a later forward can continue. `crops`: that cache can forget its last tokens; a recurrent state can
    not, only a copy made earlier can be restored. `batches_ragged`: rows of unequal length can share one forward, which
    takes explicit positions, a mask, and attention over the whole cache. `max_positions`: its context limit, or None. `lean`
    opens contexts that run a shorter forward, for the architectures that have one.
    """

    model: PreTrainedModel
    vocab_size: int
    max_positions: int | None
    cache_keyword: str
    crops: bool
    batches_ragged: bool
    has_window: bool
    keeps_logits: bool
    takes_use_cache: bool
    lean: LeanSource

    @classmethod
    def of(cls, model: PreTrainedModel) -> "CausalModel":
        """Inspect a model; warns where it must be recomputed without a cache."""
        accepted = inspect.signature(model.forward).parameters
        config = model.config.get_text_config()
        keyword = next((name for name in ("cache", "past_key_values", "cache_params") if name in accepted), "")
        layers: list[Any] = list(DynamicCache(config=model.config).layers) if keyword else []
        has_window = any(getattr(layer, "is_sliding", False) for layer in layers)
        crops = bool(keyword) and all(layer.is_croppable for layer in layers)
        if not crops and not (keyword and _continues(model, keyword)):
            warnings.warn(
                f"{type(model).__name__} has no cache that a forward of several tokens continues; its whole text is "
                "recomputed at every step. Results are the same, only slower.",
                stacklevel=2,
            )
            keyword = ""
        return cls(
            model=model,
            vocab_size=int(config.vocab_size),
            max_positions=getattr(config, "max_position_embeddings", None),
            cache_keyword=keyword,
            crops=crops,
            batches_ragged=crops
            and {"position_ids", "attention_mask"} <= set(accepted)
            and all(type(layer) is DynamicLayer for layer in layers),
            has_window=has_window,
            keeps_logits="logits_to_keep" in accepted,
            takes_use_cache="use_cache" in accepted,
            lean=LeanSource(model),
        )

    @property
    def rewinds(self) -> bool:
        """Whether its contexts can give up what was committed before; a window has forgotten what would come back into it."""
        return self.crops and not self.has_window

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return self.model.device

    def room_beside(self, num_tokens: int) -> int | None:
        """The positions that `num_tokens` tokens leave free; None where there is no context limit."""
        return None if self.max_positions is None else self.max_positions - num_tokens

    def new_cache(self) -> DynamicCache:
        """An empty cache of the right layer types."""
        cache = DynamicCache(config=self.model.config)
        if self.has_window and self.crops:
            cache.activate_past_recording()
        return cache

    def read(
        self, token_ids: Tensor, cache: DynamicCache | None, *, layers: tuple[int, ...] = (), **inputs: Any
    ) -> Reading:
        """One forward over `[B, T]`; fills the cache and taps the outputs of `layers` (-1: the embeddings) on the way."""
        if cache is not None:
            inputs[self.cache_keyword] = cache
        if self.takes_use_cache:
            inputs["use_cache"] = cache is not None
        if layers:
            inputs["output_hidden_states"] = True
        output = self.model(input_ids=token_ids, **inputs)
        features = torch.cat([output.hidden_states[1 + layer] for layer in layers], -1) if layers else None
        return Reading(output.logits, features)

    def require_layers(self, layers: tuple[int, ...]) -> None:
        """Raise ValueError (value, rule, remedy) where a drafter asks for hidden states that this model does not give.

        The output of the last layer is no feature: what models report for it has already passed the final norm.
        """
        num_layers = int(self.model.config.get_text_config().num_hidden_layers)
        if layers and not all(-1 <= layer < num_layers - 1 for layer in layers):
            raise ValueError(
                f"the drafter reads hidden states of layers {list(layers)}; this target has layers -1 (embeddings) to "
                f"{num_layers - 2}, the last excluded. Use the target that the drafter was trained on."
            )


@torch.inference_mode()
def _continues(model: PreTrainedModel, keyword: str) -> bool:
    """Whether two forwards through one cache read the same as one forward without: many recurrent models start anew."""
    token_ids = torch.arange(6, device=model.device)[None] % int(model.config.get_text_config().vocab_size)  # [1, 6]
    cache = DynamicCache(config=model.config)
    try:
        whole = model(input_ids=token_ids, use_cache=False).logits[:, 3:]
        model(input_ids=token_ids[:, :3], use_cache=True, **{keyword: cache})
        continued = model(input_ids=token_ids[:, 3:], use_cache=True, **{keyword: cache}).logits
    except Exception:  # whatever keeps a model from continuing such a cache, recomputation serves it
        return False
    return agree(continued, whole)
