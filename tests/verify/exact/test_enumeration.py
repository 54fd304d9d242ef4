"""Samplers whose law is known on paper: the enumeration must find it to the last bits."""

import math
import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import multinomial as held_multinomial

from verify.exact.distance import product_law, total_variation
from verify.exact.enumeration import enumerate_outcomes

PROBS = (0.5, 0.0, 0.3, 0.2)
LAW = {0: 0.5, 2: 0.3, 3: 0.2}
EXACT = 1e-14


def probs() -> Tensor:
    return torch.tensor(PROBS, dtype=torch.float64)


def uniform(*size: int) -> Tensor:
    return torch.rand(*size, dtype=torch.float64)


def exponential() -> Tensor:
    return torch.empty(4, dtype=torch.float64).exponential_()


def in_place_race() -> int:
    noise = torch.empty_like(probs())
    noise.exponential_(1.0)
    return int(probs().div_(noise).argmax(dim=-1))


@torch.inference_mode()
def in_inference_mode() -> int:
    return in_place_race()


class Holder:
    """Holds a random function where no module shows it, and uses it on a path that comes late."""

    draw = staticmethod(torch.multinomial)

    def sample(self) -> int:
        first = int(torch.multinomial(torch.tensor([0.9, 0.1], dtype=torch.float64), 1))
        return int((self.draw if first else torch.multinomial)(probs(), 1, generator=torch.Generator()))


def in_a_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(int(torch.multinomial(probs(), 1))))
    thread.start()
    thread.join()
    return found[0]


def rejection() -> int:
    """Draw from the uniform law, keep with probability proportional to PROBS; give up never (at most 3 tries here)."""
    for _ in range(3):
        token = int(torch.randint(0, 4, (1,)))
        if bool(uniform(1) < PROBS[token] / 0.5):
            return token
    return -1


SAMPLERS: dict[str, Callable[[], int]] = {
    "multinomial": lambda: int(torch.multinomial(probs(), 1)),
    "multinomial method": lambda: int(probs().multinomial(1)),
    "multinomial with a generator": lambda: int(torch.multinomial(probs(), 1, generator=torch.Generator())),
    "multinomial held since import": lambda: int(held_multinomial(probs(), 1, generator=torch.Generator())),
    "multinomial in a partial": partial(lambda draw: int(draw(probs(), 1)), torch.multinomial),
    "multinomial in a thread": in_a_thread,
    "categorical": lambda: int(torch.distributions.Categorical(probs=probs()).sample()),  # type: ignore[no-untyped-call]
    "searchsorted": lambda: int(torch.searchsorted(probs().cumsum(0), uniform(1), right=True)),
    "searchsorted of 1 - u": lambda: int(torch.searchsorted(probs().cumsum(0), 1 - uniform(1), right=True)),
    "bucketize": lambda: int(torch.bucketize(uniform(1), probs().cumsum(0), right=True)),
    "count of edges below": lambda: int((probs().cumsum(0) <= uniform(1)).sum()),
    "first edge above": lambda: int((uniform(2)[1] < probs().cumsum(0)).byte().argmax()),
    "python loop over item": lambda: _first_above(uniform(1).item()),
    "numpy searchsorted": lambda: int(np.searchsorted(np.cumsum(PROBS), random.random(), side="right")),
    "random.choices": lambda: random.choices(range(4), weights=PROBS)[0],
    "race": lambda: int((probs() / exponential()).argmax()),
    "race in place": in_place_race,
    "race in inference mode": in_inference_mode,
    "race by argmin": lambda: int((exponential() / probs()).argmin()),
    "race by log u": lambda: int((torch.log(uniform(4)) / probs()).argmax()),
    "race by max": lambda: int((probs() / exponential()).max(dim=-1).indices),
    "gumbel": lambda: int((probs().log() - torch.log(-torch.log(uniform(4)))).argmax()),
    "gumbel from exponential": lambda: int((probs().log() - exponential().log()).argmax()),
    "gumbel distribution": lambda: int((probs().log() + _gumbel().sample()).argmax()),
    "exponential distribution": lambda: int((probs() / _exponential_law().sample()).argmax()),
}


