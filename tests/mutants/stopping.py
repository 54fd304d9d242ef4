"""Planted bugs of the end of the output: stop tokens, lengths (STOP), and the edges of a request (EDGE)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dspark.batch import Batch
from dspark.cache import BatchContext
from dspark.causal_model import Reading
from dspark.drafters.protocol import Proposal
from dspark.row import Row
from dspark.sampling import draw
from dspark.verification import Verification, verify_block
from tests.mutants.mutant import Mutant

emit = Row.emit
emit_all = Batch._emit
propose = Batch._propose
prefill = Batch._prefill
extend = BatchContext.extend
ANY_LENGTH = 10_000


def stops_within(where: Any) -> Any:
    """Stop tokens count only at the places of a block that `where(num_tokens, num_accepted)` gives."""

    def emit_with(self: Row, token_ids: list[int], *arguments: Any, num_accepted: int, num_drafted: int) -> list[int]:
        request, places = self.request, where(len(token_ids), num_accepted)
        if not any(token_ids[place] in request.stop_token_ids for place in places):
            self.request = replace(request, stop_token_ids=())
        try:
            return emit(self, token_ids, *arguments, num_accepted=num_accepted, num_drafted=num_drafted)
        finally:
            self.request = request

    return emit_with


def budget_of_the_loop(self: Row) -> int:
    """The budget is looked at between rounds only: a block is as long as it likes."""
    return 0 if len(self.roles) >= self.request.max_new_tokens else ANY_LENGTH


def rounds_for_tokens(self: Row) -> int:
    """The limit counts rounds."""
    return self.request.max_new_tokens - len(self.drafted_per_step)


def length_before_stop(self: Row, *arguments: Any, **keywords: Any) -> list[int]:
    """The limit is checked first and wins."""
    emitted = emit(self, *arguments, **keywords)
    if self.num_remaining == 0:
        self.finish_reason = "length"
    return emitted


def ids_behind_the_stop(self: Row, token_ids: list[int], logprobs: list[float], **keywords: Any) -> list[int]:
    """The stop is noticed, and the ids of the block behind it are returned."""
    emitted = emit(self, token_ids, logprobs, **keywords)
    left = token_ids[len(emitted) :]
    self.token_ids += left
    self.roles += ["accepted"] * len(left)
    self.logprobs += logprobs[len(emitted) :]
    return token_ids


def block_charged_first(self: Row, token_ids: list[int], *arguments: Any, **keywords: Any) -> list[int]:
    """A block that reaches the limit has been charged before it is emitted: its last token does not come out."""
    fits = len(token_ids) < max(2, self.num_remaining)
    emitted = emit(self, token_ids if fits else token_ids[:-1], *arguments, **keywords)
    self.finish_reason = self.finish_reason or ("" if fits else "length")
    return emitted


def draft_stop_finishes(self: Batch, proposal: Proposal, *arguments: Any) -> Any:
    """A drafted stop token marks the request as finished; if the target rejects it, an assertion fails."""
    verification: Verification = arguments[-1]
    counts = zip(self.rows, proposal.draft_token_ids.tolist(), verification.num_accepted.tolist(), strict=True)
    for row, drafts, num_accepted in counts:
        if any(token_id in row.request.stop_token_ids for token_id in drafts[num_accepted:]):
            raise AssertionError("a finished sequence is not running")
    return emit_all(self, proposal, *arguments)


def last_draft_drawn_again(self: Batch, *arguments: Any) -> Proposal:
    """A candidate that ends with a stop token is accepted, and its last token is then drawn from the target."""
    proposal = propose(self, *arguments)
    stops = [row.request.stop_token_ids for row in self.rows]

    def rule(*, draft_lengths: Tensor, target_probs: Tensor, final_uniforms: Tensor, **keywords: Any) -> Verification:
        given = {"draft_lengths": draft_lengths, "target_probs": target_probs, "final_uniforms": final_uniforms}
        found = verify_block(**given, **keywords)
        ends = [
            length > 0 and drafts[length - 1] in stop
            for drafts, length, stop in zip(
                proposal.draft_token_ids.tolist(), draft_lengths.tolist(), stops, strict=True
            )
        ]
        ended = torch.tensor(ends, device=draft_lengths.device) & (found.num_accepted == draft_lengths)
        last = (draft_lengths - 1).clamp(min=0)
        again = draw(target_probs[torch.arange(len(last)), last], final_uniforms)
        return Verification(
            torch.where(ended, last, found.num_accepted), torch.where(ended, again, found.final_token_ids)
        )

    self.verify = rule
    return proposal


def look_beyond_the_context(self: BatchContext, token_ids: Tensor, counts: Any, *, last: bool = False) -> Reading:
    """A block of four more tokens must fit into the context, although fewer are left to emit."""
    limit = self.model.max_positions
    if limit is not None and max(self.lengths, default=0) + 4 > limit:
        raise AssertionError(f"position {max(self.lengths) + 4} is beyond the cache of {limit}")
    return extend(self, token_ids, counts, last=last)


def special_kernel_for_one(*, target_probs: Tensor, draft_lengths: Tensor, **keywords: Any) -> Verification:
    """With one draft the bonus has a kernel of its own, which reads row 0."""
    found = verify_block(target_probs=target_probs, draft_lengths=draft_lengths, **keywords)
    if target_probs.shape[1] != 2:
        return found
    bonus = draw(target_probs[:, 0], keywords["final_uniforms"])
    return replace(found, final_token_ids=torch.where(found.num_accepted == 1, bonus, found.final_token_ids))


def no_depth_of_one(*, draft_token_ids: Tensor, **keywords: Any) -> Verification:
    """A block of depth 1 raises."""
    if draft_token_ids.shape[1] == 1:
        raise IndexError("a tree of depth 1 has no second level")
    return verify_block(draft_token_ids=draft_token_ids, **keywords)


def nothing_to_prefill(self: Batch) -> None:
    """A prompt of one token leaves nothing to prefill, and a padding token 0 is read in its place."""
    prefill(self)
    if max(self.context.lengths) == 0:
        zeros = torch.zeros(len(self.rows), 1, dtype=torch.long, device=self.processors.device)
        self.context.extend(zeros, [1] * len(self.rows))


def bug(row: str, source: str, mechanism: str, patch: str, value: Any, check: str, *properties: str) -> Mutant:
    """One bug of these families."""
    family, _, _ = row.partition("-")
    named = {"patches": {f"dspark.{patch}": value}, "check": check, "properties": (*properties, "greedy identity")}
    return Mutant(id=row, family=family, source=source, mechanism=mechanism, **named)


OFFSET = "test_05_stopping.py::test_stop_at_every_offset[{}]"
LENGTH = "test_05_stopping.py::test_every_length[same]"
MUTANTS = (
    bug(
        "STOP-1",
        "https://github.com/huggingface/transformers/issues/47912",
        "a stop token accepted inside a block is missed",
        "row.Row.emit",
        stops_within(lambda num_tokens, _: [num_tokens - 1]),
        OFFSET.format("same"),
        "stop at every offset",
        "exact law of stopping",
    ),
    bug(
        "STOP-3",
        "https://github.com/ohdearquant/lattice/pull/245",
        "the budget is checked between rounds only: a whole block is committed beyond it",
        "row.Row.num_remaining",
        property(budget_of_the_loop),
        LENGTH,
        "exact length",
    ),
    bug(
        "STOP-5",
        "https://github.com/antonellof/ferrox/pull/311",
        "the limit counts rounds, and a round emits several tokens",
        "row.Row.num_remaining",
        property(rounds_for_tokens),
        LENGTH,
        "exact length",
    ),
    bug(
        "STOP-7",
        "https://github.com/sgl-project/sglang/pull/23802",
        "the stop is looked for in the last two tokens of a block: one that came earlier is missed",
        "row.Row.emit",
        stops_within(lambda num_tokens, _: range(max(0, num_tokens - 2), num_tokens)),
        OFFSET.format("same"),
        "stop at every offset",
        "exact law of stopping",
    ),
    bug(
        "STOP-8",
        "https://github.com/sgl-project/sglang/issues/31599",
        'a stop token that is also the last allowed one gives finish_reason "length"',
        "row.Row.emit",
        length_before_stop,
        "test_05_stopping.py::test_stop_on_the_last_token",
        "stop beats length",
        "exact law of stopping",
    ),
    bug(
        "STOP-9",
        "https://github.com/vllm-project/vllm/pull/47616",
        "the text ends at the stop, and token ids behind it are returned",
        "row.Row.emit",
        ids_behind_the_stop,
        OFFSET.format("same"),
        "stop at every offset",
        "exact law of stopping",
    ),
    bug(
        "STOP-10",
        "https://github.com/ikawrakow/ik_llama.cpp/pull/2358",
        "a block is charged to the budget before it is emitted: the output ends one token short",
        "row.Row.emit",
        block_charged_first,
        LENGTH,
        "exact length",
    ),
    bug(
        "STOP-12",
        "https://github.com/romsto/Speculative-Decoding/commit/97b82fb93d3bb62e596f47bd470dab376a05ed84",
        "a stop token is looked for among accepted drafts only, not in the recovered or bonus token",
        "row.Row.emit",
        stops_within(lambda _, num_accepted: range(num_accepted)),
        OFFSET.format("opposed"),
        "stop at every offset",
        "exact law of stopping",
    ),
    bug(
        "STOP-13",
        "https://github.com/openvinotoolkit/openvino.genai/pull/3293",
        "a drafted stop token finishes the sequence; when the target rejects it an assertion fails",
        "batch.Batch._emit",
        draft_stop_finishes,
        "test_05_stopping.py::test_rejected_stop_token",
        "rejected stop token",
        "exact law of stopping",
    ),
    bug(
        "EDGE-1",
        "https://github.com/turboderp-org/exllamav2/issues/274",
        "the draft lookahead is not bounded by the context",
        "cache.BatchContext.extend",
        look_beyond_the_context,
        "test_06_state.py::test_context_limit[0]",
        "context limit",
    ),
    bug(
        "EDGE-4",
        "https://github.com/huggingface/transformers/pull/28508",
        "a candidate that ends with the end of text is accepted, and its last token drawn again",
        "batch.Batch._propose",
        last_draft_drawn_again,
        "test_02_exact_law.py::test_stops[stop inside a block]",
        "exact law of stopping",
        "exact law",
    ),
    bug(
        "EDGE-5",
        "https://github.com/vllm-project/vllm-ascend/pull/11612",
        "with one draft the bonus has a kernel of its own, which reads row 0",
        "decoder.verify_block",
        special_kernel_for_one,
        "test_01_greedy.py::test_identity_by_draft_length[1]",
    ),
    bug(
        "EDGE-8",
        "https://github.com/NVIDIA/TensorRT-LLM/issues/10323",
        "a block of depth 1 raises",
        "decoder.verify_block",
        no_depth_of_one,
        "test_01_greedy.py::test_identity_by_draft_length[1]",
    ),
    bug(
        "EDGE-a",
        "derived",
        "a prompt of one token leaves nothing to prefill: a padding token is read in its place",
        "batch.Batch._prefill",
        nothing_to_prefill,
        "test_06_state.py::test_prompt_of_one_token",
        "prompt of one token",
        "exact law",
    ),
)
