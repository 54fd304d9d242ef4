"""The example of the DSpark paper's appendix A, by hand and through the whole decoder."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark.decoder import SpeculativeDecoder
from dspark.drafters.protocol import Proposal
from dspark.request import Request
from dspark.sampling import History, Processors, draw
from dspark.scheduler.algorithm import PrefixScheduler
from dspark.scheduler.lagged import LaggedScheduler
from dspark.scheduler.protocol import Scheduler, ScheduleSession
from tests.dspark.scheduler.policies import CAUSAL, PAPER, RetrospectiveScheduler, after, profile_of
from verify import protocol
from verify.exact.distance import product_law, total_variation
from verify.exact.enumeration import enumerate_outcomes
from verify.models.reference import Reference
from verify.models.table import TableLM

A, B = 0, 1
TARGET, DRAFT = (0.7, 0.3), (0.5, 0.5)
PASTS: dict[str, list[list[list[float]]]] = {
    "none": [],
    "hopeless": [[[0.0, 0.0]]] * 2,
    "hopeful": [[[1.0, 1.0]]] * 2,
    "short": [[[1.0]]] * 2,
}


def confidences_after(drafts: Sequence[int]) -> list[float]:
    """0.8 for the first draft; then 0.9 after an A and 0 after a B: draft k decides about draft k + 1."""
    return [0.8, *(0.9 if draft == A else 0.0 for draft in drafts)]


def law_of_first_token(session: ScheduleSession) -> dict[int, float]:
    """The first token's law when two drafts are offered, by summing over draft and coin."""
    law = {A: 0.0, B: 0.0}
    for first in (A, B):
        [length] = session.admit([confidences_after([first])])
        if length == 0:
            for token in law:
                law[token] += DRAFT[first] * TARGET[token]
            continue
        accepted = min(1.0, TARGET[first] / DRAFT[first])
        law[first] += DRAFT[first] * accepted
        excess = [max(0.0, target - draft) for target, draft in zip(TARGET, DRAFT, strict=True)]
        for token in law:
            law[token] += DRAFT[first] * (1 - accepted) * excess[token] / sum(excess)
    return law


def test_a_search_over_the_whole_block_emits_a_with_085() -> None:
    assert law_of_first_token(RetrospectiveScheduler(PAPER))[A] == pytest.approx(0.85, abs=1e-12)


@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_schedules_emit_a_with_070(name: str, past: str) -> None:
    class Fresh(ScheduleSession):
        """A lagged session must not learn from the other branch of the sum."""

        def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
            return after(CAUSAL[name](PAPER), PASTS[past]).admit(confidences)

    assert law_of_first_token(Fresh()) == pytest.approx({A: 0.7, B: 0.3}, abs=1e-12)


class FedDrafter:
    """Draws from `draft_probs` and is as confident as the example says; each draft has the next confidence in its hand."""

    feature_layers: tuple[int, ...] = ()

    def __init__(self, draft_probs: Sequence[float] = DRAFT, *, num_rounds: int = 9) -> None:
        self.draft_probs = torch.tensor(draft_probs, dtype=torch.float64)
        self.num_rounds = num_rounds

    def open(self, num_rows: int) -> "FedSession":
        return FedSession(self)


class FedSession:
    def __init__(self, drafter: FedDrafter) -> None:
        self.drafter = drafter
        self.num_rounds = 0

    def propose(
        self,
        *,
        token_ids: Sequence[Sequence[int]],
        num_draft_tokens: Sequence[int],
        processors: Processors,
        history: History,
        uniforms: Tensor,
    ) -> Proposal:
        self.num_rounds += 1
        if self.num_rounds > self.drafter.num_rounds:
            return Proposal.empty(len(token_ids), processors)
        width = max(num_draft_tokens)
        law = self.drafter.draft_probs.expand(len(token_ids), -1)  # [B, V]
        drafts = torch.zeros(len(token_ids), width, dtype=torch.long)
        for row, length in enumerate(num_draft_tokens):
            for position in range(length):
                drafts[row, position] = draw(law[row : row + 1], uniforms[row : row + 1, position])[0]
        confidences = torch.tensor([confidences_after(row[: width - 1]) for row in drafts.tolist()])
        return Proposal(drafts, law.unsqueeze(1).expand(-1, width, -1), tuple(num_draft_tokens), confidences.double())

    def observe(self, *, token_ids: Tensor, counts: Sequence[int], features: Tensor | None) -> None: ...

    def select(self, rows: Sequence[int]) -> None: ...


