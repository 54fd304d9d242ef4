"""Rounds that do not draft: when, and that nothing of a round decides about itself."""

from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import PreTrainedModel

from dspark.decoder import SpeculativeDecoder
from dspark.drafters.factory import random_drafter
from dspark.request import Request, SamplingParams
from dspark.scheduler.algorithm import PrefixScheduler
from dspark.scheduler.fixed import FixedLength
from dspark.scheduler.past import Past
from dspark.scheduler.protocol import ScheduleSession
from dspark.scheduler.ranking import ranked
from dspark.scheduler.round_profile import RoundProfile
from dspark.scheduler.skipping import MEMORY, PATIENCE, SkippingScheduler

Tiny = Callable[..., PreTrainedModel]
# One row: a plain round takes 1 s, one that drafts 1.5 s and verifies for nothing. Four rows: 1 s and 4 s.
PROFILE = RoundProfile(
    row_counts=(1, 4),
    draft_counts=(0, 2),
    plain_seconds=(1.0, 1.0),
    drafted_seconds=((1.5, 1.5), (4.0, 4.0)),
)
GOOD, BAD = [[0.5, 0.5]], [[0.25, 0.5]]  # 1.75 and 1.375 tokens


def session_after(*rounds: Sequence[Sequence[float]]) -> ScheduleSession:
    session = SkippingScheduler(PrefixScheduler(PROFILE), PROFILE).open()
    for confidences in rounds:
        session.admit(confidences)
    return session


def test_a_round_drafts_where_that_pays() -> None:
    assert session_after().wants_drafts(1), "nothing is known yet"
    assert session_after(GOOD).wants_drafts(1)
    assert not session_after(BAD).wants_drafts(1)
    assert not session_after(GOOD).wants_drafts(4), "the same drafts are dear with four rows"


def test_the_last_rounds_are_averaged_and_older_ones_forgotten() -> None:
    assert session_after(BAD, GOOD).wants_drafts(1), "1.75 and 1.375 are on average above 1.5"
    assert session_after(*[BAD] * 9, *[GOOD] * MEMORY).wants_drafts(1)
    assert not session_after(*[GOOD] * 9, *[BAD] * MEMORY).wants_drafts(1)


def test_after_a_while_it_drafts_to_learn() -> None:
    session = session_after(BAD)
    assert [session.wants_drafts(1) for _ in range(PATIENCE + 2)] == [*[False] * PATIENCE, True, False]


def test_the_lengths_are_those_of_the_other_scheduler() -> None:
    session = SkippingScheduler(FixedLength(1), PROFILE).open()
    assert session.admit(GOOD) == (1,)
    assert session.admit([]) == ()


def test_rounds_are_worth_as_much_as_their_best_drafts() -> None:
    capacity, rate = Past.of(ranked([[0.5, 0.5], [0.25]]), 2).best(2, PROFILE.of_rows(2))
    assert capacity == 3
    assert rate == pytest.approx((2 + 0.5 + 0.25 + 0.25) * PROFILE.of_rows(2).at(5))


def test_the_decoder_asks_before_it_drafts(tiny: Tiny) -> None:
    asked: list[int] = []

    class Every(ScheduleSession):
        """Every second round drafts."""

        def open(self) -> ScheduleSession:
            return self

        def wants_drafts(self, num_rows: int) -> bool:
            asked.append(num_rows)
            return len(asked) % 2 == 0

        def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
            assert len(asked) % 2 == 0, "asked about drafts that nobody wanted"
            return tuple(map(len, confidences))

    target = tiny("qwen3")
    drafter = random_drafter(target, kind="dspark", dtype=torch.float64, target_layer_ids=(0,))
    requests = [
        Request(prompt_token_ids=(1, 2, 3), max_new_tokens=12, num_draft_tokens=3, seed=seed, sampling=SamplingParams())
        for seed in range(2)
    ]
    scheduled = SpeculativeDecoder(target, drafter, scheduler=Every()).generate(requests)
    drafted = [generation.record.drafted_per_step for generation in scheduled]
    assert all(counts[::2] == (0,) * len(counts[::2]) for counts in drafted)
    assert all(counts[1] == 3 for counts in drafted)
    assert asked[0] == 2
