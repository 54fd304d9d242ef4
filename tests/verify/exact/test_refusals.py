"""What has no exact model is refused by its name, and a draw that gets past the interception is noticed."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from verify.exact.elsewhere import NumpyGenerators
from verify.exact.enumeration import enumerate_outcomes


def uniform(*size: int) -> Tensor:
    return torch.rand(*size, dtype=torch.float64)


def noise_used_twice() -> tuple[int, int]:
    noise = torch.empty(3).exponential_()
    return int((torch.ones(3) / noise).argmax()), int((torch.ones(3) / noise).argmax())


def noise_compared_first() -> int:
    noise = torch.empty(3).exponential_()
    return int((torch.ones(3) / noise).argmax()) if bool(noise[0] < 1) else -1


def swallowed() -> int:
    try:
        return int(torch.randn(1) > 0)
    except BaseException:
        return 0


def a_part_of_a_buffer() -> bool:
    buffer = torch.zeros(2, 2)
    buffer[0].uniform_()
    return bool((buffer < 0.5).any())


REFUSED: dict[str, Callable[[], Any]] = {
    "torch.randn": lambda: torch.randn(2).argmax().item(),
    "torch.normal_": lambda: torch.empty(2).normal_().argmax().item(),
    "torch.randperm": lambda: tuple(torch.randperm(3).tolist()),
    "randint over more than 64 values": lambda: int(torch.randint(0, 2**31, (1,))),
    "dropout": lambda: torch.nn.functional.dropout(torch.ones(3)).sum().item(),
    "softmax of random values": lambda: torch.nn.functional.gumbel_softmax(torch.zeros(3), hard=True).argmax().item(),
    "sum of random values": lambda: bool(uniform(3).sum() < 1),
    "matmul of random values": lambda: bool((torch.ones(2, 2).double() @ uniform(2)).sum() < 1),
    "numpy of random values": lambda: float(uniform(1).numpy()[0]),
    "tensor of a random value": lambda: bool(torch.tensor(uniform(1)) < 0.5),
    "__float__ of random values": lambda: float(uniform(1)),
    "float() of a random number": lambda: float(random.random()),
    "a uniform in torch.bfloat16": lambda: bool(torch.rand(1, dtype=torch.bfloat16) < 0.5),
    "to of random values to torch.float16": lambda: bool(uniform(1).to(torch.float16) < 0.5),
    "a comparison of two random values": lambda: bool(uniform(1) < uniform(1)),
    "add of two random values": lambda: bool(uniform(1) + uniform(1) < 1),
    "noise used again after argmax": noise_used_twice,
    "argmax over noise that was compared before": noise_compared_first,
    "argmax over values that are not an exponential race": lambda: int(uniform(3).argmax()),
    "argmax over noise and the constant": lambda: int(
        torch.cat([torch.ones(2) / torch.empty(2).exponential_(), torch.ones(1)]).argmax()
    ),
    "argmax over noise of unequal forms": lambda: int(
        torch.cat([torch.empty(1).exponential_().reciprocal(), -torch.empty(1).exponential_()]).argmax()
    ),
    "an integer drawn with Python's random": lambda: random.randint(0, 3),
    "numpy.random.choice": lambda: int(np.random.choice(3)),
    "numpy.random.Generator.integers": lambda: int(np.random.default_rng(0).integers(3)),
    "random.SystemRandom": lambda: random.SystemRandom().random() < 0.5,
    "lt of random values, called in a way": lambda: bool(torch.lt(input=uniform(1), other=0.5)),
    "aten.rand": lambda: bool(torch.ops.aten.rand([1]) < 0.5),
    "an outcome that contains an undecided random value": lambda: (0, [uniform(1).item()]),
    "random values written into a part or a view": a_part_of_a_buffer,
    "torch.randn ": swallowed,
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    found = enumerate_outcomes(REFUSED[name], max_paths=50)
    assert name.strip() in found.refused
    assert not found.complete
    assert found.law == {}


def test_offset_of_the_noise_is_refused_in_float64_and_negligible_in_float32() -> None:
    def run(dtype: torch.dtype) -> int:
        noise = -torch.log(-torch.log(torch.rand(3, dtype=dtype) + 1e-10) + 1e-10)
        return int(noise.argmax())

    assert "exponential race" in enumerate_outcomes(lambda: run(torch.float64), max_paths=50).refused
    assert enumerate_outcomes(lambda: run(torch.float32), max_paths=50).num_paths == 3


def test_value_of_an_earlier_run() -> None:
    kept: list[Tensor] = []

    def run() -> bool:
        kept.append(uniform(1))
        return bool(kept[1 if len(kept) > 2 else -1] < 0.5)

    assert "earlier run" in enumerate_outcomes(run, max_paths=50).refused


def test_generator_that_is_not_intercepted() -> None:
    old = np.random.default_rng(0)
    seen = NumpyGenerators()
    young = np.random.RandomState(0)
    for generators in (seen, seen, None):  # the last after the collector has been told to leave old objects out
        found = enumerate_outcomes(lambda: bool(old.random() < 0.5), max_paths=50, generators=generators)
        assert "not intercepted (a numpy.random.Generator" in found.refused
        found = enumerate_outcomes(lambda: bool(young.random() < 0.5), max_paths=50, generators=generators)
        assert "not intercepted (a numpy.random.RandomState" in found.refused
    assert "not intercepted (Python's random moved)" in enumerate_outcomes(_held_random, max_paths=50).refused


def test_draw_between_two_runs() -> None:
    """What a decoder leaves behind (a thread) may draw there; states are read once a run, and not before each as well."""
    found = enumerate_outcomes(lambda: bool(uniform(1) < 0.5), max_paths=50, progress=lambda *_: _held_random())
    assert "not intercepted (Python's random moved)" in found.refused


_HELD = random.random


def _held_random() -> bool:
    return _HELD() < 0.5


def test_hidden_state_is_refused() -> None:
    calls = [0]

    def run() -> int:
        calls[0] += 1
        return int(torch.multinomial(torch.tensor([calls[0], 1.0]), 1)) + int(torch.multinomial(torch.ones(2), 1))

    assert "hidden state" in enumerate_outcomes(run, max_paths=50).refused


def test_outcome_that_only_real_randomness_reaches_is_refused() -> None:
    calls = [0]

    def run() -> int:
        calls[0] += 1
        return min(calls[0], 2)

    assert "hidden state" in enumerate_outcomes(run, max_paths=50).refused


def test_errors_of_torch_stay_errors_of_torch() -> None:
    with pytest.raises(RuntimeError, match="probability tensor"):
        enumerate_outcomes(lambda: int(torch.multinomial(torch.tensor([-1.0, 2.0]), 1)), max_paths=50)


def test_seeding_is_harmless() -> None:
    def run() -> int:
        torch.manual_seed(0)
        torch.seed()
        random.seed(0)
        np.random.seed(0)
        generator = torch.Generator()
        generator.seed()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
        return int(torch.multinomial(torch.tensor([0.25, 0.75]), 1, generator=generator))

    found = enumerate_outcomes(run, max_paths=50)
    assert found.refused == ""
    assert found.law == {0: 0.25, 1: 0.75}
