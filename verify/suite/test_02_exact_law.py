"""Chapter 2: the exact law of the whole output, by enumeration of the decoder's own randomness."""

import pytest

from verify.cases import (
    EXACT_BATCHES,
    EXACT_MORE_PROCESSORS,
    EXACT_MORE_ROUNDS,
    EXACT_PROCESSORS,
    EXACT_ROUNDS,
    EXACT_STOPS,
    Case,
)
from verify.checks.exact_law import judge_exact_law
from verify.checks.search import judge_generated
from verify.judge import Judge, check
from verify.results import Evidence
from verify.suite.support import scaled, table_subject


@check(chapter=2, property="exact law", evidence=Evidence.EXACT)
@pytest.mark.parametrize("case", EXACT_ROUNDS, ids=lambda case: case.name)
def test_rounds(judge: Judge, case: Case) -> None:
    """Several rounds: opposed, nearly equal and disjoint pairs, and zeros under draft mass."""
    conclude(judge, case)


@check(chapter=2, property="exact law", evidence=Evidence.EXACT, minimum_profile="default")
@pytest.mark.parametrize("case", EXACT_MORE_ROUNDS, ids=lambda case: case.name)
def test_more_rounds(judge: Judge, case: Case) -> None:
    """Other relations, draft lengths and numbers of rounds."""
    conclude(judge, case)


@check(chapter=2, property="exact law of processors", evidence=Evidence.EXACT)
@pytest.mark.parametrize("case", EXACT_PROCESSORS, ids=lambda case: case.name)
def test_processors(judge: Judge, case: Case) -> None:
    """Temperature, truncation, penalties, bias and masks, with their history inside the block."""
    conclude(judge, case)


@check(chapter=2, property="exact law of processors", evidence=Evidence.EXACT, minimum_profile="default")
@pytest.mark.parametrize("case", EXACT_MORE_PROCESSORS, ids=lambda case: case.name)
def test_more_processors(judge: Judge, case: Case) -> None:
    """Other settings, and settings together."""
    conclude(judge, case)


@check(chapter=2, property="exact law of stopping", evidence=Evidence.EXACT)
@pytest.mark.parametrize("case", EXACT_STOPS, ids=lambda case: case.name)
def test_stops(judge: Judge, case: Case) -> None:
    """Stop tokens inside blocks, and minimum lengths."""
    conclude(judge, case)


@check(chapter=2, property="product law of batches", evidence=Evidence.EXACT)
@pytest.mark.parametrize("case", EXACT_BATCHES, ids=lambda case: case.name)
def test_batches(judge: Judge, case: Case) -> None:
    """Two requests in one call must be independent: catches shared uniforms and leaks between requests."""
    conclude(judge, case)


@check(chapter=2, property="exact law of generated cases", evidence=Evidence.EXACT)
def test_generated(judge: Judge) -> None:
    """Hypothesis makes cases from everything the decoder claims, and shrinks a failing one to the smallest."""
    subject = table_subject(judge, EXACT_ROUNDS[0].spec)
    subject.require("sampled")
    judge.conclude(
        judge_generated(
            judge,
            subject.capabilities,
            lambda case: table_subject(judge, case.spec),
            num_cases=scaled(judge, 24),
        )
    )


def conclude(judge: Judge, case: Case) -> None:
    """Judge one case with a fresh decoder."""
    subject = table_subject(judge, case.spec)
    for request in case.requests:
        subject.require_for(request)
    if len(case.requests) > 1:
        subject.require("batch")
    judge.conclude(judge_exact_law(subject, case))