def distance_from_target(
    target: PreTrainedModel, drafter: FedDrafter, scheduler: Scheduler, lengths: Sequence[int]
) -> float:
    """Total variation between what the decoder emits and the product of the target's laws; rows differ by prompt."""
    decoder = SpeculativeDecoder(target, drafter, scheduler=scheduler)
    settings = [{"max_new_tokens": length, "num_draft_tokens": length - 1} for length in lengths]
    prompts = [(row % 2, *[1] * row) for row in range(len(lengths))]
    asked = [
        Request(prompt_token_ids=prompt, **each)  # type: ignore[arg-type]
        for prompt, each in zip(prompts, settings, strict=True)
    ]
    found = enumerate_outcomes(
        lambda: tuple(each.token_ids for each in decoder.generate(asked)),
        max_paths=20_000,
    )
    assert found.complete
    assert found.num_paths > 10
    reference = Reference(target)
    laws = [
        reference.sequence_law(protocol.Request(prompt_token_ids=prompt, **each))  # type: ignore[arg-type]
        for prompt, each in zip(prompts, settings, strict=True)
    ]
    return total_variation(found.law, product_law(laws))


def example_target() -> PreTrainedModel:
    return TableLM.from_probs([TARGET])


def varied_target() -> PreTrainedModel:
    """Rows that depend on all that was read."""
    generator = torch.Generator().manual_seed(5)
    return TableLM.from_probs((1.2 * torch.randn(61, 2, generator=generator, dtype=torch.float64)).softmax(-1))


def test_the_decoder_shows_the_example() -> None:
    target, drafter = example_target(), FedDrafter(num_rounds=1)
    assert distance_from_target(target, drafter, RetrospectiveScheduler(PAPER), [3]) == pytest.approx(0.15, abs=0.02)
    assert distance_from_target(target, drafter, PrefixScheduler(PAPER), [3]) < 1e-12


@pytest.mark.parametrize("name", ["algorithm", "lag 1", "threshold"])
def test_exact_law_over_several_rounds(name: str) -> None:
    profile = profile_of(1.0, 0.6, 0.5, 0.48)
    assert distance_from_target(varied_target(), FedDrafter((0.6, 0.4)), CAUSAL[name](profile), [4]) < 1e-12


class WithPast:
    """A scheduler whose every batch begins after some rounds."""

    def __init__(self, scheduler: Scheduler, past: Sequence[Sequence[Sequence[float]]]) -> None:
        self.scheduler = scheduler
        self.past = past

    def open(self) -> ScheduleSession:
        return after(self.scheduler, self.past)


# Three drafts pay and a fourth does not: the rows compete for the third.
COUPLED = profile_of(1.0, 1.0, 0.8, 0.69, 0.63, 0.5)
COMPETING: dict[str, Scheduler] = {
    "algorithm": PrefixScheduler(COUPLED),
    "lag": WithPast(LaggedScheduler(COUPLED, lag=1), [[[1.0, 1.0]] * 2]),
}


@pytest.mark.parametrize("name", COMPETING)
def test_exact_product_law_of_rows_that_compete(name: str) -> None:
    scheduler = COMPETING[name]
    second_row = {
        first: scheduler.open().admit([confidences_after([first]), confidences_after([A])])[1] for first in (A, B)
    }
    assert second_row == {A: 1, B: 2}  # what one row drafts decides what the other verifies
    assert distance_from_target(varied_target(), FedDrafter(num_rounds=1), scheduler, [3, 3]) < 1e-12


def test_looking_ahead_shows_where_rows_compete() -> None:
    scheduler = RetrospectiveScheduler(profile_of(1.0, 1.0, 0.65, 0.5, 0.45, 0.42))
    assert distance_from_target(varied_target(), FedDrafter(num_rounds=1), scheduler, [3, 3]) > 0.01
