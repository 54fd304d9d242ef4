"""The estimate without decoding equals what verification does, and text that cannot carry it is refused."""

from pathlib import Path

import pytest
import torch

from dspark.causal_model import CausalModel
from dspark.drafters.factory import new_network
from dspark.training.corpus import regenerate
from dspark.training.documents import Prompt
from dspark.training.evaluation import Acceptance, estimate_acceptance
from dspark.training.losses import acceptance_ratios
from dspark.verification import acceptance_ratios as verified_ratios
from dspark.verification import accepted_prefix
from tests.dspark.conftest import build

V = 4


def test_ratios_along_the_targets_text_survive_as_often_as_drafts_are_accepted() -> None:
    """Two positions, laws that depend on the first token: the estimate from target samples against verified drafts.

    Both are means of 40000 numbers in [0, 1], so they differ by less than 5 * sqrt(2 * 0.25 / 40000) except once in a million.
    """
    generator = torch.Generator().manual_seed(0)
    count = 40_000
    draft, target = (torch.randn(1 + V, V, generator=generator) for _ in range(2))  # row 0; row 1 + x after token x

    def sampled(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = torch.multinomial(logits[0].softmax(-1).expand(count, V), 1, generator=generator)
        second = torch.multinomial(logits[1 + first[:, 0]].softmax(-1), 1, generator=generator)
        rows = torch.stack([torch.zeros(count, dtype=torch.long), 1 + first[:, 0]], 1)
        return torch.cat([first, second], 1), rows

    text, rows = sampled(target)
    estimate = Acceptance.of(acceptance_ratios(draft[rows], target[rows], text))
    drafts, rows = sampled(draft)
    target_probs = torch.cat([target[rows], target[:1].expand(count, 1, V)], 1).softmax(-1)
    ratios = verified_ratios(drafts, draft[rows].softmax(-1), target_probs)
    accepted = accepted_prefix(ratios, torch.rand(count, 2, generator=generator, dtype=torch.float64))
    for position in range(2):
        measured = (accepted > position).double().mean().item()
        assert estimate.survival[position] == pytest.approx(measured, abs=5 * (0.5 / count) ** 0.5)
    assert estimate.length == pytest.approx(1 + accepted.double().mean().item(), abs=0.04)
    marginal = acceptance_ratios(draft[:1].expand(count, V), target[:1].expand(count, V), text[:, 1]).mean().item()
    assert abs(marginal - estimate.conditional[1]) > 0.02, "laws that ignore the first token would be seen"


def test_conditional_acceptance_is_survival_over_survival() -> None:
    acceptance = Acceptance.of(torch.tensor([[1.0, 0.5], [0.5, 1.0], [0.0, 1.0]]))
    assert acceptance.survival == pytest.approx((0.5, 1 / 3))
    assert acceptance.conditional == pytest.approx((0.5, 2 / 3))
    assert acceptance.length == pytest.approx(1 + 0.5 + 1 / 3)


def test_responses_shorter_than_a_block_are_refused(tmp_path: Path) -> None:
    target = build("qwen3", dtype=torch.float32)
    shape = {"num_hidden_layers": 1, "block_size": 5, "target_layer_ids": (0,), "mask_token_id": 0}
    network = new_network(target, kind="dflash", **shape)
    prompts = [Prompt(token_ids=(1, 2), domain="x")] * 2
    text = regenerate(CausalModel.of(target), prompts, tmp_path, max_new_tokens=4)
    with pytest.raises(ValueError, match="no response holds a whole block"):
        estimate_acceptance(CausalModel.of(target), network, text)
