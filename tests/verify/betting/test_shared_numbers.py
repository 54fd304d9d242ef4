"""The laws of decoders that use one random number twice, round, or take one law for another: against the mistake itself."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from verify.betting.diagnosis import diagnose
from verify.betting.evidence import Floats, TokenEvidence
from verify.betting.library import library
from verify.betting.wealth import Wealth
from verify.models.coupling import drawn_again

GRID = (np.arange(40_000) + 0.5) / 40_000


def inverted(law: Floats, coins: Floats) -> Floats:
    """Tokens by inversion in the order of the ids."""
    found: Floats = np.minimum(np.searchsorted(law.cumsum(), coins, side="right"), len(law) - 1)
    return found


def residual(target: Floats, draft: Floats) -> Floats:
    excess: Floats = np.maximum(target - draft, 0)
    return excess / excess.sum()


def coin_of_the_draft(target: Floats, draft: Floats) -> Floats:
    drafted = inverted(draft, GRID)
    accepted = np.minimum(1, target / draft)[drafted] > GRID
    mass = np.bincount(drafted[accepted], minlength=len(target)) / len(GRID)
    return mass + (1 - mass.sum()) * residual(target, draft)


def coin_reused_for_recovery(target: Floats, draft: Floats) -> Floats:
    law = np.minimum(target, draft)
    for token_id, ratio in enumerate(np.minimum(1, target / draft)):
        coins = GRID[ratio <= GRID]
        drawn = inverted(residual(target, draft), coins)
        law = law + draft[token_id] * np.bincount(drawn, minlength=len(target)) / len(GRID)
    return law


def draft_drawn_rounded(target: Floats, draft: Floats) -> Floats:
    drawn = rounded(draft)
    accepted = drawn * np.minimum(1, target / draft)
    return accepted + (1 - accepted.sum()) * residual(target, draft)


def target_rounded(target: Floats, draft: Floats) -> Floats:
    return rounded(target)


def rounded(law: Floats) -> Floats:
    values: Floats = torch.tensor(law).bfloat16().double().numpy()
    return values / values.sum()


def probabilities_as_logits(target: Floats, draft: Floats) -> Floats:
    values: Floats = torch.tensor(target).softmax(-1).numpy()
    return values


def draft_from_one_shard(target: Floats, draft: Floats) -> Floats:
    half = (len(draft) + 1) // 2
    accepted = np.zeros_like(draft)
    accepted[:half] = draft[:half] / draft[:half].sum() * np.minimum(1, target / draft)[:half]
    return accepted + (1 - accepted.sum()) * residual(target, draft)


MISTAKES: dict[str, Callable[[Floats, Floats], Floats]] = {
    each.__name__: each
    for each in (
        coin_of_the_draft,
        coin_reused_for_recovery,
        draft_drawn_rounded,
        target_rounded,
        probabilities_as_logits,
        draft_from_one_shard,
    )
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_law_is_that_of_the_mistake(name: str) -> None:
    rng = np.random.default_rng(3)
    target, draft = (rng.dirichlet(np.ones(6), 20) for _ in range(2))
    evidence = TokenEvidence(target_probs=target, draft_probs=draft, token_ids=np.zeros(20, dtype=np.int64))
    (hypothesis,) = (each for each in library() if each.name == name)
    law = hypothesis.law(evidence)
    assert law is not None
    made = np.stack([MISTAKES[name](*pair) for pair in zip(target, draft, strict=True)])
    distance = 0.5 * np.abs(law - made).sum(1)
    assert distance.max() < (1e-4 if name.startswith("coin") else 1e-12)
    assert (0.5 * np.abs(target - made).sum(1)).max() > 10 * distance.max()  # the target itself is further away


@pytest.mark.parametrize(("variant", "again"), [("one uniform", True), ("one noise", True), ("one uniform", False)])
def test_numbers_that_drew_the_token_before_are_seen_and_named(variant: str, again: bool) -> None:
    """Every second token is drawn with the numbers of the one before, as in rounds of two; or with numbers of its own."""
    random = np.random.default_rng(6)
    laws = random.dirichlet(np.ones(4), 4_000)
    uniforms, noise = random.random(4_000), random.exponential(size=(4_000, 4))
    if again:
        uniforms[1::2], noise[1::2] = uniforms[::2], noise[::2]
    if variant == "one uniform":
        tokens = np.array([inverted(law, coin) for law, coin in zip(laws, uniforms, strict=True)])
    else:
        tokens = (laws / noise).argmax(1)
    coupled = drawn_again(torch.tensor(laws), [int(each) for each in tokens])
    wealth = Wealth(alpha=1e-6)
    alternatives = {name: law.numpy() for name, law in coupled.items()}
    wealth.update(TokenEvidence(target_probs=laws, token_ids=tokens, alternatives=alternatives))
    assert wealth.rejected is again
    if again:
        assert diagnose(wealth).name == "numbers_used_again"
