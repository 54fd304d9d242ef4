"""The law of one round, computed without sampling: thresholds are found by bisection on crafted uniforms."""

from collections import defaultdict
from itertools import product

import pytest
import torch
from torch import Tensor

import dspark.verification as subject
from dspark.sampling import draw
from dspark.verification import verify_block

V, K = 4, 2
LARGEST_UNIFORM = 1 - 2.0**-53


def random_law(generator: torch.Generator, *, zeros: bool = True) -> Tensor:
    probs = torch.rand(V, generator=generator, dtype=torch.float64) ** 2 + 0.01
    if zeros:
        probs[int(torch.randint(V, (1,), generator=generator))] = 0
    return probs / probs.sum()


class Scenario:
    """Context-dependent laws of a two-token block: row k is keyed by the drafts before it."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        contexts = [c for k in range(K + 1) for c in product(range(V), repeat=k)]
        self.target = {c: random_law(generator) for c in contexts}
        self.draft = {c: random_law(generator) for c in contexts}

    def blocks(self) -> list[tuple[int, ...]]:
        return list(product(range(V), repeat=K))

    def arguments(self) -> dict[str, Tensor]:
        blocks = self.blocks()
        return {
            "draft_token_ids": torch.tensor(blocks),
            "draft_probs": torch.stack([torch.stack([self.draft[b[:k]] for k in range(K)]) for b in blocks]),
            "target_probs": torch.stack([torch.stack([self.target[b[:k]] for k in range(K + 1)]) for b in blocks]),
            "draft_lengths": torch.full((len(blocks),), K),
        }


def emitted_law(scenario: Scenario) -> dict[tuple[int, ...], float]:
    """Law of the first K + 1 tokens: the round's emission, continued with the target's own law."""
    arguments, blocks = scenario.arguments(), scenario.blocks()
    num = len(blocks)

    def outcome(accept: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
        result = verify_block(**arguments, accept_uniforms=accept, final_uniforms=final)
        return result.num_accepted, result.final_token_ids

    thresholds = torch.zeros(num, K, dtype=torch.float64)  # P(draft k stands | those before it do)
    for k in range(K):
        low, high = torch.zeros(num, dtype=torch.float64), torch.ones(num, dtype=torch.float64)
        for _ in range(60):
            middle = (low + high) / 2
            accept = torch.zeros(num, K, dtype=torch.float64)
            # Reaching position k needs the earlier ones accepted; where they cannot be, k is never reached.
            accept[:, k] = middle
            stands = outcome(accept, torch.zeros(num, dtype=torch.float64))[0] > k
            low, high = torch.where(stands, middle, low), torch.where(stands, high, middle)
        thresholds[:, k] = low
    law: dict[tuple[int, ...], float] = defaultdict(float)
    for num_accepted in range(K + 1):
        accept = torch.zeros(num, K, dtype=torch.float64)
        accept[:, num_accepted:] = LARGEST_UNIFORM
        final_probs = final_law(lambda final, accept=accept: outcome(accept, final), num, num_accepted)
        for row, block in enumerate(blocks):
            weight = 1.0
            for k in range(K):
                weight *= float(scenario.draft[block[:k]][block[k]])
            for k in range(num_accepted):
                weight *= float(thresholds[row, k])
            if num_accepted < K:
                weight *= 1 - float(thresholds[row, num_accepted])
            for token in range(V):
                mass = weight * float(final_probs[row, token])
                if mass:
                    spread(law, scenario, (*block[:num_accepted], token), mass)
    return law


def final_law(outcome, num: int, num_accepted: int) -> Tensor:
    """P(final token | uniforms up to it), `[num, V]`: the final token never decreases in its uniform."""
    edges = torch.zeros(num, V + 1, dtype=torch.float64)
    edges[:, V] = 1
    for token in range(1, V):  # edge = smallest uniform whose token is >= `token`
        low, high = torch.zeros(num, dtype=torch.float64), torch.ones(num, dtype=torch.float64)
        at_zero = outcome(torch.zeros(num, dtype=torch.float64))[1] >= token
        for _ in range(60):
            middle = (low + high) / 2
            reached = outcome(middle.clamp(max=LARGEST_UNIFORM))[1] >= token
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
        edges[:, token] = torch.where(at_zero, 0.0, high)
    return edges.diff(dim=1)


def spread(law: dict[tuple[int, ...], float], scenario: Scenario, prefix: tuple[int, ...], mass: float) -> None:
    if len(prefix) == K + 1:
        law[prefix] += mass
        return
    for token in range(V):
        spread(law, scenario, (*prefix, token), mass * float(scenario.target[prefix][token]))


def total_variation(scenario: Scenario) -> float:
    emitted = emitted_law(scenario)
    reference: dict[tuple[int, ...], float] = defaultdict(float)
    spread(reference, scenario, (), 1.0)
    return sum(abs(emitted[key] - reference[key]) for key in {*emitted, *reference}) / 2


@pytest.mark.parametrize("seed", range(3))
def test_round_follows_the_target(seed: int) -> None:
    assert total_variation(Scenario(seed)) < 1e-12


MUTANTS = {
    "residual not subtracted": ("residual", lambda target, draft: target),
    "residual absolute": ("residual", lambda target, draft: (target - draft).abs()),
    "residual reversed": ("residual", lambda target, draft: (draft - target).clamp(min=0) + (draft == 0) * target),
    "deterministic acceptance": (
        "acceptance_ratios",
        lambda ids, draft, target: (ORIGINAL_RATIOS(ids, draft, target) >= 1).double(),
    ),
    "acceptance too generous": (
        "acceptance_ratios",
        lambda ids, draft, target: ORIGINAL_RATIOS(ids, draft, target) + 0.01,
    ),
    "target row of the next position": (
        "acceptance_ratios",
        lambda ids, draft, target: ORIGINAL_RATIOS(ids, draft, target.roll(-1, 1)),
    ),
    "acceptance goes on after a rejection": ("accepted_prefix", lambda ratios, u: (u < ratios).sum(-1)),
}
ORIGINAL_RATIOS = subject.acceptance_ratios


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, *MUTANTS[name])
    assert total_variation(Scenario(0)) > 1e-3


def test_always_rejecting_is_lossless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim behind malformed rows: reject without looking at the draft, recover from the target row."""
    monkeypatch.setattr(subject, "trustworthy", lambda ids, probs: torch.zeros(probs.shape[:2], dtype=torch.bool))
    assert total_variation(Scenario(0)) < 1e-12


