"""The short forward of one model, kept while its weights stay what they are."""

import warnings
from collections.abc import Hashable

import torch
from transformers import PreTrainedModel

from dspark.lean.agreement import agree
from dspark.lean.context import LeanContext
from dspark.lean.forward import LeanForward
from dspark.lean.recognition import standard_weights


class LeanSource:
    """Opens contexts that run the short forward of a model, where that is exact."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.forward: LeanForward | None = None
        self.weights: Hashable = None

    def open(self, num_rows: int, *, cache_keyword: str, taps: tuple[int, ...]) -> LeanContext | None:
        """An empty context, or None where the model must run its own forward. Asked anew for every batch: models are changed.

        The first context of every set of weights costs a forward of the model, with which the short one must agree; warns
        where it does not.
        """
        weights = standard_weights(self.model)
        if weights is None:
            self.forward = self.weights = None
            return None
        if weights != self.weights:
            forward = LeanForward(self.model)
            agrees = _agree(self.model, forward)
            if not agrees:
                warnings.warn(
                    f"the {type(self.model).__name__} of this version of transformers computes something else than dspark's "
                    "short forward; its own is used. Results are right, only slower.",
                    stacklevel=2,
                )
            self.forward, self.weights = forward if agrees else None, weights
        if self.forward is None:
            return None
        return LeanContext(self.model, self.forward, num_rows, cache_keyword=cache_keyword, taps=taps)


@torch.inference_mode()
def _agree(model: PreTrainedModel, forward: LeanForward) -> bool:
    """Whether both forwards read a few tokens the same; weights that give no finite logits tell nothing."""
    token_ids = torch.arange(6, device=model.device)[None] % int(model.config.vocab_size)  # [1, 6]
    theirs = (
        type(model).forward(model, input_ids=token_ids, use_cache=False).logits
    )  # past the hooks: this is no decoding
    ours = LeanContext(model, forward, 1, cache_keyword="cache").unhooked(token_ids).logits
    return agree(ours, theirs) or not bool(theirs.isfinite().any())
