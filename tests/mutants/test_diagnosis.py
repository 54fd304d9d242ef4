"""The exact law names planted bugs on tables that their authors never saw; a correct decoder has nothing to be named."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dspark.conformance import make_decoder
from tests.mutants import MUTANTS, mutant_named
from tests.mutants.outcome import first_named
from verify.cases import EXACT_PROCESSORS, EXACT_ROUNDS, Case
from verify.checks.exact_law import ROUNDED, judge_exact_law
from verify.checks.exact_rounds import watched_places
from verify.instrument import Block, Design, maker, standard
from verify.models.pairs import table_pair
from verify.results import Finding, Verdict
from verify.subject import Subject

ROUNDS, TEMPERATURE = EXACT_ROUNDS[0], EXACT_PROCESSORS[0]
OTHER_TABLE = 101


def subject_of(make: Any, case: Case, folder: Path) -> Subject:
    judge: Any = SimpleNamespace(shared={}, make_decoder=make, progress=lambda *_: None)
    return Subject(judge, table_pair(case.spec, device=torch.device("cpu"), dtype=torch.float64, folder=folder))


def judged(make: Any, case: Case, folder: Path) -> Finding:
    other = replace(case, spec=replace(case.spec, seed=OTHER_TABLE))
    return judge_exact_law(subject_of(make, other, folder), other)


@pytest.mark.parametrize(
    ("name", "case", "where"),
    [
        ("ACC-2", ROUNDS, "where there is a draft"),  # as a law the same as RES-12b: acceptance tells them apart
        ("RES-12b", ROUNDS, "where there is a draft"),
        ("RES-12d", ROUNDS, "behind the first place of a round"),
        ("ACC-16", ROUNDS, "where there is a draft"),
        ("BON-1", TEMPERATURE, "at the bonus"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bug_is_named(name: str, case: Case, where: str, tmp_path: Path) -> None:
    finding = judged(mutant_named(name), case, tmp_path)
    assert finding.verdict is Verdict.FAIL
    assert first_named(finding.diagnosis) in MUTANTS[name].diagnosis, finding.diagnosis
    assert "gives exactly the observed law" in finding.diagnosis
    assert where in finding.diagnosis


def test_a_correct_decoder_has_no_diagnosis(tmp_path: Path) -> None:
    finding = judged(make_decoder, ROUNDS, tmp_path)
    assert (finding.verdict, finding.diagnosis) == (Verdict.PASS, "")


def test_a_claim_of_float64_that_is_not_kept_is_named_and_no_bug_is(tmp_path: Path) -> None:
    def rounded(block: Block) -> list[int]:
        return standard(replace(block, draft_laws=block.draft_laws.float(), target_laws=block.target_laws.float()))

    finding = judged(maker(Design(verify=rounded)), ROUNDS, tmp_path)
    assert (finding.verdict, finding.diagnosis) == (Verdict.FAIL, ROUNDED)


def test_places_tell_drafts_from_the_bonus(tmp_path: Path) -> None:
    """Of a correct decoder: at every place the target's law, and drafts accepted as often as target and draft overlap."""
    subject = subject_of(make_decoder, ROUNDS, tmp_path)
    request = ROUNDS.requests[0]
    places = watched_places(subject, request, max_paths=1000)
    assert places is not None
    assert {place.offset - place.num_drafted for place in places} == {-2, -1, 0}
    for place, following in places.items():
        target = subject.reference.laws(request, (*place.prefix, 0))[-1].tolist()
        observed = [following.token_probs.get(token_id, 0.0) / following.reached for token_id in range(3)]
        assert observed == pytest.approx(target, abs=1e-12)
        if place.offset < place.num_drafted and len(place.prefix) + 1 < request.max_new_tokens:
            draft = subject.draft_reference.laws(request, (*place.prefix, 0))[-1].tolist()
            assert following.acceptance == pytest.approx(sum(map(min, target, draft)), abs=1e-12)
