"""Rejection steps that break their contract, and what only certain rows and edge uniforms can show."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.verify.doors import kernels
from tests.verify.doors.test_kernel_law import experiment
from verify.adapters.kernel import embed
from verify.cases import case
from verify.checks.exact_law import judge_exact_law
from verify.checks.kernel_contract import judge_edges, judge_inputs, judge_one_hot, one_hot_block
from verify.intake import Malformed
from verify.judge import ContractViolation, NotApplicable
from verify.kernel.block import run_kernel
from verify.kernel.edges import fixed_uniforms
from verify.kernel.probe import accepts_dtype, hides_randomness, preferred_dtype, small_block
from verify.kernel.zoo import rows_of
from verify.models.pairs import table_pair
from verify.results import Verdict
from verify.subject import Subject

CPU = torch.device("cpu")
HARD = [
    rows_of("close", vocab_size=5, num_drafts=2, seed=1, zeros=0.4),
    rows_of("same", vocab_size=5, num_drafts=2, seed=2, zeros=0.4),
    rows_of("one ulp", vocab_size=3, num_drafts=2, seed=3),
    rows_of("denormal", vocab_size=4, num_drafts=2, seed=4),
]


@pytest.mark.parametrize("name", kernels.SPOILED)
def test_a_bad_answer_is_one_clear_message(name: str) -> None:
    kernel, words = kernels.SPOILED[name]
    asked = experiment(rows_of("close", vocab_size=3, num_drafts=2, seed=1), num_rows=32)
    with pytest.raises(Malformed) as caught:
        run_kernel(kernel, asked.draw())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_accepted_tokens_are_the_drafts() -> None:
    asked = experiment(rows_of("same", vocab_size=3, num_drafts=2, seed=1), num_rows=32)

    def other(*arguments: Any) -> Any:
        token_ids, count = kernels.reference(*arguments)
        return torch.where(token_ids >= 0, (token_ids + 1) % 3, -1), count

    with pytest.raises(Malformed, match="accepted tokens are the drafts themselves"):
        run_kernel(other, asked.draw())


@pytest.mark.parametrize("vocab_size", [2, 17, 5_003])
def test_one_hot_rows(vocab_size: int) -> None:
    blocks = [
        one_hot_block(num_rows=60, num_drafts=k, vocab_size=vocab_size, dtype=torch.float32, device=CPU, seed=k)
        for k in (1, 4)
    ]
    for kernel in (kernels.reference, kernels.opaque, kernels.sample_match):
        assert judge_one_hot(kernel, blocks).verdict is Verdict.PASS
    for bug in ("bonus from the row before", "mask not cumulative"):
        finding = judge_one_hot(kernels.planted(bug), blocks)
        assert finding.verdict is Verdict.FAIL
        assert "has probability above 0" in finding.reason
    assert judge_one_hot(_swapping, blocks).verdict is Verdict.FAIL


def _swapping(ids: Any, draft: Any, target: Any, lengths: Any) -> Any:
    """Rows of the target are those of the row before."""
    return kernels.reference(ids, draft, target.roll(1, 0), lengths)


def test_uniforms_at_the_edges() -> None:
    asked = [experiment(rows, num_rows=64) for rows in HARD]
    for kernel in (kernels.reference, kernels.in_python, kernels.planted("")):
        finding = judge_edges(kernel, asked)
        assert finding.verdict is Verdict.PASS, finding.reason
    generous = judge_edges(kernels.planted("ACC-3 <="), asked)
    assert generous.verdict is Verdict.FAIL
    assert "ACC-3" in generous.diagnosis
    first = judge_edges(kernels.planted("first entry of the cumulative law"), asked)
    assert first.verdict is Verdict.FAIL
    ulp = judge_edges(kernels.planted("epsilon in the ratio"), asked)  # one step below 1 rejects: the residual is 0/0
    assert ulp.verdict is Verdict.FAIL
    assert "1 ulp below 1" in ulp.reason
    with pytest.raises(NotApplicable, match="no uniform that the suite can see"):
        judge_edges(kernels.opaque, asked)


def test_fixed_uniforms_are_counted_and_put_back() -> None:
    before = (random.random, np.random.random, np.random.rand)
    with fixed_uniforms("0") as draws:
        assert torch.rand(3).tolist() == [0, 0, 0]
        assert torch.empty(2).uniform_().tolist() == [0, 0]
        assert random.random() == np.random.random() == 0
        assert np.random.rand(2).tolist() == [0, 0]
    assert draws.count == 3 + 2 + 1 + 1 + 2
    with fixed_uniforms("1 ulp below 1"):
        assert torch.rand(1).item() == 1 - 2**-24
        assert torch.rand(1, dtype=torch.float64).item() == random.random() == 1 - 2**-53
    assert (random.random, np.random.random, np.random.rand) == before


def test_arguments_are_left_alone() -> None:
    blocks = [experiment(rows, num_rows=16).draw() for rows in HARD]
    assert judge_inputs(kernels.reference, blocks).verdict is Verdict.PASS
    with pytest.raises(ContractViolation, match="target_probs was written to"):
        judge_inputs(kernels.planted("writes to its input"), blocks)


def test_what_a_step_takes_and_shows() -> None:
    def picky(ids: Any, draft: Any, target: Any, lengths: Any) -> Any:
        if target.dtype != torch.float32:
            raise TypeError("float32 only")
        return kernels.reference(ids, draft, target, lengths)

    assert preferred_dtype(picky, CPU) is torch.float32
    assert preferred_dtype(kernels.reference, CPU) is torch.float64
    assert not accepts_dtype(kernels.in_numpy, torch.bfloat16, CPU)
    run_kernel(kernels.reference, small_block(torch.bfloat16, CPU))


@pytest.mark.parametrize(
    ("kernel", "verdict"),
    [
        (kernels.reference, Verdict.PASS),
        (kernels.opaque, Verdict.NOT_APPLICABLE),
        (kernels.planted("RES-8 not subtracted"), Verdict.FAIL),
    ],
)
def test_the_exact_law_around_a_step(judge: Any, tmp_path: Path, kernel: Callable[..., Any], verdict: Verdict) -> None:
    """A step that hides its coins shows no law, rather than half of one."""
    one = case("close")
    pair = table_pair(one.spec, device=CPU, dtype=torch.float64, folder=tmp_path)
    assert judge_exact_law(Subject(judge, pair, make_decoder=embed(kernel)), one).verdict is verdict


@pytest.mark.parametrize(
    ("kernel", "hidden"),
    [
        (kernels.reference, False),
        (kernels.opaque, True),
        (kernels.in_numpy, False),  # in sight, and refused by name
    ],
)
def test_randomness_out_of_sight_is_found(kernel: Callable[..., Any], hidden: bool) -> None:
    assert hides_randomness(kernel, CPU) is hidden
