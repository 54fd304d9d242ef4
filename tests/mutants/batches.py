"""Planted bugs of batches: rows that see each other (BATCH), shapes and stale order of rows (HID, ASYNC)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dspark.batch import Batch
from dspark.cache import BatchContext
from dspark.causal_model import CausalModel
from dspark.decoder import SpeculativeDecoder
from dspark.drafters.protocol import Proposal
from dspark.sampling import draw
from dspark.verification import Verification, residual, verify_block
from tests.mutants.mutant import BATCH, Mutant
from verify.protocol import Request

select = BatchContext.select
mask_and_positions = BatchContext._mask_and_positions
propose = Batch._propose


def laws_of_another_request(*, draft_probs: Tensor, **keywords: Any) -> Verification:
    """draft_probs in another order of requests than the drafts."""
    return verify_block(draft_probs=draft_probs.roll(1, 0), **keywords)


def first_rows_kept(self: BatchContext, rows: Sequence[int]) -> None:
    """When rows finish the cache is contracted to its first rows, whichever they are."""
    select(self, list(range(len(rows))))


def mask_missing_in_large_batches(self: BatchContext, valid: Tensor, width: int) -> dict[str, Any]:
    """From four rows on the padding is not masked."""
    inputs = mask_and_positions(self, valid, width)
    if len(valid) >= 4:
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    return inputs


def positions_of_slots(self: BatchContext, valid: Tensor, width: int) -> dict[str, Any]:
    """Positions count the slots of the batch, padding included, instead of the row's own tokens."""
    inputs = mask_and_positions(self, valid, width)
    slots = valid.shape[1] + torch.arange(width, device=inputs["position_ids"].device)
    inputs["position_ids"] = slots.expand(len(valid), -1)
    return inputs


def padding_within_the_context(self: BatchContext, valid: Tensor, width: int) -> dict[str, Any]:
    """The slots of the batch, padding and rejected drafts included, must fit into the context."""
    limit = self.model.max_positions
    if limit is not None and valid.shape[1] + width > limit:
        raise AssertionError(f"slot {valid.shape[1] + width} is beyond the cache of {limit}")
    return mask_and_positions(self, valid, width)


def slowest_of_all(
    *, draft_probs: Tensor, target_probs: Tensor, draft_lengths: Tensor, final_uniforms: Tensor, **keywords: Any
) -> Verification:
    """All rows accept as many drafts as the row that accepts least, and recover there."""
    given = {"draft_probs": draft_probs, "target_probs": target_probs, "draft_lengths": draft_lengths}
    found = verify_block(**given, final_uniforms=final_uniforms, **keywords)
    if draft_probs.shape[1] == 0:
        return found
    fewest = found.num_accepted.min().expand_as(found.num_accepted)
    rows, at = torch.arange(len(fewest)), fewest.clamp(max=draft_probs.shape[1] - 1)
    recovered = draw(residual(target_probs[rows, fewest].double(), draft_probs[rows, at].double()), final_uniforms)
    return Verification(fewest, torch.where(fewest < found.num_accepted, recovered, found.final_token_ids))


def padding_is_drafted(*, draft_token_ids: Tensor, draft_lengths: Tensor, **keywords: Any) -> Verification:
    """Padding behind a short row's drafts is verified like a draft."""
    whole = torch.full_like(draft_lengths, draft_token_ids.shape[1])
    return verify_block(draft_token_ids=draft_token_ids, draft_lengths=whole, **keywords)


def packed_without_padding(*, target_probs: Tensor, draft_lengths: Tensor, **keywords: Any) -> Verification:
    """The rows of all requests are packed one behind the other and read as if each had K + 1."""
    width = target_probs.shape[1]
    real = torch.arange(width, device=target_probs.device) <= draft_lengths[:, None]  # [B, K + 1]
    flat = target_probs[real]
    filled = torch.cat([flat, flat[-1:].expand(real.numel() - len(flat), -1)])
    return verify_block(target_probs=filled.view_as(target_probs), draft_lengths=draft_lengths, **keywords)


