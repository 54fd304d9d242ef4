"""What a decoder really did, seen from the target: rounds reconstructed from its forward calls.

A decoder that reports no record is still observable where the suite brings the models: each verification is one target
forward, and where the next one starts tells how many tokens were kept. This is the source of the coverage counters, and the
check on a decoder's own bookkeeping.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class ForwardCall:
    """One target forward: batch size, first position (the cache length before it) and number of positions."""

    batch_size: int
    start: int
    num_positions: int


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

    def rounds(self, prompt_length: int, output_length: int) -> list[Round] | None:
        """The rounds of a call with one request, or None where they cannot be reconstructed (no cache, batches).

        A forward that covers positions [start, start + n) with c tokens committed verifies start + n - c drafts. All but
        the newest committed token are in the cache at the next forward, so its start + 1 is the next c.
        """
        if any(call.batch_size != 1 for call in self.calls):
            return None
        total = prompt_length + output_length
        committed = prompt_length
        rounds: list[Round] = []
        for index, call in enumerate(self.calls):
            drafted = call.start + call.num_positions - committed
            if drafted < 0:  # prefill of a part of the prompt
                continue
            following = self.calls[index + 1].start + 1 if index + 1 < len(self.calls) else total
            accepted = min(following, total) - committed - 1
            if not 0 <= accepted <= drafted:
                return None
            rounds.append(Round(committed - prompt_length, drafted, accepted))
            committed = min(following, total)
        return rounds if committed == total else None


@contextmanager
def observed(model: PreTrainedModel) -> Iterator[Trace]:
    """Record every forward of `model` inside the context."""
    trace = Trace()

    def before(_: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        token_ids: Tensor = keywords["input_ids"] if "input_ids" in keywords else arguments[0]
        cache = keywords.get("cache", keywords.get("past_key_values"))
        start = 0 if cache is None else int(cache.get_seq_length())
        trace.calls.append(ForwardCall(token_ids.shape[0], start, token_ids.shape[1]))

    handle = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield trace
    finally:
        handle.remove()
