"""Planted bugs of block verification (XBV), in a rule written row by row after Sun et al. 2024, algorithm 2."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dspark.conformance import CLAIMED, ConformingDecoder
from dspark.decoder import SpeculativeDecoder
from dspark.drafters.model import ModelDrafter
from dspark.sampling import draw
from dspark.verification import Verification
from tests.mutants.acceptance import LAW
from tests.mutants.mutant import EXACT, Mutant


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRule:
    """Block verification; every switch but the default is one mistake.

    `token_wise_coins` admits a prefix by min(1, ratio) of its last token; `token_wise_residual` draws from
    max(0, target - draft); `certain_drafts` takes the draft's probability for 1; `stop_at_first` ends at the first prefix
    that is not admitted.
    """

    token_wise_coins: bool = False
    token_wise_residual: bool = False
    certain_drafts: bool = False
    stop_at_first: bool = False

    def __call__(
        self,
        *,
        draft_token_ids: Tensor,
        draft_probs: Tensor,
        target_probs: Tensor,
        draft_lengths: Tensor,
        accept_uniforms: Tensor,
        final_uniforms: Tensor,
    ) -> Verification:
        """A `VerificationRule`."""
        accepted, finals = [], []
        for row, length in enumerate(draft_lengths.tolist()):
            target, draft = target_probs[row].double(), draft_probs[row].double()
            weight, weights = 1.0, [1.0]
            for place, token_id in enumerate(draft_token_ids[row, :length].tolist()):
                drafted = 1.0 if self.certain_drafts else float(draft[place, token_id])
                ratio = float(target[place, token_id]) / drafted if drafted else 0.0
                weight = min(1.0, ratio if self.token_wise_coins else weight * ratio)
                weights.append(weight)
            num_accepted = 0
            for place in range(1, length + 1):
                if bool(accept_uniforms[row, place - 1] < self._admitted(weights, place, length, target, draft)):
                    num_accepted = place
                elif self.stop_at_first:
                    break
            accepted.append(num_accepted)
            finals.append(self._recovered(weights[num_accepted], num_accepted, length, target, draft))
        return Verification(
            torch.tensor(accepted, device=draft_lengths.device), draw(torch.stack(finals), final_uniforms)
        )

    def _admitted(self, weights: list[float], place: int, length: int, target: Tensor, draft: Tensor) -> float:
        """The probability that the prefix of `place` drafts is admitted by its own coin."""
        weight = weights[place]
        if place == length or self.token_wise_coins:
            return weight
        mass = float((weight * target[place] - draft[place]).clamp(min=0).sum())
        return mass / (mass + 1 - weight) if mass + 1 - weight > 0 else 1.0

    def _recovered(self, weight: float, place: int, length: int, target: Tensor, draft: Tensor) -> Tensor:
        """What the token after the longest admitted prefix is drawn from."""
        if place == length:
            return target[place]
        scale = 1.0 if self.token_wise_residual else weight
        excess = (scale * target[place] - draft[place]).clamp(min=0)
        return excess if float(excess.sum()) > 0 else target[place]


def decoder_with(rule: BlockRule) -> Any:
    """The classic decoder under a block rule."""

    def make(models: Any) -> ConformingDecoder:
        decoder = SpeculativeDecoder(models.target, ModelDrafter(models.draft), verify=rule)
        return ConformingDecoder(models, decoder, (*CLAIMED, "draft_model"))

    return make


def xbv(row: str, source: str, mechanism: str, rule: BlockRule, *diagnosis: str) -> Mutant:
    """One mistake of the rule."""
    return Mutant(
        id=row,
        family="XBV",
        source=source,
        mechanism=mechanism,
        make=decoder_with(rule),
        check=EXACT,
        properties=(*LAW, "greedy identity"),
        diagnosis=diagnosis,
    )


ASCEND = "https://github.com/vllm-project/vllm-ascend"
MUTANTS = (
    xbv(
        "XBV-1",
        f"{ASCEND}/pull/7808",
        "block verification admits prefixes by the token-wise criterion",
        BlockRule(token_wise_coins=True),
    ),
    xbv(
        "XBV-2",
        f"{ASCEND}/pull/7603",
        "block verification takes the probability of a sampled draft for 1",
        BlockRule(certain_drafts=True),
    ),
    xbv(
        "XBV-3",
        f"{ASCEND}/pull/11985",
        "block verification stops at the first prefix that is not admitted",
        BlockRule(stop_at_first=True),
    ),
    xbv(
        "RES-7",
        f"{ASCEND}/issues/7807",
        "block verification draws the recovered token from the token-wise residual",
        BlockRule(token_wise_residual=True),
    ),
)
