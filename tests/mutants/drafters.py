"""Planted mistakes in what a drafter reads (HID, POS): lossless, so no check may fail; what falls is acceptance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dspark.conformance import make_dflash_decoder, make_eagle3_decoder
from dspark.drafters.dspark import DSparkDrafter, DSparkDraftSession
from dspark.drafters.eagle3 import Eagle3DraftSession
from dspark.networks.dspark import DSparkNetwork
from tests.mutants.mutant import EXACT, Mutant

observe = DSparkDraftSession.observe
block = DSparkNetwork.block
catch_up = Eagle3DraftSession._catch_up


def token_not_shifted(self: Eagle3DraftSession, token_ids: Sequence[Sequence[int]]) -> Tensor:
    """A feature is paired with its own token instead of the one behind it."""
    return catch_up(self, [[ids[0], *ids[:-1]] for ids in token_ids])


def only_the_prompt(self: DSparkDraftSession, **keywords: Any) -> None:
    """After a round the context is not extended by what the target has read."""
    if max(self.states.lengths) == 0:
        observe(self, **keywords)


@property  # type: ignore[misc]
def layer_before(self: DSparkDrafter) -> tuple[int, ...]:
    """The tap of layer k holds the output of layer k - 1."""
    return tuple(max(-1, layer - 1) for layer in self.network.feature_layers)


def masks_only(self: DSparkNetwork, anchor_token_ids: Tensor, *arguments: Any) -> Tensor:
    """The block begins with a mask token instead of the anchor."""
    return block(self, torch.full_like(anchor_token_ids, self.config.mask_token_id), *arguments)


def block_one_before(self: DSparkNetwork, anchor_token_ids: Tensor, starts: Tensor, *arguments: Any) -> Tensor:
    """The block stands at the last position that has a feature, one before the anchor's."""
    return block(self, anchor_token_ids, (starts - 1).clamp(min=0), *arguments)


def rejected_stay(self: DSparkDraftSession, *, token_ids: Tensor, counts: Sequence[int], features: Any) -> None:
    """The context keeps the features of rejected drafts."""
    observe(self, token_ids=token_ids, counts=[token_ids.shape[1]] * len(counts), features=features)


def hid(row: str, source: str, mechanism: str, patch: str, value: Any, make: Any = make_dflash_decoder) -> Mutant:
    """One mistake; it leaves the law alone."""
    return Mutant(
        id=row,
        family=row.split("-")[0],
        source=source,
        mechanism=mechanism,
        patches={f"dspark.{patch}": value},
        make=make,
        check=EXACT,
        properties=(),
        equivalent=True,
    )


OBSERVE = "drafters.dspark.DSparkDraftSession.observe"
BLOCK = "networks.dspark.DSparkNetwork.block"
MUTANTS = (
    hid(
        "HID-1",
        "https://github.com/vllm-project/vllm/issues/14647",
        "EAGLE-3: a feature is paired with its own token, not with the one behind it",
        "drafters.eagle3.Eagle3DraftSession._catch_up",
        token_not_shifted,
        make_eagle3_decoder,
    ),
    hid(
        "HID-2",
        "https://github.com/vllm-project/vllm/issues/14649",
        "after a round the drafter's context is not extended by the target's features",
        OBSERVE,
        only_the_prompt,
    ),
    hid(
        "HID-3",
        "https://github.com/vllm-project/vllm/pull/43671",
        "the tap of layer k holds the output of layer k - 1",
        "drafters.dspark.DSparkDrafter.feature_layers",
        layer_before,
    ),
    hid(
        "HID-5",
        "https://github.com/warpfront/hipfire/pull/483",
        "the block is filled with mask tokens, slot 0 too, which belongs to the anchor",
        BLOCK,
        masks_only,
    ),
    hid(
        "POS-1",
        "https://github.com/ikawrakow/ik_llama.cpp/pull/2296",
        "the block is placed one position before the anchor's",
        BLOCK,
        block_one_before,
    ),
    hid(
        "ASYNC-10",
        "https://github.com/vllm-project/vllm/pull/55055",
        "features of rejected drafts stay in the drafter's context",
        OBSERVE,
        rejected_stay,
    ),
)
