"""What a decoder really did, seen from the target: rounds reconstructed from its forward calls.

A decoder that reports no record is still observable where the suite brings the models: each verification is one target
forward, and where the next one starts tells how many tokens were kept. This is the source of the coverage counters, and the
check on a decoder's own bookkeeping.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class ForwardCall:
    """One target forward: batch size, first position (the cache length before it) and number of positions.

    `branches`: its mask hides some of its own tokens from later ones, so they are a tree and no block. `text` `[T]` is what it
    read, where it began at the first position.
    """

    batch_size: int
    start: int
    num_positions: int
    branches: bool = False
    text: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """One verified block of one request: where it began in the output, tokens drafted and tokens accepted."""

    output_offset: int
    num_draft_tokens: int
    num_accepted: int

    @property
    def num_emitted(self) -> int:
        """Accepted tokens and the recovered or bonus token."""
        return self.num_accepted + 1


@dataclass(slots=True)
class Trace:
    """The target forwards of a `generate` call."""

    calls: list[ForwardCall] = field(default_factory=list)

    def rounds(self, prompt_length: int, output_length: int, *, text: Sequence[int] = ()) -> list[Round] | None:
        """The rounds of a call with one request, or None where they cannot be reconstructed (batches, trees).

        A forward that covers positions [start, start + n) with c tokens committed verifies start + n - c drafts. All but
        the newest committed token are in the cache at the next forward, so its start + 1 is the next c. Where there is no
        cache, the next c is told by `text`, the prompt and the output: accepted drafts are in it, and the first rejected one
        is not.
        """
        calls = self._without_replays()
        if any(call.batch_size != 1 or call.branches for call in calls):
            return None
        if (
            len(calls) > 1
            and all(call.text is not None for call in calls)
            and len(text) == prompt_length + output_length
        ):
            return _uncached_rounds(
                [call.text.tolist() for call in calls if call.text is not None], prompt_length, text
            )
        total = prompt_length + output_length
        committed = prompt_length
        rounds: list[Round] = []
        for index, call in enumerate(calls):
            drafted = call.start + call.num_positions - committed
            if drafted < 0:  # prefill of a part of the prompt
                continue
            following = calls[index + 1].start + 1 if index + 1 < len(calls) else total
            accepted = min(following, total) - committed - 1
            if not 0 <= accepted <= drafted:
                return None
            rounds.append(Round(committed - prompt_length, drafted, accepted))
            committed = min(following, total)
        return rounds if committed == total else None

    def _without_replays(self) -> list[ForwardCall]:
        """Less the forwards that only read accepted tokens again, from a state restored: they decide nothing.

        One starts where the round before it did, and the next round starts where it ends.
        """
        kept: list[ForwardCall] = []
        for index, call in enumerate(self.calls):
            following = self.calls[index + 1].start if index + 1 < len(self.calls) else -1
            again = kept and call.start == kept[-1].start and call.start + call.num_positions == following
            if not again:
                kept.append(call)
        return kept


@contextmanager
def observed(model: PreTrainedModel) -> Iterator[Trace]:
    """Record every forward of `model` inside the context."""
    trace = Trace()

    def before(_: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        token_ids: Tensor = keywords["input_ids"] if "input_ids" in keywords else arguments[0]
        start = cached_length(keywords)
        branches = _branches(keywords.get("attention_mask"), token_ids.shape[1])
        text = token_ids[0].detach().clone() if start == 0 and len(token_ids) == 1 else None
        trace.calls.append(ForwardCall(token_ids.shape[0], start, token_ids.shape[1], branches, text))

    handle = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield trace
    finally:
        handle.remove()


def cached_length(keywords: Mapping[str, Any]) -> int:
    """Tokens in the cache that a forward is called with, by either name of that argument; 0 where there is none."""
    cache = keywords.get("cache", keywords.get("past_key_values"))
    return 0 if cache is None else int(cache.get_seq_length())


def _uncached_rounds(reads: Sequence[list[int]], prompt_length: int, text: Sequence[int]) -> list[Round] | None:
    """Rounds of forwards that each read the whole text anew, and their drafts behind it."""
    committed, rounds = prompt_length, []
    for read in reads:
        drafts = read[committed:]
        if len(read) < committed or read[:committed] != list(text[:committed]):
            return None
        places = zip(drafts, text[committed:], strict=False)
        agreeing = next((place for place, (draft, token) in enumerate(places) if draft != token), len(drafts))
        accepted = min(agreeing, len(text) - committed - 1)
        if accepted < 0:
            return None
        rounds.append(Round(committed - prompt_length, len(drafts), accepted))
        committed += accepted + 1
    return rounds if committed == len(text) else None


def _branches(attention_mask: Tensor | None, num_positions: int) -> bool:
    """Whether a 4D mask, boolean or added to scores, lets a new token not see one of the new tokens before it."""
    if attention_mask is None or attention_mask.ndim != 4:
        return False
    own = attention_mask[:, 0, -num_positions:, -num_positions:]
    seen = own > -1 if own.is_floating_point() else own.bool()  # [B, T, T]
    return not bool(seen[:, torch.ones(num_positions, num_positions, dtype=torch.bool).tril()].all())