def single(
    target: list[float],
    draft: list[float],
    token: int,
    *,
    accept: float,
    final: float = 0.0,
    length: int = 1,
    dtype: torch.dtype = torch.float64,
) -> tuple[int, int]:
    result = verify_block(
        draft_token_ids=torch.tensor([[token]]),
        draft_probs=torch.tensor([[draft]], dtype=dtype),
        target_probs=torch.tensor([[target, [0.0, 0.0, 1.0]]], dtype=dtype),
        draft_lengths=torch.tensor([length]),
        accept_uniforms=torch.tensor([[accept]], dtype=torch.float64),
        final_uniforms=torch.tensor([final], dtype=torch.float64),
    )
    return int(result.num_accepted), int(result.final_token_ids)


@pytest.mark.parametrize("final", [0.0, 0.5, LARGEST_UNIFORM])
def test_uniform_zero_rejects_an_impossible_token(final: float) -> None:
    assert single([0.0, 1.0, 0.0], [1.0, 0.0, 0.0], 0, accept=0.0, final=final) == (0, 1)


def test_non_strict_acceptance_would_emit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "accepted_prefix", lambda ratios, u: (u <= ratios).long().cumprod(1).sum(1))
    assert single([0.0, 1.0, 0.0], [1.0, 0.0, 0.0], 0, accept=0.0)[0] == 1


def test_largest_uniform_accepts_an_equal_law() -> None:
    law = [0.25, 0.75, 0.0]
    assert single(law, law, 0, accept=LARGEST_UNIFORM) == (1, 2)