def order_of_the_batch_before(self: Batch, *arguments: Any) -> Proposal:
    """Drafts are scattered by the places that the requests had in the last round's batch."""
    proposal = propose(self, *arguments)
    names = [id(row) for row in self.rows]
    before = self.__dict__.get("places", names)
    self.__dict__["places"] = names
    if not proposal.draft_token_ids.shape[1] or before == names:
        return proposal
    places = torch.tensor([before.index(name) % len(names) for name in names])
    return Proposal(proposal.draft_token_ids[places], proposal.draft_probs, proposal.draft_lengths)


def placeholders_as_drafts(self: Batch, *arguments: Any) -> Proposal:
    """Every second round the drafts are those of the round before, whose placeholders outlived their window."""
    proposal = propose(self, *arguments)
    shape = proposal.draft_token_ids.shape
    stale = self.__dict__.get("stale")
    self.__dict__["stale"] = None if stale is not None else proposal.draft_token_ids
    if stale is None or len(stale) != shape[0] or stale.shape[1] < shape[1] or not shape[1]:
        return proposal
    return Proposal(stale[:, : shape[1]], proposal.draft_probs, proposal.draft_lengths)


read = CausalModel.read


def wide_batches_misread(self: CausalModel, token_ids: Tensor, *arguments: Any, **inputs: Any) -> Any:
    """From eight rows on the logits of the last two rows are exchanged (a sub-batch resumed at the wrong offset)."""
    reading = read(self, token_ids, *arguments, **inputs)
    if len(token_ids) < 8:
        return reading
    order = [*range(len(token_ids) - 2), len(token_ids) - 1, len(token_ids) - 2]
    return type(reading)(reading.logits[order], reading.features)


def settings_of_the_first(*names: str, sampled_only: bool = False) -> Any:
    """These settings are read off the first request of a batch (or off its first sampled one) for all of them."""

    def generate_all(self: SpeculativeDecoder, requests: Sequence[Any]) -> Any:
        concerned = [bool(each.sampling.temperature) or not sampled_only for each in requests]
        if not any(concerned):
            return generate(self, requests)
        first = requests[concerned.index(True)]
        own = {name: getattr(first, name) for name in names if name in Request.__slots__}
        shared = {name: getattr(first.sampling, name) for name in names if name not in own}
        changed = [replace(each, **own, sampling=replace(each.sampling, **shared)) for each in requests]
        return generate(
            self, [new if here else old for here, new, old in zip(concerned, changed, requests, strict=True)]
        )

    return generate_all


generate = SpeculativeDecoder.generate


def bug(row: str, source: str, mechanism: str, patch: str, value: Any, check: str = BATCH, **fields: Any) -> Mutant:
    """One bug of a batch."""
    properties = (
        "product law of batches",
        "ragged batch",
        "permutation",
        "finished rows",
        "mixed draft lengths",
        "mixed sampling",
        "mixed processors",
        "admission in a batch",
        "sampled law under load",
        "exact law of generated cases",
    )
    given: dict[str, Any] = {"family": "BATCH", "properties": properties, **fields}
    patches = {f"dspark.{patch}": value}
    return Mutant(id=row, source=source, mechanism=mechanism, patches=patches, check=check, **given)


