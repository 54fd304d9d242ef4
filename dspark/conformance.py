"""The adapter that hands this decoder to a conformance suite; structural typing, no import of the suite."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from dspark.decoder import SpeculativeDecoder
from dspark.drafters.model import ModelDrafter
from dspark.drafters.ngram import NgramDrafter
from dspark.drafters.protocol import Drafter
from dspark.request import DecodingRequest, Generation

CLAIMED = (
    "greedy",
    "sampled",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "forbidden_tokens",
    "allowed_tokens",
    "min_new_tokens",
    "stop_tokens",
    "batch",
    "mixed_sampling",
    "seeds",
    "seeds_per_request",
    "zero_draft_tokens",
    "roles",
    "record",
    "streaming",
)
CLAIMED_WITH_A_DRAFT_MODEL = ("draft_model", "draft_vocab_mismatch", "standard_acceptance")


class Models(Protocol):
    """What the adapter reads of the suite's pair."""

    @property
    def target(self) -> PreTrainedModel: ...  # noqa: D102
    @property
    def draft(self) -> PreTrainedModel: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102


class ConformingDecoder:
    """A `SpeculativeDecoder` with its claims."""

    def __init__(self, models: Models, drafter: Drafter, claims: Sequence[str]) -> None:
        self.decoder = SpeculativeDecoder(models.target, drafter)
        self.capabilities: Mapping[str, Any] = {
            **dict.fromkeys(claims, True),
            "logprobs": "processed",
            "arithmetic": "float64" if models.dtype == torch.float64 else "float32",
        }

    def generate(self, requests: Sequence[DecodingRequest]) -> list[Generation]:
        """Answer the requests as one batch."""
        return self.decoder.generate(requests)

    def stream(self, request: DecodingRequest) -> Iterator[list[int]]:
        """Yield the output round by round."""
        return self.decoder.stream(request)


def make_decoder(models: Models) -> ConformingDecoder:
    """The classic two-model decoder with sampled drafts."""
    return ConformingDecoder(models, ModelDrafter(models.draft), CLAIMED + CLAIMED_WITH_A_DRAFT_MODEL)


def make_ngram_decoder(models: Models) -> ConformingDecoder:
    """Prompt lookup; the draft model is not used."""
    return ConformingDecoder(models, NgramDrafter(), CLAIMED)