def test_no_residual_mass_falls_back_to_the_target() -> None:
    # Acceptance fails by rounding only: the draft is larger than the target at every token, by an ulp.
    target, draft = [0.5, 0.5, 0.0], [0.5 * (1 + 1e-7), 0.5 * (1 + 1e-7), 0.0]
    assert single(target, draft, 0, accept=LARGEST_UNIFORM, final=0.75) == (0, 1)


@pytest.mark.parametrize(
    "draft",
    [
        [float("nan"), 0.5, 0.5],
        [float("inf"), 0.0, 0.0],
        [1.5, -0.5, 0.0],
        [0.0, 0.5, 0.5],
        [0.9, 0.05, 0.0],
        [0.0, 0.0, 0.0],
        [0.5, float("nan"), 0.5],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_malformed_draft_rejects_and_recovers_from_the_target(draft: list[float], dtype: torch.dtype) -> None:
    for final, token in ((0.0, 0), (0.45, 1), (0.8, 2)):
        assert single([0.4, 0.3, 0.3], draft, 0, accept=0.0, final=final, dtype=dtype) == (0, token)


def test_unguarded_draft_would_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "trustworthy", lambda ids, probs: torch.ones(probs.shape[:2], dtype=torch.bool))
    assert single([0.4, 0.3, 0.3], [0.3, float("nan"), 0.7], 0, accept=0.9)[0] == 1


def test_ragged_lengths_take_the_bonus_row_of_their_own() -> None:
    lengths = torch.tensor([0, 1, 2])
    one_hot = torch.eye(4, dtype=torch.float64)
    result = verify_block(
        draft_token_ids=torch.tensor([[0, 0], [0, 0], [0, 1]]),
        draft_probs=one_hot[torch.tensor([[0, 0], [0, 0], [0, 1]])],
        target_probs=one_hot[torch.tensor([[3, 0, 0], [0, 2, 0], [0, 1, 0]])],
        draft_lengths=lengths,
        accept_uniforms=torch.zeros(3, 2, dtype=torch.float64),
        final_uniforms=torch.zeros(3, dtype=torch.float64),
    )
    assert result.num_accepted.tolist() == [0, 1, 2]
    assert result.final_token_ids.tolist() == [3, 2, 0]


def test_no_drafts_at_all() -> None:
    result = verify_block(
        draft_token_ids=torch.zeros(1, 0, dtype=torch.long),
        draft_probs=torch.zeros(1, 0, 2),
        target_probs=torch.tensor([[[0.0, 1.0]]]),
        draft_lengths=torch.tensor([0]),
        accept_uniforms=torch.zeros(1, 0, dtype=torch.float64),
        final_uniforms=torch.zeros(1, dtype=torch.float64),
    )
    assert (int(result.num_accepted), int(result.final_token_ids)) == (0, 1)


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, LARGEST_UNIFORM])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_draw_never_returns_an_impossible_token(uniform: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(200, 1000, generator=generator).to(dtype)
    probs[torch.rand(200, 1000, generator=generator) < 0.5] = 0
    probs[:, [0, -1]] = 0
    probs /= probs.sum(-1, keepdim=True)
    drawn = draw(probs, torch.full((200,), uniform, dtype=torch.float64))
    assert (probs[torch.arange(200), drawn] > 0).all()


def test_a_plain_search_would_return_one() -> None:
    probs = torch.tensor([[0.0, 0.3, 0.7 - 1e-9, 0.0]], dtype=torch.float64)
    for uniform, wrong in ((0.0, 0), (LARGEST_UNIFORM, 4)):
        searched = torch.searchsorted(probs.cumsum(-1), torch.tensor([[uniform]], dtype=torch.float64))
        assert int(searched) == wrong
        assert int(draw(probs, torch.tensor([uniform], dtype=torch.float64))) in (1, 2)


def test_draw_has_the_law_that_it_is_given() -> None:
    probs = torch.tensor([0.1, 0.0, 0.25, 0.65], dtype=torch.float64)
    num = 2000
    grid = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    drawn = draw(probs.expand(num, 4), grid)
    assert torch.allclose(torch.bincount(drawn, minlength=4).double() / num, probs, atol=1 / num)