RULE = "decoder.verify_block"
GENERATE = "decoder.SpeculativeDecoder.generate"
PROCESSORS = "test_07_batches.py::test_mixed_processors"
RAGGED = "test_07_batches.py::test_ragged_prompts[5]"
MUTANTS = (
    bug(
        "BATCH-1",
        "https://github.com/vllm-project/vllm/pull/14645",
        "draft_probs are grouped in another order of requests than the drafts",
        RULE,
        laws_of_another_request,
    ),
    bug(
        "BATCH-2",
        "https://github.com/HabanaAI/vllm-fork/pull/1780",
        "when rows finish the batch is contracted to its first rows",
        "cache.BatchContext.select",
        first_rows_kept,
        "test_07_batches.py::test_finished_rows",
    ),
    bug(
        "BATCH-4",
        "https://github.com/huggingface/text-generation-inference/issues/1411",
        "padding is not masked in batches of four and more: an odd token at larger batches only",
        "cache.BatchContext._mask_and_positions",
        mask_missing_in_large_batches,
        RAGGED,
    ),
    bug(
        "BATCH-8",
        "https://github.com/unslothai/llama.cpp/pull/182",
        "from eight rows on a sub-batch is resumed at the wrong offset: two rows read each other's logits",
        "causal_model.CausalModel.read",
        wide_batches_misread,
        "test_07_batches.py::test_ragged_prompts[16]",
    ),
    bug(
        "BATCH-9",
        "https://github.com/vllm-project/vllm/pull/26498",
        "positions count the slots of the padded batch instead of the row's own tokens",
        "cache.BatchContext._mask_and_positions",
        positions_of_slots,
        RAGGED,
    ),
    bug(
        "BATCH-13a",
        "derived",
        "all rows accept as many drafts as the one that accepts least",
        RULE,
        slowest_of_all,
    ),
    bug(
        "BATCH-13b",
        "derived",
        "padding behind a short row's drafts is verified like a draft",
        RULE,
        padding_is_drafted,
        "test_07_batches.py::test_ragged_prompts[2]",
    ),
    bug(
        "BATCH-13c",
        "derived",
        "all rows have the temperature of the first",
        GENERATE,
        settings_of_the_first("temperature"),
        "test_02_exact_law.py::test_batches[unequal temperatures]",
    ),
    bug(
        "BATCH-13d",
        "derived",
        "all rows have the truncation of the first",
        GENERATE,
        settings_of_the_first("top_k", "top_p", "min_p"),
        "test_02_exact_law.py::test_batches[unequal truncation]",
    ),
    bug(
        "BATCH-13e",
        "derived",
        "among greedy rows all sampled ones have the temperature of the first that is sampled",
        GENERATE,
        settings_of_the_first("temperature", sampled_only=True),
        "test_07_batches.py::test_mixed_sampling_law",
    ),
    bug(
        "BATCH-13f",
        "derived",
        "all rows have the stop tokens of the first",
        GENERATE,
        settings_of_the_first("stop_token_ids"),
        PROCESSORS,
    ),
    bug(
        "BATCH-13g",
        "derived",
        "all rows have the minimum length of the first",
        GENERATE,
        settings_of_the_first("min_new_tokens"),
        PROCESSORS,
    ),
    bug(
        "BATCH-13h",
        "derived",
        "all rows have the allowed tokens and the grammar of the first",
        GENERATE,
        settings_of_the_first("allowed_token_ids", "grammar"),
        PROCESSORS,
    ),
    bug(
        "BATCH-13i",
        "derived",
        "all sampled rows have the penalties of the first that is sampled",
        GENERATE,
        settings_of_the_first("repetition_penalty", "presence_penalty", "frequency_penalty", sampled_only=True),
        "test_07_batches.py::test_mixed_sampling_law",
    ),
    bug(
        "EDGE-d",
        "derived",
        "a batch must fit into the context with its padding: rows near the limit fail beside others",
        "cache.BatchContext._mask_and_positions",
        padding_within_the_context,
        "test_07_batches.py::test_context_limit_in_a_batch",
        family="EDGE",
        properties=("ragged batch",),
    ),
    bug(
        "HID-4",
        "https://github.com/vllm-project/vllm/pull/7508",
        "ragged rows are packed and read as if each request had K + 1 of them",
        RULE,
        packed_without_padding,
        "test_07_batches.py::test_mixed_draft_lengths",
        family="HID",
    ),
    bug(
        "ASYNC-1",
        "https://github.com/vllm-project/vllm/pull/46899",
        "draft placeholders outlive their window: every second round verifies the drafts of the one before",
        "batch.Batch._propose",
        placeholders_as_drafts,
        "test_03_sampled_law.py::test_tables[table-v16-close-sharp1.5-seed301]",
        family="ASYNC",
        properties=("sampled law", "exact law", "exact law of generated cases", "draft = target accepts everything"),
    ),
    bug(
        "ASYNC-4",
        "https://github.com/vllm-project/vllm/pull/43434",
        "draft ids are scattered in the order of the batch before",
        "batch.Batch._propose",
        order_of_the_batch_before,
        "test_08_randomness.py::test_seed_reproduces_in_a_batch",
        family="ASYNC",
        properties=("seeds reproduce", "sampled law under load"),
    ),
)
