"""The runner itself: a missed mutant is reported as missed, an accused control as accused, and done work is kept."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.mutants import CONTROLS, MUTANTS
from tests.mutants.first_failure import OPTIONS, FirstFailure
from tests.mutants.outcome import Outcome, first_named, outcome_of_mutant
from tests.mutants.report import totals, write_report
from tests.mutants.run import fingerprint_of, job_of, jobs_of, main, run
from verify.results import Verdict

MUTANT = MUTANTS["RES-1"]
EQUIVALENT = next(mutant for mutant in MUTANTS.values() if mutant.equivalent)
CONTROL = "sample-match"


def checked(verdict: str, *, property: str = "exact law", diagnosis: str = "") -> dict[str, Any]:  # noqa: A002
    """A check as `results.json` has it."""
    details = {"observations": 288, "unit": "paths", "duration_s": 1.25, "diagnosis": diagnosis}
    return {
        "id": "verify/suite/test_02_exact_law.py::test_rounds[close]",
        "property": property,
        "verdict": verdict,
        "evidence": "exact",
        "reason": f"it is a {verdict}",
        "details": details,
    }


class Suite:
    """Stands for pytest: `verdicts` by stage (own check, whole suite); None leaves no results behind."""

    def __init__(self, *, own: Sequence[str] | None = (), whole: Sequence[str] | None = ()) -> None:
        self.own, self.whole = own, whole
        self.started: list[str] = []
        self.options: list[tuple[str, ...]] = []

    def __call__(self, decoder: str, checks: Sequence[str], folder: Path, *options: str) -> "Ended":
        self.started.append(f"{decoder} {'own' if checks else 'whole'}")
        self.options.append(options)
        verdicts = self.own if checks else self.whole
        if verdicts is not None:
            path = folder / "decoder" / "20260101T000000Z"
            path.mkdir(parents=True)
            (path / "results.json").write_text(json.dumps({"checks": [checked(each) for each in verdicts]}))
        return Ended()


class Ended:
    """A process that is over."""

    exitcode: int | None = 0

    def join(self, timeout: float | None = None) -> None: ...

    def terminate(self) -> None: ...


class Endless(Ended):
    """A process that ends only when it is told to."""

    exitcode: int | None = None

    def terminate(self) -> None:
        self.exitcode = -15


def judged(store: Path, name: str, suite: Any, *, whole: bool = False, **settings: Any) -> Outcome:
    subject = {**MUTANTS, **CONTROLS}[name]
    (outcome,) = run([job_of(subject, whole=whole)], store=store, fingerprint="f", start=suite, **settings)
    return outcome


def test_a_mutant_caught_by_its_own_check(tmp_path: Path) -> None:
    suite = Suite(own=["fail"])
    outcome = judged(tmp_path, MUTANT.id, suite)
    assert (outcome.right, outcome.stage, outcome.named, outcome.seconds) == (True, "own check", True, 1.25)
    assert suite.started == ["mutant:RES-1 own"]


def test_a_mutant_caught_by_the_suite_only(tmp_path: Path) -> None:
    suite = Suite(own=["pass"], whole=["pass", "fail"])
    outcome = judged(tmp_path, MUTANT.id, suite)
    assert (outcome.right, outcome.stage) == (True, "whole suite")
    assert suite.options == [("--allow-partial",), OPTIONS]


@pytest.mark.parametrize("verdict", ["pass", "error", "inconclusive"])
def test_a_missed_mutant_is_missed(tmp_path: Path, verdict: str) -> None:
    outcome = judged(tmp_path, MUTANT.id, Suite(own=[verdict], whole=["pass", verdict]))
    assert not outcome.right
    assert totals([outcome])["missed"] == [MUTANT.id]
    assert "0 of 1 planted bugs" in write_report([outcome], tmp_path / "report")
    assert "**missed**" in (tmp_path / "report" / "README.md").read_text()


def test_a_run_that_leaves_nothing_catches_nothing(tmp_path: Path) -> None:
    outcome = judged(tmp_path, MUTANT.id, Suite(own=None, whole=None))
    assert (outcome.right, outcome.error) == (False, "no check gave a verdict")


def test_a_run_that_broke_off_is_tried_again(tmp_path: Path) -> None:
    assert judged(tmp_path, MUTANT.id, Suite(own=None, whole=None)).error
    assert judged(tmp_path, MUTANT.id, Suite(own=["fail"])).right


def test_a_run_that_hangs_catches_nothing(tmp_path: Path) -> None:
    outcome = judged(tmp_path, MUTANT.id, lambda *_: Endless(), time_out=0.0)
    assert (outcome.right, outcome.error) == (False, "no end after 0 s")


@pytest.mark.parametrize("verdict", ["fail", "error", "inconclusive"])
def test_an_accused_control_is_accused(tmp_path: Path, verdict: str) -> None:
    outcome = judged(tmp_path, CONTROL, Suite(whole=["pass", verdict]))
    assert not outcome.right
    assert totals([outcome])["controls_accused"] == [CONTROL]
    write_report([outcome], tmp_path / "report")
    assert "**accused**" in (tmp_path / "report" / "README.md").read_text()


def test_a_control_meets_the_whole_suite_to_its_end(tmp_path: Path) -> None:
    suite = Suite(whole=["pass", "not_applicable"])
    outcome = judged(tmp_path, CONTROL, suite)
    assert outcome.right
    assert (suite.started, suite.options) == ([f"control:{CONTROL} whole"], [()])


def test_a_control_brings_its_options(tmp_path: Path) -> None:
    suite = Suite(whole=["pass"])
    judged(tmp_path, "bfloat16", suite)
    assert suite.options == [("--dtype", "bfloat16")]


def test_a_control_without_verdicts_has_not_passed(tmp_path: Path) -> None:
    assert not judged(tmp_path, CONTROL, Suite(whole=["not_applicable"])).right


def test_an_equivalent_mutant_must_pass(tmp_path: Path) -> None:
    assert judged(tmp_path / "a", EQUIVALENT.id, Suite(own=["pass"])).right
    assert not judged(tmp_path / "b", EQUIVALENT.id, Suite(own=["fail"])).right


def test_whole_runs_to_the_end(tmp_path: Path) -> None:
    suite = Suite(whole=["fail", "pass"])
    assert judged(tmp_path, MUTANT.id, suite, whole=True).right
    assert (suite.started, suite.options) == (["mutant:RES-1 whole"], [()])


def test_done_work_is_kept_until_a_source_changes(tmp_path: Path) -> None:
    suite = Suite(own=["fail"])
    jobs = jobs_of([MUTANT.id], whole=False)
    first = run(jobs, store=tmp_path, fingerprint="one", start=suite)
    assert run(jobs, store=tmp_path, fingerprint="one", start=suite) == first
    assert len(suite.started) == 1
    run(jobs, store=tmp_path, fingerprint="two", start=suite)
    assert len(suite.started) == 2
    run(jobs_of([MUTANT.id], whole=True), store=tmp_path, fingerprint="two", start=suite)
    assert len(suite.started) == 3, "a partial outcome does not stand for a whole run"


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    jobs = jobs_of(["RES-1", "RES-8"], whole=False)
    suite = Suite(own=["fail"])

    def second_breaks(decoder: str, *arguments: Any) -> Ended:
        if decoder == "mutant:RES-8":
            raise KeyboardInterrupt
        return suite(decoder, *arguments)

    with pytest.raises(KeyboardInterrupt):
        run(jobs, store=tmp_path, fingerprint="f", start=second_breaks, workers=1)
    run(jobs, store=tmp_path, fingerprint="f", start=suite)
    assert suite.started == ["mutant:RES-1 own", "mutant:RES-8 own"]


def test_an_interrupted_run_leaves_no_process_behind(tmp_path: Path) -> None:
    hanging = Endless()

    def second_breaks(decoder: str, *_: Any) -> Ended:
        if decoder == "mutant:RES-8":
            raise KeyboardInterrupt
        return hanging

    with pytest.raises(KeyboardInterrupt):
        run(jobs_of(["RES-1", "RES-8"], whole=False), store=tmp_path, fingerprint="f", start=second_breaks)
    assert hanging.exitcode == -15


def test_the_fingerprint_is_of_the_sources(tmp_path: Path) -> None:
    source = tmp_path / "dspark" / "a.py"
    source.parent.mkdir()
    source.write_text("1")
    before = fingerprint_of(tmp_path, ["dspark"])
    (source.parent / "test_a.py").write_text("a test decides nothing")
    assert fingerprint_of(tmp_path, ["dspark"]) == before
    source.write_text("2")
    assert fingerprint_of(tmp_path, ["dspark"]) != before


def test_an_unknown_id_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["RES-999"])
    assert raised.value.code == 2
    assert "no mutant or control 'RES-999'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("diagnosis", "name"),
    [
        ("residual_softmax (RES) gives exactly the observed law", "residual_softmax"),
        ("residual_softmax (odds 3.2 against draft_leak): The clamped residual", "residual_softmax"),
        ("previous_row: Tokens follow the target row", "previous_row"),
        (
            "if chapter 2 passes: whether a draft (SCHED); else: draft_leak (GENERIC; wins 0.1 nats): A share",
            "draft_leak",
        ),
        ("the acceptance accounting is wrong (STAT)", ""),
        ("", ""),
    ],
)
def test_the_name_that_comes_first(diagnosis: str, name: str) -> None:
    assert first_named(diagnosis) == name


@pytest.mark.parametrize(
    ("verdict", "stops"),
    [(Verdict.FAIL, True), (Verdict.INCONCLUSIVE, False), (Verdict.ERROR, False), (Verdict.PASS, False), (None, False)],
)
def test_only_a_failure_ends_a_run(verdict: Verdict | None, stops: bool) -> None:
    session: Any = SimpleNamespace(shouldstop=False)
    report: Any = SimpleNamespace() if verdict is None else SimpleNamespace(verify_verdict=verdict)
    plugin = FirstFailure()
    plugin.pytest_sessionstart(session)
    plugin.pytest_runtest_logreport(report)
    assert bool(session.shouldstop) is stops


def test_only_the_first_diagnosis_counts() -> None:
    mutant = next(each for each in MUTANTS.values() if "residual_softmax" in each.diagnosis)
    for diagnosis, right in (
        ("residual_softmax (RES) gives exactly", True),
        ("draft_leak (odds 1.1 against residual_softmax): A share", False),
    ):
        results = {"checks": [checked("fail", diagnosis=diagnosis)]}
        assert outcome_of_mutant(mutant, results, stage="own check").diagnosis_right is right
