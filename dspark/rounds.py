"""Rounds on record: how sure the drafter was of every draft, and how many were accepted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from transformers import PreTrainedModel

from dspark.decoder import SpeculativeDecoder
from dspark.drafters.protocol import Drafter
from dspark.request import DecodingRequest
from dspark.scheduler.protocol import ScheduleSession


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRounds:
    """N rounds in which every draft was verified.

    `confidences` `[N, K]` float64, NaN behind a round's `lengths` `[N]` drafts; `accepted` `[N]` of them were accepted;
    `request_ids` `[N]` say which rounds are of one request, in order of time.
    """

    confidences: NDArray[np.float64]
    accepted: NDArray[np.int64]
    lengths: NDArray[np.int64]
    request_ids: NDArray[np.int64]

    def __post_init__(self) -> None:
        shapes = {self.confidences.shape[:1], self.accepted.shape, self.lengths.shape, self.request_ids.shape}
        if len(shapes) != 1 or self.confidences.ndim != 2:
            raise ValueError(
                f"the rounds have shapes {sorted(shapes)}; all need one entry a round. Check their source."
            )
        if bool(((self.accepted < 0) | (self.accepted > self.lengths)).any()):
            raise ValueError("a round accepted more drafts than it had, or less than none. Check their source.")
        drafted = np.arange(self.num_positions) < self.lengths[:, None]  # [N, K]
        values = self.confidences[drafted]
        if int(self.lengths.max(initial=0)) > self.num_positions or not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError("a draft has no confidence between 0 and 1; every draft needs one. Check the drafter.")

    @property
    def num_positions(self) -> int:
        """K, the longest possible block."""
        return int(self.confidences.shape[1])

    def __len__(self) -> int:
        return len(self.accepted)

    def where(self, chosen: NDArray[Any]) -> "RecordedRounds":
        """Some of the rounds: a mask or indices, `[N]`."""
        return RecordedRounds(
            confidences=self.confidences[chosen],
            accepted=self.accepted[chosen],
            lengths=self.lengths[chosen],
            request_ids=self.request_ids[chosen],
        )


class Recorder(ScheduleSession):
    """A schedule that verifies everything and remembers the confidences of the batch under way."""

    def __init__(self) -> None:
        self.rounds: list[list[list[float]]] = []

    def open(self) -> ScheduleSession:
        """Begin a batch and forget the last one."""
        self.rounds = []
        return self

    def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
        """See `ScheduleSession.admit`."""
        self.rounds.append([list(row) for row in confidences])
        return tuple(map(len, confidences))


def record_rounds(
    target: PreTrainedModel, drafter: Drafter, requests: Sequence[DecodingRequest], *, batch_size: int = 8
) -> RecordedRounds:
    """Decode the requests and keep every round that drafted anything.

    The requests must not have stop tokens: a stop inside a block ends the count of accepted drafts, which would look like a
    rejection. Raises ValueError where they do, or nothing was drafted.
    """
    if any(request.stop_token_ids for request in requests):
        raise ValueError("a request has stop tokens; a stop would count as a rejection. Record rounds without them.")
    recorder = Recorder()
    decoder = SpeculativeDecoder(target, drafter, scheduler=recorder)
    rows: list[list[float]] = []
    accepted: list[int] = []
    request_ids: list[int] = []
    for start in track(range(0, len(requests), batch_size), description="decoding"):
        generations = decoder.generate(requests[start : start + batch_size])
        for step, confidences in enumerate(recorder.rounds):
            running = [index for index, each in enumerate(generations) if each.record.num_spec_steps > step]
            for index, row in zip(running, confidences, strict=True):
                if row:
                    rows.append(row)
                    accepted.append(generations[index].record.accepted_per_step[step])
                    request_ids.append(start + index)
    if not rows:
        raise ValueError("no round drafted anything; there is nothing to record. Raise num_draft_tokens.")
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for place, row in enumerate(rows):
        # Laws in float32 may sum past 1 by an ulp, and so may what drafters derive from them.
        table[place, : len(row)] = np.minimum(row, 1.0)
    return RecordedRounds(
        confidences=table,
        accepted=np.array(accepted),
        lengths=np.array([len(row) for row in rows]),
        request_ids=np.array(request_ids),
    )