def _gumbel() -> Any:
    return torch.distributions.Gumbel(torch.zeros(4, dtype=torch.float64), 1.0)


def _exponential_law() -> Any:
    return torch.distributions.Exponential(torch.ones(4, dtype=torch.float64))


def _first_above(u: Any) -> int:
    total = 0.0
    for token, probability in enumerate(PROBS):
        total += probability
        if u < total:
            return token
    return -1


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_has_the_law_on_paper(name: str) -> None:
    found = enumerate_outcomes(SAMPLERS[name], max_paths=100)
    assert found.refused == ""
    assert found.complete
    assert found.num_paths == 3
    assert math.isclose(found.mass, 1, abs_tol=EXACT)
    assert total_variation(found.law, LAW) < EXACT


def test_reference_held_out_of_sight() -> None:
    found = enumerate_outcomes(Holder().sample, max_paths=100)
    assert found.num_paths == 6
    assert total_variation(found.law, LAW) < EXACT


def test_gumbel_with_temperature() -> None:
    found = enumerate_outcomes(lambda: int((probs().log() / 0.5 - exponential().log()).argmax()), max_paths=10)
    squares = {token: weight**2 for token, weight in LAW.items()}
    assert total_variation(found.law, {token: each / sum(squares.values()) for token, each in squares.items()}) < EXACT


def test_rejection_sampling() -> None:
    found = enumerate_outcomes(rejection, max_paths=1000)
    kept = 0.5  # a try keeps its token with probability sum(PROBS) / (4 * 0.5)
    expected = {token: weight * (1 - (1 - kept) ** 3) for token, weight in LAW.items()} | {-1: (1 - kept) ** 3}
    assert total_variation(found.law, expected) < EXACT


def test_reused_uniform_stays_the_same_number() -> None:
    def run() -> str:
        u = uniform(1)
        if bool(u < 0.3):
            return "accepted"
        return "low" if bool(2 * u[0] + 1 <= 2) else "high"

    assert (
        total_variation(enumerate_outcomes(run, max_paths=10).law, {"accepted": 0.3, "low": 0.2, "high": 0.5}) < EXACT
    )


def test_without_replacement() -> None:
    found = enumerate_outcomes(lambda: tuple(torch.multinomial(probs(), 2).tolist()), max_paths=100)
    assert math.isclose(found.law[0, 2], 0.5 * 0.3 / 0.5)
    assert math.isclose(found.law[2, 0], 0.3 * 0.5 / 0.7)


@pytest.mark.parametrize("shared", [False, True])
def test_batch_with_a_shared_uniform_is_not_a_product(shared: bool) -> None:
    def run() -> tuple[int, ...]:
        u = uniform(1).expand(2).contiguous() if shared else uniform(2)
        return tuple(torch.searchsorted(probs().cumsum(0), u, right=True).tolist())

    distance = total_variation(enumerate_outcomes(run, max_paths=100).law, product_law([LAW, LAW]))
    assert (distance > 0.3) if shared else (distance < EXACT)


def test_rows_of_a_batch_are_independent() -> None:
    def run() -> tuple[int, ...]:
        noise = torch.empty(2, 4, dtype=torch.float64).exponential_()
        return tuple((probs() / noise).argmax(dim=-1).tolist())

    assert total_variation(enumerate_outcomes(run, max_paths=100).law, product_law([LAW, LAW])) < EXACT


def test_movement_keeps_every_cell_its_own() -> None:
    def run() -> tuple[bool, ...]:
        u = torch.stack([uniform(2), uniform(2)]).reshape(4)[[3, 0, 1, 2]].view(2, 2).t().contiguous()
        u = (
            torch.cat([u.float().double(), torch.full((1, 2), 0.25, dtype=torch.float64)])
            .unsqueeze(0)
            .squeeze(0)
            .clone()
        )
        first = tuple((u[:2] < 0.5).flatten().tolist())
        again = tuple((u[:2] < 0.5).flatten().tolist())
        assert first == again
        assert (u[2] < 0.5).all()
        return first

    found = enumerate_outcomes(run, max_paths=100)
    assert found.num_paths == 16
    assert set(found.law.values()) == {1 / 16}


