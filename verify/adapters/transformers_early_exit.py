"""transformers' early exit: the target drafts for itself, with its first layers only.

A table model has one layer, so there the pair is dressed as one model of two: what leaves after the first is the draft.
"""

import copy
from collections import OrderedDict
from dataclasses import replace
from functools import wraps
from typing import Any

from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel

from verify.adapters.transformers import CLAIMS, AssistedGeneration, constant_schedule
from verify.models.table import TableConfig, TableLM
from verify.protocol import ModelPair

EXIT_SHARE = 5 / 6
"""Part of a real target's layers that draft; fewer agree with the rest too rarely to show more than rejections."""


class EarlyExitTable(PreTrainedModel, GenerationMixin):
    """A table pair as one model: the draft's law where `num_hidden_layers` is 1, the target's where it is 2."""

    config_class = TableConfig
    base_model_prefix = "model"

    def __init__(self, models: ModelPair) -> None:
        config = TableConfig(**models.target.config.to_dict() | {"num_hidden_layers": 2})
        super().__init__(config)
        self.model = nn.Module()  # what the library takes for the body, whose layers it counts down
        self.model.config = config
        draft: Any = copy.copy(models.draft)
        draft.num_positions = None  # one model has one context
        self.rows = nn.ModuleList([draft, models.target])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        **options: Any,
    ) -> Any:
        """The output of the model that the number of layers names; both keep their slots in the cache's first layer."""
        rows = self.rows[self.model.config.num_hidden_layers - 1]
        options |= {"attention_mask": attention_mask, "position_ids": position_ids}
        return rows(input_ids, cache=past_key_values if cache is None else cache, **options)


def make_decoder(models: ModelPair) -> AssistedGeneration:
    """Early exit after five sixths of a real target's layers; of a table pair, after the draft."""
    tables = isinstance(models.target, TableLM)
    target = EarlyExitTable(models) if tables else _drafting_unseen(models.target)
    num_layers = max(1, int(target.config.num_hidden_layers * EXIT_SHARE))

    def speculation(count: int) -> dict[str, Any]:
        constant_schedule(target, count)
        return {"assistant_early_exit": num_layers}

    return AssistedGeneration(
        models,
        speculation=speculation,
        target=target,
        capabilities=replace(CLAIMS, draft_model=tables, standard_acceptance=tables),
    )


def _drafting_unseen(target: PreTrainedModel) -> PreTrainedModel:
    """The target itself, but its drafting forwards pass by the hooks of whoever observes it: they verify nothing."""
    view = copy.copy(target)
    view._forward_hooks, view._forward_pre_hooks = OrderedDict(), OrderedDict()
    num_layers = int(target.config.num_hidden_layers)

    @wraps(target.forward)
    def forward(*args: Any, **inputs: Any) -> Any:
        drafts = view.config.num_hidden_layers < num_layers
        return target.forward(*args, **inputs) if drafts else target(*args, **inputs)

    view.forward = forward
    return view
