"""A case with too many outcomes is judged at a length that has fewer: right for the correct decoder, wrong for a bug."""

from pathlib import Path
from typing import Any

import pytest

from tests.mutants import CONTROLS, mutant_named
from tests.mutants.test_diagnosis import subject_of
from verify.cases import EXACT_MORE_ROUNDS, Case, shorter
from verify.checks.exact_law import judge_exact_law
from verify.results import Verdict

THREE_DRAFTS = EXACT_MORE_ROUNDS[1]
TWO_TOKENS = 24
"""Paths that the shortest form of the case needs at most."""


def test_shorter_ends_at_two_tokens_and_one_draft() -> None:
    sizes = []
    one: Case | None = THREE_DRAFTS
    while one is not None:
        sizes.append((one.requests[0].max_new_tokens, one.requests[0].num_draft_tokens))
        one = shorter(one)
    assert sizes == [(4, 3), (3, 2), (2, 1)]


@pytest.mark.parametrize(
    ("make", "verdict"), [(CONTROLS["sample-match"].make, Verdict.PASS), (mutant_named("RES-8"), Verdict.FAIL)]
)
def test_a_shortened_case_decides(make: Any, verdict: Verdict, tmp_path: Path) -> None:
    finding = judge_exact_law(subject_of(make, THREE_DRAFTS, tmp_path), THREE_DRAFTS, max_paths=TWO_TOKENS)
    assert finding.verdict is verdict
    assert "shortened to 2 new tokens and drafts of 1" in finding.reason


def test_too_large_at_any_length_is_inconclusive(tmp_path: Path) -> None:
    subject = subject_of(CONTROLS["sample-match"].make, THREE_DRAFTS, tmp_path)
    finding = judge_exact_law(subject, THREE_DRAFTS, max_paths=3)
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "more than 3 outcomes" in finding.reason
