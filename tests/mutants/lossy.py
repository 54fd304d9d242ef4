"""Rules that are lossy by design and passed as lossless (LOSSY), and admission that looks at the draft (SCHED)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dspark.conformance import CLAIMED, ConformingDecoder
from dspark.decoder import SpeculativeDecoder
from dspark.drafters.model import ModelDrafter, ModelDraftSession
from dspark.drafters.protocol import Proposal
from dspark.scheduler.algorithm import PrefixScheduler
from dspark.scheduler.lagged import LaggedScheduler
from dspark.scheduler.past import Past
from dspark.scheduler.profile import SpeedProfile
from dspark.scheduler.protocol import Scheduler
from dspark.scheduler.ranking import counted, ranked
from dspark.scheduler.round_profile import RoundProfile
from dspark.scheduler.skipping import SkippingScheduler, SkippingSession
from dspark.scheduler.threshold import StaticThreshold
from dspark.verification import acceptance_ratios
from tests.mutants.acceptance import LAW
from tests.mutants.mutant import EXACT, Mutant

propose = ModelDraftSession.propose
# The paper's example, continued: the second token of a forward is dear. Where the cost rises evenly the expected rate has one
# peak, and a search over all lengths finds what the early stop finds.
STEPS = SpeedProfile(token_counts=(1, 2, 3, 4, 5), steps_per_second=(1.0, 0.5, 0.45, 0.43, 0.42))
# Two drafts pay if the second is sure, one does not.
DEAR_DRAFTS = RoundProfile(
    row_counts=(1,), draft_counts=(0, 1, 2), plain_seconds=(1.0,), drafted_seconds=((1.5, 1.6, 1.85),)
)


def typical(draft_token_ids: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Accept iff target > min(0.09, 0.3 exp(-entropy))."""
    laws = target_probs[:, :-1].double()
    entropy = torch.special.entr(laws).sum(-1)  # [B, K]
    target = laws.gather(-1, draft_token_ids.unsqueeze(-1)).squeeze(-1)
    return (target > (0.3 * (-entropy).exp()).clamp(max=0.09)).double()


