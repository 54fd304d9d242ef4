"""The reference decoder under schedules: one causal, one that looks ahead, one that is claimed and never at work."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from typing import Any

from torch import Tensor

from dspark.conformance import CLAIMED, CLAIMED_WITH_A_DRAFT_MODEL, ConformingDecoder
from dspark.decoder import SpeculativeDecoder
from dspark.drafters.model import ModelDrafter
from dspark.scheduler.protocol import ScheduleSession
from dspark.verification import Verification, VerificationRule, verify_block
from verify.protocol import ModelPair

CLAIMS = [*CLAIMED, *CLAIMED_WITH_A_DRAFT_MODEL]
THRESHOLD = 0.6
STEPS_PER_SECOND = (1.0, 0.5, 0.45, 0.43, 0.42)  # by drafts in the forward; the paper's example, continued


class Schedule(ScheduleSession):
    """`admit_row` decides about each row by itself."""

    def __init__(self, admit_row: Callable[[Sequence[float]], int]) -> None:
        self.admit_row = admit_row

    def open(self) -> "Schedule":
        return self

    def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
        return tuple(map(self.admit_row, confidences))


def up_to_the_first_doubt(row: Sequence[float]) -> int:
    return next((index for index, confidence in enumerate(row) if confidence < THRESHOLD), len(row))


def best_length_of_all(row: Sequence[float]) -> int:
    """The length with the best expected tokens per cost: confidence in a later draft decides about an earlier one."""
    survival = list(accumulate(row, mul))
    return max(range(len(row) + 1), key=lambda length: (1 + sum(survival[:length])) * STEPS_PER_SECOND[length])


def decoder(
    models: ModelPair, admit_row: Callable[[Sequence[float]], int], *, verify: VerificationRule = verify_block
) -> Any:
    decoding = SpeculativeDecoder(
        models.target, ModelDrafter(models.draft), scheduler=Schedule(admit_row), verify=verify
    )
    return ConformingDecoder(models, decoding, [*CLAIMS, "scheduled"])


def causal(models: ModelPair) -> Any:
    return decoder(models, up_to_the_first_doubt)


def looks_ahead(models: ModelPair) -> Any:
    return decoder(models, best_length_of_all)


def never_at_work(models: ModelPair) -> Any:
    return decoder(models, len)


def mixes_rows(models: ModelPair) -> Any:
    """Verifies each row with the draft law of the row before it."""

    def rolled(*, draft_probs: Tensor, **arguments: Any) -> Verification:
        return verify_block(draft_probs=draft_probs.roll(1, 0), **arguments)

    return decoder(models, up_to_the_first_doubt, verify=rolled)
