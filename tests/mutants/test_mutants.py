"""A planted bug of every family makes the suite fail, with the right property; the correct decoder passes the same checks.

`python -m tests.mutants.run` judges all of them.
"""

from pathlib import Path
from typing import Any

import pytest

from dspark.conformance import make_decoder
from tests.mutants import CONTROLS, MUTANTS, control_named, mutant_named
from tests.mutants.mutant import require_names
from tests.mutants.outcome import Outcome, outcome_of_mutant
from tests.mutants.run import Job, run
from tests.mutants.trial import results_of, start_trial
from verify.betting.library import explanations_of_rounds, library
from verify.manifest import read_manifest
from verify.options import OWN_SUITE
from verify.registry import find_decoder

FAMILIES = sorted({mutant.family for mutant in MUTANTS.values()})
CHOSEN = {
    family: next(each for each in MUTANTS.values() if each.family == family and not each.equivalent)
    for family in FAMILIES
}


def test_as_many_as_promised() -> None:
    assert len(MUTANTS) >= 90
    assert len(FAMILIES) >= 20
    assert len(CONTROLS) >= 12
    assert not set(MUTANTS) & set(CONTROLS)


@pytest.mark.parametrize("id", MUTANTS)
def test_entries_name_what_exists(id: str) -> None:  # noqa: A002 (the word of the catalog)
    mutant = MUTANTS[id]
    manifest = read_manifest(OWN_SUITE, profile="default", door="decoder")
    assert any(entry.covers(f"verify/suite/{mutant.check}") for entry in manifest), mutant.check
    known = {each.name for each in (*library(), *explanations_of_rounds())}
    assert set(mutant.diagnosis) <= known | {"support_violation"}
    assert mutant.source == "derived" or mutant.source.startswith("https://")
    assert mutant.equivalent or mutant.patches or mutant.make is not make_decoder


@pytest.mark.parametrize("named", [*(f"mutant:{name}" for name in MUTANTS), *(f"control:{name}" for name in CONTROLS)])
def test_what_is_replaced_exists(named: str) -> None:
    family, _, name = named.partition(":")
    assert callable(mutant_named(name) if family == "mutant" else control_named(name))


def test_a_bug_in_what_does_not_exist_is_not_caught() -> None:
    """It was: the decoder could not be built, every check failed, and that counted as caught."""
    with pytest.raises(ValueError, match=r"'dspark.batch.open_context' is to be replaced and does not exist"):
        require_names({"dspark.batch.open_context": None})
    check = {
        "id": "verify/suite/test_06_state.py::test_rollback[4]",
        "verdict": "fail",
        "property": "rollback",
        "evidence": "contract",
        "reason": "make_decoder raised AttributeError on the pair",
        "details": {"observations": 0, "unit": "tokens", "duration_s": 0.1, "diagnosis": ""},
    }
    found = outcome_of_mutant(MUTANTS["KV-1"], {"checks": [check]}, stage="own check")
    assert not found.right
    assert outcome_of_mutant(
        MUTANTS["KV-1"], {"checks": [check | {"reason": "3 of 9 greedy tokens differ"}]}, stage="own check"
    ).right


@pytest.mark.parametrize(
    ("named", "word", "nearest"),
    [(mutant_named, "RES-99", "RES-"), (control_named, "sample-mach", "sample-match")],
)
def test_an_unknown_name_names_the_nearest(named: Any, word: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"no .* '{word}'; did you mean '{nearest}"):
        named(word)


def test_the_command_line_takes_them_by_name(tmp_path: Path) -> None:
    assert callable(find_decoder("mutant:RES-1", working_dir=tmp_path))
    assert callable(find_decoder("control:sample-match", working_dir=tmp_path))
    with pytest.raises(pytest.UsageError, match=r"--decoder 'mutant:RES-99': .*did you mean 'RES-"):
        find_decoder("mutant:RES-99", working_dir=tmp_path)
    with pytest.raises(pytest.UsageError, match="mutant:NAME, or module:attribute"):
        find_decoder("mutan", working_dir=tmp_path)


def test_without_a_checkout_the_module_is_missing(tmp_path: Path) -> None:
    table = '[project.entry-points."verify.decoder_families"]\nplanted = "no_such_tests.mutants:named"\n'
    (tmp_path / "pyproject.toml").write_text(table)
    with pytest.raises(pytest.UsageError, match=r"cannot import 'no_such_tests\.mutants'.*it must be importable"):
        find_decoder("planted:RES-1", working_dir=tmp_path, checkout=tmp_path)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    jobs = [Job(subject=mutant, stages=("own check",)) for mutant in CHOSEN.values()]
    found = run(jobs, store=tmp_path_factory.mktemp("outcomes"), fingerprint="", time_out=300)
    return {outcome.family: outcome for outcome in found}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bug_of_every_family_is_caught(outcomes: dict[str, Outcome], family: str) -> None:
    outcome = outcomes[family]
    assert outcome.right, outcome.error or outcome.reason
    assert outcome.named, outcome.property_name
    assert outcome.diagnosis_right is not False, outcome.diagnosis


def test_the_correct_decoder_passes_the_same_checks(tmp_path: Path) -> None:
    checks = sorted({mutant.check for mutant in CHOSEN.values() if mutant.make is make_decoder})
    start_trial("dspark-classic", checks, tmp_path, "--allow-partial").join()
    results = results_of(tmp_path)
    assert results is not None
    assert len(results["checks"]) == len(checks)
    assert {check["reason"] for check in results["checks"] if check["verdict"] != "pass"} == set()