def best_if_rejected(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """After a rejection the arg max is emitted; the bonus is drawn."""
    best = torch.zeros_like(target_row).scatter(-1, target_row.argmax(-1, keepdim=True), 1.0)
    return torch.where(draft_row.sum(-1, keepdim=True) > 0, best, target_row)


def draft_best(law: Tensor, uniform: Tensor) -> Tensor:
    """Medusa's heads propose their best token."""
    return law.argmax(-1)


def lenient(factor: float) -> Any:
    """The ratio target / draft is multiplied by a factor above 1."""
    return lambda *arguments: factor * acceptance_ratios(*arguments)


def by_own_probability(self: ModelDraftSession, **keywords: Any) -> Proposal:
    """The confidence in a draft is the probability of the token that was drawn."""
    proposal = propose(self, **keywords)
    if not proposal.draft_token_ids.shape[1]:
        return proposal
    drawn = proposal.draft_probs.gather(-1, proposal.draft_token_ids.unsqueeze(-1)).squeeze(-1)
    return replace(proposal, confidences=drawn)


def scheduled(scheduler: Scheduler) -> Any:
    """The classic decoder under a scheduler."""

    def make(models: Any) -> ConformingDecoder:
        decoder = SpeculativeDecoder(models.target, ModelDrafter(models.draft), scheduler=scheduler)
        claims = [claim for claim in CLAIMED if claim != "seeds_per_request"]  # a schedule may look at batch mates
        return ConformingDecoder(models, decoder, [*claims, "scheduled"])

    return make


def best_of_all_lengths(self: PrefixScheduler, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """No early stop: the length with the largest theta, found with confidences that the drafts in question have decided."""
    num_rows = len(confidences)
    capacity, _ = Past.of(ranked(confidences), num_rows).best(num_rows, self.profile.of_rows(num_rows))
    return counted(ranked(confidences)[:capacity], num_rows)


def capacity_of_this_round(self: Any, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """The capacity is searched with this round's confidences instead of those of two rounds ago."""
    return best_of_all_lengths(self, confidences)


def dropped_after_drafting(self: SkippingSession, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Whether drafting pays is looked at when the drafts are there: those of rounds that do not pay are dropped."""
    num_rows = len(confidences)
    _, rate = Past.of(ranked(confidences), num_rows).best(num_rows, self.profile.of_rows(num_rows))
    if rate <= num_rows * self.profile.plain_rounds_per_second(num_rows):
        return (0,) * num_rows
    return self.inner.admit(confidences)


def one_draft_early(self: StaticThreshold, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """A draft is dropped when the one after it is doubtful, which it has decided itself."""
    return tuple(
        next((max(0, place - 1) for place, each in enumerate(row) if each < self.threshold), len(row))
        for row in confidences
    )


def lossy(row: str, source: str, mechanism: str, patches: dict[str, Any], *diagnosis: str, **fields: Any) -> Mutant:
    """One rule of these families."""
    full = {f"dspark.{name}": value for name, value in patches.items()}
    given: dict[str, Any] = {"check": EXACT, "properties": LAW, **fields}
    family = row.split("-")[0]
    return Mutant(id=row, family=family, source=source, mechanism=mechanism, patches=full, diagnosis=diagnosis, **given)


RATIOS, RESIDUAL = "verification.acceptance_ratios", "verification.residual"
GENEROUS = "acceptance_too_generous"
SCHEDULES: dict[str, Any] = {
    "check": "test_12_scheduling.py::test_admission[uneven, dear forward]",
    "properties": (*LAW, "admission", "exact law of stopping", "exact law of processors"),
}
MUTANTS = (
    lossy(
        "LOSSY-1",
        "https://github.com/vllm-project/vllm/pull/5131",
        "typical acceptance (entropy threshold); the arg max after a rejection",
        {RATIOS: typical, RESIDUAL: best_if_rejected},
        "typical_acceptance",
    ),
    lossy(
        "LOSSY-3",
        "https://github.com/sgl-project/sglang/issues/35771",
        "accepted if coin <= ratio / threshold_acc, with a threshold of 2/3",
        {RATIOS: lenient(1.5)},
        GENEROUS,
    ),
    lossy(
        "LOSSY-4",
        "https://github.com/lucidrains/speculative-decoding/blob/main/speculative_decoding/speculative_decoding.py",
        "a lenience of 0.9 multiplies the draft's probability in the ratio only",
        {RATIOS: lenient(1 / 0.9)},
        GENEROUS,
    ),
    lossy(
        "LOSSY-7",
        "https://github.com/FasterDecoding/Medusa/issues/56",
        "typical acceptance of drafts that are the arg max, the default of Medusa",
        {RATIOS: typical, RESIDUAL: best_if_rejected, "drafters.model.draw": draft_best},
        "typical_acceptance",
    ),
    lossy(
        "SCHED-1",
        "https://github.com/deepseek-ai/DeepSpec/blob/main/DSpark_paper.pdf",
        "the verified length is the best of all, found with confidences that the drafts have decided",
        {"scheduler.algorithm.PrefixScheduler.admit": best_of_all_lengths},
        make=scheduled(PrefixScheduler(STEPS)),
        **SCHEDULES,
    ),
    lossy(
        "SCHED-2",
        "https://github.com/NVIDIA/TensorRT-LLM/pull/17056",
        "the capacity of the asynchronous scheduler is searched with confidences of the same round",
        {"scheduler.lagged.LaggedSession.admit": capacity_of_this_round},
        make=scheduled(LaggedScheduler(STEPS)),
        **SCHEDULES,
    ),
    lossy(
        "SCHED-3",
        "https://github.com/vllm-project/vllm-ascend/pull/13819",
        "the confidence of a sampled draft is its own probability, so the token decides whether it is verified",
        {"drafters.model.ModelDraftSession.propose": by_own_probability},
        make=scheduled(StaticThreshold(0.4)),
        **SCHEDULES,
    ),
    lossy(
        "SCHED-a",
        "derived",
        "a threshold drops the draft before the doubtful one, which that draft has decided",
        {"scheduler.threshold.StaticThreshold.admit": one_draft_early},
        make=scheduled(StaticThreshold(0.5)),
        **SCHEDULES,
    ),
    lossy(
        "SCHED-b",
        "derived",
        "whether a round drafts is decided when its drafts are known: those that do not pay are dropped",
        {
            "scheduler.skipping.SkippingSession.wants_drafts": lambda self, num_rows: True,
            "scheduler.skipping.SkippingSession.admit": dropped_after_drafting,
        },
        make=scheduled(SkippingScheduler(PrefixScheduler(DEAR_DRAFTS), DEAR_DRAFTS)),
        **{**SCHEDULES, "check": "test_12_scheduling.py::test_admission[uneven, dear first draft]"},
    ),
)
