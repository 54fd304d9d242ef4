"""A speculative sampler of 15 lines: exact when correct, visibly off with each planted bug."""

from typing import Literal, TypeAlias

import pytest
import torch
from torch import Tensor

from verify.exact.distance import product_law, total_variation
from verify.exact.enumeration import enumerate_outcomes

Bug: TypeAlias = Literal["none", "residual not subtracted", "coin reused", "accepts too much", "bonus from the draft"]
BUGS: tuple[Bug, ...] = ("residual not subtracted", "coin reused", "accepts too much", "bonus from the draft")
NUM_TOKENS = 3
NUM_DRAFT_TOKENS = 2
Tokens: TypeAlias = tuple[int, ...]


def probs_after(prefix: Tokens, seed: int) -> Tensor:
    """A law over 3 tokens that depends on the whole prefix; token 1 is impossible for the target after a 0."""
    phase = torch.tensor([0.3, 1.1, 2.3], dtype=torch.float64) * (
        1 + 2 * seed + sum((i + 2) * (t + 1) for i, t in enumerate(prefix))
    )
    weights = (1.5 * phase.sin()).exp()
    if seed == 0 and prefix and prefix[-1] == 0:
        weights[1] = 0
    return weights / weights.sum()


def draw(probs: Tensor, coin: Tensor) -> int:
    return int(torch.searchsorted(probs.cumsum(-1) / probs.sum(), coin, right=True))


def decode(bug: Bug) -> Tokens:
    output: Tokens = ()
    while len(output) < NUM_TOKENS:
        drafted = output
        for _ in range(min(NUM_DRAFT_TOKENS, NUM_TOKENS - len(output) - 1)):
            drafted = (*drafted, int(torch.multinomial(probs_after(drafted, 1), 1)))
        for position in range(len(output), len(drafted)):
            target_probs, draft_probs = probs_after(output, 0), probs_after(output, 1)
            coin = torch.rand((), dtype=torch.float64)
            ratio = target_probs[drafted[position]] / draft_probs[drafted[position]]
            if coin < ratio + (0.02 if bug == "accepts too much" else 0.0):
                output = (*output, drafted[position])
                continue
            residual = target_probs if bug == "residual not subtracted" else (target_probs - draft_probs).clamp(min=0)
            output = (*output, draw(residual, coin if bug == "coin reused" else torch.rand((), dtype=torch.float64)))
            break
        else:
            last = probs_after(output, 1 if bug == "bonus from the draft" else 0)
            output = (*output, draw(last, torch.rand((), dtype=torch.float64)))
    return output


def target_law() -> dict[Tokens, float]:
    law: dict[Tokens, float] = {(): 1.0}
    for _ in range(NUM_TOKENS):
        law = {
            (*prefix, token): mass * probability
            for prefix, mass in law.items()
            for token, probability in enumerate(probs_after(prefix, 0).tolist())
        }
    return law


def test_correct_sampler_is_exact() -> None:
    found = enumerate_outcomes(lambda: decode("none"), max_paths=5000)
    assert found.complete
    assert found.num_paths > 100
    assert total_variation(found.law, target_law()) < 1e-12
    assert all(target_law()[tokens] > 0 for tokens in found.law)


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_visible(bug: Bug) -> None:
    found = enumerate_outcomes(lambda: decode(bug), max_paths=5000)
    assert found.complete
    assert total_variation(found.law, target_law()) > 1e-3


def test_two_requests_on_one_stream_of_coins_break_the_product() -> None:
    """Each request alone is right; together they must be independent."""

    def run(shared: bool) -> tuple[int, int]:
        coins = torch.rand(1, dtype=torch.float64).expand(2) if shared else torch.rand(2, dtype=torch.float64)
        return draw(probs_after((2,), 0), coins[0]), draw(probs_after((1,), 0), coins[1])

    laws = [dict(enumerate(probs_after((last,), 0).tolist())) for last in (2, 1)]
    assert total_variation(enumerate_outcomes(lambda: run(False), max_paths=50).law, product_law(laws)) < 1e-12
    assert total_variation(enumerate_outcomes(lambda: run(True), max_paths=50).law, product_law(laws)) > 0.1
