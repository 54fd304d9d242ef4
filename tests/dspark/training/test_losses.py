import math

import pytest
import torch

from dspark.training.losses import LossWeights, acceptance_ratios, drafter_losses, position_weights

B, A, K, V = 2, 3, 4, 5
WEIGHTS = LossWeights(cross_entropy=0.1, distance=0.9, confidence=1.0, decay=2.0)


def example(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "draft_logits": torch.randn(B, A, K, V, generator=generator),
        "target_logits": torch.randn(B, A, K, V, generator=generator),
        "draft_token_ids": torch.randint(V, (B, A, K), generator=generator),
        "valid": torch.rand(B, A, K, generator=generator) < 0.7,
        "confidence_logits": torch.randn(B, A, K, generator=generator),
    }


def softmax(row: torch.Tensor) -> list[float]:
    exponentials = [math.exp(value) for value in row.tolist()]
    return [value / sum(exponentials) for value in exponentials]


def test_losses_equal_the_formulas_written_as_loops() -> None:
    inputs = example()
    sums = [0.0, 0.0, 0.0]
    overlaps: list[list[float]] = [[] for _ in range(K)]
    mass = 0.0
    for b in range(B):
        for a in range(A):
            for k in range(K):
                if not inputs["valid"][b, a, k]:
                    continue
                draft = softmax(inputs["draft_logits"][b, a, k])
                target = softmax(inputs["target_logits"][b, a, k])
                weight = math.exp(-k / WEIGHTS.decay)
                distance = sum(abs(x - y) for x, y in zip(draft, target, strict=True))
                wanted = 1 - 0.5 * distance
                said = 1 / (1 + math.exp(-inputs["confidence_logits"][b, a, k].item()))
                mass += weight
                sums[0] -= weight * math.log(draft[int(inputs["draft_token_ids"][b, a, k])])
                sums[1] += weight * distance
                sums[2] -= weight * (wanted * math.log(said) + (1 - wanted) * math.log(1 - said))
                overlaps[k].append(sum(map(min, draft, target)))
    losses = drafter_losses(**inputs, weights=WEIGHTS)
    expected = [value / mass for value in sums]
    assert losses.cross_entropy.item() == pytest.approx(expected[0], rel=1e-5)
    assert losses.distance.item() == pytest.approx(expected[1], rel=1e-5)
    assert losses.confidence.item() == pytest.approx(expected[2], rel=1e-5)
    assert losses.total.item() == pytest.approx(0.1 * expected[0] + 0.9 * expected[1] + expected[2], rel=1e-5)
    assert losses.acceptance.tolist() == pytest.approx([sum(each) / len(each) for each in overlaps], rel=1e-5)
    assert losses.counts.tolist() == [len(each) for each in overlaps]


def test_position_weights_halve_where_they_should() -> None:
    weights = position_weights(7, 4.0, device=torch.device("cpu"))
    assert weights[0] == 1
    assert weights.tolist() == pytest.approx([math.exp(-k / 4) for k in range(7)])


def test_padding_decides_nothing() -> None:
    inputs = example()
    other = example(1)
    there = inputs["valid"]
    changed = {
        name: torch.where(there if value.dim() == 3 else there[..., None], value, other[name])
        for name, value in inputs.items()
    }
    changed["valid"] = there
    assert drafter_losses(**changed, weights=WEIGHTS).total == drafter_losses(**inputs, weights=WEIGHTS).total


def test_the_confidence_does_not_teach_the_draft() -> None:
    """No gradient flows through c*, else the draft could please the head instead of the target."""
    inputs = example()
    inputs["draft_logits"].requires_grad_()
    weights = LossWeights(cross_entropy=0.0, distance=0.0, confidence=1.0, decay=2.0)
    loss = drafter_losses(**inputs, weights=weights).total
    assert torch.autograd.grad(loss, inputs["draft_logits"], allow_unused=True)[0].abs().max() == 0


def test_equal_laws_have_no_distance_and_full_overlap() -> None:
    inputs = example()
    inputs["target_logits"] = inputs["draft_logits"] + 3.0
    losses = drafter_losses(**inputs, weights=WEIGHTS)
    assert losses.distance.item() == pytest.approx(0, abs=1e-5)
    assert losses.acceptance.tolist() == pytest.approx([1.0] * K)


def test_without_a_confidence_head_there_is_no_such_term() -> None:
    inputs = example()
    losses = drafter_losses(**{**inputs, "confidence_logits": None}, weights=WEIGHTS)
    assert losses.confidence == 0
    assert losses.total.item() == pytest.approx(0.1 * losses.cross_entropy.item() + 0.9 * losses.distance.item())


def test_ratios_on_text_of_the_target_give_the_overlap() -> None:
    """Summed over all tokens with the target's weight, min(1, draft/target) is exactly the mass of min(target, draft)."""
    inputs = example()
    target, draft = inputs["target_logits"][0, 0, 0], inputs["draft_logits"][0, 0, 0]
    every = torch.arange(V)
    ratios = acceptance_ratios(draft.expand(V, V), target.expand(V, V), every)
    overlap = torch.minimum(draft.softmax(-1), target.softmax(-1)).sum().item()
    assert (target.softmax(-1) * ratios).sum().item() == pytest.approx(overlap, rel=1e-5)
