"""Chapter 15: the judge itself, on this machine: unusual but correct designs pass, planted bugs are caught.

These checks do not run the decoder under test. Where one fails, no other verdict of the run can be trusted.
"""

import pytest
import torch

from verify.cases import case
from verify.checks.exact_law import judge_exact_law
from verify.checks.sampled_law import in_turn, judge_sampled_law
from verify.coverage import Coverage
from verify.instrument import BROKEN, CORRECT, maker
from verify.judge import Judge, check
from verify.models.pairs import Relation, TableSpec
from verify.results import Evidence, Finding, Verdict
from verify.subject import Subject
from verify.suite.support import request, table_models

EXACT = case("instrument", vocab_size=3, num_draft_tokens=2, max_new_tokens=3, stop_token_ids=(2,), seed=1501)
BETS = TableSpec(vocab_size=32, relation=Relation.CLOSE, seed=1502, num_rows=4096)
BETS_ALPHA = 1e-7  # whatever the run's budget: what these bets must see does not depend on it


@check(chapter=15, property="correct designs pass", evidence=Evidence.EXACT)
@pytest.mark.parametrize("name", CORRECT)
def test_correct_designs(judge: Judge, name: str) -> None:
    """Sample-match acceptance, one-hot drafts, causal truncation and reordered coins are lossless."""
    pair = table_models(judge, EXACT.spec)
    judge.conclude(judge_exact_law(Subject(judge, pair, make_decoder=maker(CORRECT[name])), EXACT))


@check(chapter=15, property="planted bugs are caught", evidence=Evidence.EXACT)
@pytest.mark.parametrize("name", BROKEN)
def test_planted_bugs_by_exact_law(judge: Judge, name: str) -> None:
    """The exact law sees a planted bug."""
    pair = table_models(judge, EXACT.spec)
    judge.conclude(inverted(judge_exact_law(Subject(judge, pair, make_decoder=maker(BROKEN[name])), EXACT), name))


@check(chapter=15, property="planted bugs are caught", evidence=Evidence.CONTRACT)
@pytest.mark.parametrize("name", BROKEN)
def test_planted_bugs_by_betting(judge: Judge, name: str) -> None:
    """The bets see a planted bug. The same draws in every run: chance has no part in whether this passes."""
    pair = table_models(judge, BETS)
    subject = Subject(judge, pair, make_decoder=maker(BROKEN[name]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(BETS.seed)
        tokens = torch.randint(BETS.vocab_size, (160, 3)).tolist()
        asked = [request(prompt, max_new_tokens=32) for prompt in tokens]
        finding = judge_sampled_law(subject, in_turn(subject, asked), alpha=BETS_ALPHA, coverage=Coverage())
    judge.conclude(inverted(finding, name))


def inverted(finding: Finding, name: str) -> Finding:
    """A planted bug that is caught is a pass."""
    caught = finding.verdict is Verdict.FAIL
    return Finding(
        verdict=Verdict.PASS if caught else Verdict.FAIL,
        evidence=Evidence.EXACT if finding.evidence is Evidence.EXACT else Evidence.CONTRACT,
        reason=f"{name}: {'caught' if caught else 'NOT caught'}: {finding.reason}",
        observations=max(1, finding.observations),
        unit=finding.unit,
        details={"diagnosis_given": finding.diagnosis, "pictures": finding.details.get("pictures", [])},
    )
