"""What a model has read of one row, of which the newest tokens may be a tree."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from dspark.causal_model import CausalModel


class TreeContext:
    """The text in a key-value cache, and behind it open tokens that see the text and their own ancestors only.

    `length` tokens are text. Open tokens are numbered from 0 in the order of reading. Needs a model that takes explicit
    positions and a 4D mask over its whole cache; raises ValueError for any other.
    """

    def __init__(self, model: CausalModel) -> None:
        if not model.batches_ragged:
            raise ValueError(
                f"{type(model.model).__name__} takes no mask over its whole cache; a draft tree needs one. Draft blocks instead."
            )
        self.model = model
        self.cache: DynamicCache = model.new_cache()
        self.length = 0
        self.paths: list[list[int]] = []

    def append(self, token_ids: Tensor) -> Tensor:
        """Read text, `[1, T]`; logits after it, `[1, V]`. No token may be open."""
        inputs: dict[str, Any] = {"logits_to_keep": 1} if self.model.keeps_logits else {}
        logits = self.model.read(token_ids, self.cache, **inputs).logits
        self.length += token_ids.shape[1]
        return logits[:, -1]

    def branch(self, token_ids: Tensor, parents: Sequence[int]) -> Tensor:
        """Open tokens `[1, T]` below open tokens (-1: below the text); logits after each, `[1, T, V]`."""
        first = len(self.paths)
        for parent in parents:
            self.paths.append([*(self.paths[parent] if parent >= 0 else []), len(self.paths)])
        visible = torch.zeros(len(parents), self.length + len(self.paths), dtype=torch.bool)  # [T, L]
        visible[:, : self.length] = True
        for row, path in enumerate(self.paths[first:]):
            visible[row, [self.length + place for place in path]] = True
        # Added to scores, not boolean: eager attention adds whatever it is given.
        dtype = self.model.model.dtype
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)[None, None]
        positions = torch.tensor([[self.length + len(path) - 1 for path in self.paths[first:]]])  # [1, T]
        device = self.model.device
        inputs: dict[str, Any] = {"attention_mask": mask.to(device), "position_ids": positions.to(device)}
        return self.model.read(token_ids, self.cache, **inputs).logits

    def commit(self, kept: Sequence[int]) -> None:
        """Make one branch of open tokens, from the text downwards, text; forget the others."""
        removed = len(self.paths) - len(kept)
        if list(kept) == list(range(len(kept))):
            if removed:
                self.cache.crop(-removed)
        else:
            slots = [*range(self.length), *(self.length + place for place in kept)]
            index = torch.tensor(slots, device=self.model.device)
            layers: list[Any] = self.cache.layers
            for layer in layers:
                layer.keys, layer.values = (states.index_select(2, index) for states in (layer.keys, layer.values))
        self.length += len(kept)
        self.paths = []