def test_buffer_filled_in_place_is_seen_through_its_views() -> None:
    buffer = torch.empty(2, dtype=torch.float64)

    def run() -> tuple[bool, bool]:
        buffer.uniform_()
        view = buffer[1:]
        first = bool(view < 0.25)
        buffer.uniform_()
        return first, bool(view < 0.25)

    found = enumerate_outcomes(run, max_paths=10)
    assert total_variation(found.law, product_law([{True: 0.25, False: 0.75}] * 2)) < EXACT
    assert type(buffer) is torch.Tensor


def test_float32_uniform_below_an_edge_one_step_under_one() -> None:
    edges = torch.tensor([0.5, 1 - 2**-24])  # what cumsum in float32 may leave: no float32 uniform is above it
    found = enumerate_outcomes(lambda: int(torch.searchsorted(edges, torch.rand(1))), max_paths=10)
    assert found.law == {0: 0.5, 1: 0.5}


def test_impossible_branches_are_not_taken_and_tiny_ones_are() -> None:
    weights = torch.tensor([0.0, 1e-12, 1.0], dtype=torch.float64)
    found = enumerate_outcomes(lambda: int(torch.multinomial(weights, 1)), max_paths=10)
    assert set(found.law) == {1, 2}
    assert math.isclose(found.law[1], 1e-12, rel_tol=1e-9)


def test_limit_of_paths() -> None:
    seen: list[tuple[int, float]] = []
    found = enumerate_outcomes(
        lambda: tuple(torch.multinomial(probs(), 3, replacement=True).tolist()),
        max_paths=5,
        progress=lambda paths, mass: seen.append((paths, mass)),
    )
    assert not found.complete
    assert found.refused == ""
    assert found.num_paths == len(seen) == 5
    assert math.isclose(seen[-1][1], found.mass)
    assert found.mass < 1
    with pytest.raises(ValueError, match="at least 1"):
        enumerate_outcomes(lambda: 0, max_paths=0)


def test_deterministic_run_is_one_path() -> None:
    found = enumerate_outcomes(lambda: 7, max_paths=1)
    assert (found.law, found.num_paths, found.complete) == ({7: 1.0}, 1, True)


def test_exception_carries_its_choices() -> None:
    def run() -> int:
        token = int(torch.multinomial(probs(), 1))
        if token == 3:
            raise IndexError("out of range")
        return token

    with pytest.raises(IndexError) as caught:
        enumerate_outcomes(run, max_paths=10)
    assert "multinomial -> 3 (probability 0.2)" in caught.value.__notes__[-1]


def test_everything_is_put_back() -> None:
    before = (torch.rand, torch.Tensor.uniform_, random.random, np.random.default_rng, torch.manual_seed)
    enumerate_outcomes(lambda: int(torch.multinomial(probs(), 1)), max_paths=10)
    with pytest.raises(ZeroDivisionError):
        enumerate_outcomes(lambda: 1 // 0, max_paths=10)
    assert before == (torch.rand, torch.Tensor.uniform_, random.random, np.random.default_rng, torch.manual_seed)
    assert "uniform_" not in vars(torch.Tensor)
    assert torch.rand(3).max() < 1


def test_total_variation_and_product() -> None:
    assert total_variation({"a": 0.7, "b": 0.3}, {"b": 0.5, "c": 0.5}) == pytest.approx(0.7)
    assert product_law([{0: 0.25, 1: 0.75}, {0: 1.0}]) == {(0, 0): 0.25, (1, 0): 0.75}


def coins(count: int) -> tuple[int, ...]:
    return tuple(int(torch.randint(0, 2, (1,))) for _ in range(count))


@pytest.mark.parametrize(("count", "num_paths"), [(6, 64), (9, 400), (12, 20)])
def test_a_hopeless_walk_ends_early(count: int, num_paths: int) -> None:
    found = enumerate_outcomes(lambda: coins(count), max_paths=400)
    assert found.num_paths == num_paths
    assert found.complete == (num_paths == 64)
