"""Measure the round profile of a target and a drafter on their device."""

from collections.abc import Sequence

import numpy as np
from rich.progress import track
from transformers import PreTrainedModel

from dspark.batch import Batch
from dspark.causal_model import CausalModel
from dspark.drafters.protocol import Drafter
from dspark.request import Request, SamplingParams
from dspark.row import Row
from dspark.scheduler.measurement import WARM_UPS, conditions_of, seconds_of
from dspark.scheduler.protocol import ScheduleSession
from dspark.scheduler.round_profile import RoundProfile
from dspark.verification import verify_block

ROW_COUNTS = (1, 2, 4, 8, 16, 32)
LARGE_ROW_COUNTS = (64, 128)  # on a GPU
DRAFT_COUNTS = (0, 1, 3, 7)


class Switch(ScheduleSession):
    """Does as it is told: `length` drafts of every row, or none at all where it is None."""

    def __init__(self) -> None:
        self.length: int | None = 0

    def open(self) -> ScheduleSession:
        """Begin a batch; all obey the same switch."""
        return self

    def wants_drafts(self, num_rows: int) -> bool:
        """See `ScheduleSession.wants_drafts`."""
        return self.length is not None

    def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
        """See `ScheduleSession.admit`; ValueError where a row has fewer drafts than that."""
        length, fewest = self.length or 0, min(map(len, confidences))
        if fewest < length:
            raise ValueError(
                f"{length} drafts are to be verified and the drafter made {fewest}. Measure shorter drafts, or give a drafter "
                "with longer blocks."
            )
        return (length,) * len(confidences)


def measure_rounds(
    target: PreTrainedModel,
    drafter: Drafter,
    *,
    row_counts: Sequence[int] | None = None,
    draft_counts: Sequence[int] = DRAFT_COUNTS,
    context_length: int = 256,
    num_repeats: int = 30,
) -> RoundProfile:
    """Time rounds of every kind in turn (A B C A B C ...), sampled at temperature 1, and take the median of each.

    `row_counts` are up to 32 if not given, and up to 128 on a GPU. A row's text has `context_length` tokens at first and
    grows as it does in decoding. Every round that drafts asks for the largest of `draft_counts`. Raises ValueError where
    there is no text to begin with, or the texts would outgrow the target's positions.
    """
    if context_length < 1:
        raise ValueError(f"context_length is {context_length}; a round goes on from a token at least. Give 1 or more.")
    if row_counts is None:
        row_counts = ROW_COUNTS + (LARGE_ROW_COUNTS if target.device.type == "cuda" else ())
    rows, drafts = sorted(set(row_counts)), sorted(set(draft_counts))
    kinds = (None, *drafts)
    reading = CausalModel.of(target)
    most = (WARM_UPS + num_repeats) * sum(1 + (length or 0) for length in kinds) + drafts[-1] + 1
    if reading.max_positions is not None and context_length + most > reading.max_positions:
        raise ValueError(
            f"texts of {context_length} tokens may grow by {most}; the target has {reading.max_positions} positions. Shorten "
            "the context, or repeat less often."
        )
    switch = Switch()
    batches = [
        Batch(
            reading,
            drafter,
            _rows(reading, count, context_length, most, drafts[-1]),
            scheduler=switch,
            verify=verify_block,
        )
        for count in rows
    ]
    seconds = np.empty((num_repeats, len(rows), len(kinds)))
    for turn in track(range(-WARM_UPS, num_repeats), description="turns"):
        for place, batch in enumerate(batches):
            for kind, switch.length in enumerate(kinds):
                taken = seconds_of(batch.advance, target.device)
                if turn >= 0:
                    seconds[turn, place, kind] = taken
    medians = np.median(seconds, axis=0)
    return RoundProfile(
        row_counts=tuple(rows),
        draft_counts=tuple(drafts),
        plain_seconds=tuple(map(float, medians[:, 0])),
        drafted_seconds=tuple(tuple(map(float, row)) for row in medians[:, 1:]),
        conditions={
            **conditions_of(target),
            "drafter": type(drafter).__name__,
            "context_length": context_length,
            "num_repeats": num_repeats,
        },
    )


def _rows(target: CausalModel, num_rows: int, length: int, num_new: int, num_draft_tokens: int) -> list[Row]:
    texts = np.arange(num_rows * length).reshape(num_rows, length) % target.vocab_size
    return [
        Row.of(
            Request(
                prompt_token_ids=tuple(map(int, text)),
                max_new_tokens=num_new,
                num_draft_tokens=num_draft_tokens,
                sampling=SamplingParams(temperature=1.0),
                seed=place,
            )
        )
        for place, text in enumerate(texts)
    ]
