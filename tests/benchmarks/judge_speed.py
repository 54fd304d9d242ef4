"""How fast the judge is: `python -m pytest tests/benchmarks/judge_speed.py --benchmark-timer=time.process_time`.

Not collected by `pytest tests/`. The figures are in the extra info of each benchmark; CPU time is what to compare on a busy
machine. `tests.benchmarks.compare` runs this file in an older checkout too: what that may lack is looked up by name.
"""

import resource
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dspark.conformance import make_decoder
from verify import scoring
from verify.betting import hypotheses
from verify.betting.certificates import LeakBounds
from verify.betting.evidence import TokenEvidence
from verify.betting.library import library
from verify.betting.wealth import Wealth
from verify.cases import EXACT_BATCHES, EXACT_PROCESSORS, EXACT_ROUNDS, Case
from verify.exact import elsewhere
from verify.exact.enumeration import enumerate_outcomes
from verify.models.pairs import table_pair
from verify.protocol import Generation, Request, SamplingParams
from verify.subject import Observed

CASES = {case.name: case for case in (*EXACT_ROUNDS, *EXACT_PROCESSORS, *EXACT_BATCHES)}
WIDE = 151_936
joined: Any = getattr(scoring, "joined", iter)


def take(wealth: Wealth, bounds: LeakBounds, evidence: TokenEvidence) -> None:
    """As `verify.checks.sampled_law` does."""
    if not hasattr(hypotheses, "scored_pieces"):
        wealth.update(evidence)
        bounds.update(evidence)
        return
    for piece, ratios in hypotheses.scored_pieces(wealth.hypotheses, evidence):
        wealth.add(piece, ratios)
        bounds.add(ratios)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """As during a run on tables."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["close", "repetition penalty", "ragged prompts"])
def test_exact_law(benchmark: Any, tmp_path: Path, name: str) -> None:
    """Paths of the reference decoder."""
    case: Case = CASES[name]
    pair = table_pair(case.spec, device=torch.device("cpu"), dtype=torch.float64, folder=tmp_path)
    decoder = make_decoder(pair)
    generators = getattr(elsewhere, "NumpyGenerators", None)
    shared = {"generators": generators()} if generators else {}

    def run() -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(each.token_ids) for each in decoder.generate(case.requests))

    found = benchmark(lambda: enumerate_outcomes(run, max_paths=20_000, **shared))
    assert found.complete
    benchmark.extra_info["paths_per_minute"] = round(60 * found.num_paths / benchmark.stats.stats.min)


@pytest.mark.parametrize("num_tokens", [32, 512])
def test_bets(benchmark: Any, num_tokens: int) -> None:
    """Tokens at a vocabulary of 64, in answers of `num_tokens`, with everything that a bet may know."""
    rng = np.random.default_rng(0)
    answers = [_evidence(rng, num_tokens=num_tokens, vocab_size=64) for _ in range(4096 // num_tokens)]

    def bet() -> None:
        wealth, bounds = Wealth(alpha=1e-7), LeakBounds(library(), delta=1e-3)
        for piece in joined(answers):
            take(wealth, bounds, piece)

    benchmark(bet)
    benchmark.extra_info["tokens_per_minute"] = round(60 * 4096 / benchmark.stats.stats.min)


def test_wide_rows(benchmark: Any) -> None:
    """From logits to bets at a vocabulary of 151,936; the peak is of the whole process."""
    num_tokens = 32
    generator = torch.Generator().manual_seed(0)
    target, draft = (_Rows(2 * torch.randn(num_tokens, WIDE, generator=generator)) for _ in range(2))
    subject: Any = SimpleNamespace(
        reference=target, draft_reference=draft, capabilities=SimpleNamespace(draft_model=True)
    )
    request = Request(prompt_token_ids=(1, 2), max_new_tokens=num_tokens, sampling=SamplingParams(temperature=0.8))
    generation = Generation(token_ids=list(range(num_tokens)), finish_reason="length")
    before = _peak()

    def judge() -> None:
        wealth, bounds = Wealth(alpha=1e-7, tolerance=1e-4), LeakBounds(library(), delta=1e-3, tolerance=1e-4)
        for piece in joined(scoring.score(subject, [Observed(request, generation, None)])):
            take(wealth, bounds, piece)

    benchmark.pedantic(judge, rounds=3, iterations=1)
    benchmark.extra_info["tokens_per_minute"] = round(60 * num_tokens / benchmark.stats.stats.min)
    benchmark.extra_info["peak_rows"] = round((_peak() - before) / (num_tokens * WIDE * 8), 1)  # of [N, V] float64


@dataclass(frozen=True, slots=True)
class _Rows:
    """A reference whose rows are known."""

    logits: torch.Tensor

    def logits_of(self, scored: Any) -> list[torch.Tensor]:
        return [self.logits for _ in scored]


def _evidence(rng: np.random.Generator, *, num_tokens: int, vocab_size: int) -> TokenEvidence:
    target = rng.dirichlet(np.full(vocab_size, 0.5), num_tokens)
    draft = 0.8 * target + 0.2 * rng.dirichlet(np.full(vocab_size, 0.5), num_tokens)
    tokens = (target.cumsum(1) < rng.random((num_tokens, 1))).sum(1).clip(0, vocab_size - 1)
    return TokenEvidence(
        target_probs=target,
        draft_probs=draft,
        token_ids=tokens,
        alternatives={"previous_row": np.roll(target, 1, axis=0)},
        draft_offsets=np.arange(num_tokens) % 4,
        num_draft_tokens=3,
    )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
