"""What became of a planted bug or of a control."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.mutants.controls import Control
from tests.mutants.mutant import Mutant

Stage = Literal["own check", "whole suite"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One line of the report.

    `right` says whether the suite judged rightly: a mutant caught, an equivalent mutant or a control let through. `stage` is what
    ran last: a mutant's own check, or the whole suite where that passed. The next fields are of the check that decided;
    `named` says whether its property is one that the bug breaks. `diagnosed` is the hypothesis that came first and
    `expected` those that name the bug, empty where the library knows none; `accused_by` lists every failed check.
    """

    id: str
    kind: Literal["mutant", "equivalent", "control"]
    family: str
    mechanism: str
    source: str
    right: bool
    stage: Stage
    check: str = ""
    property_name: str = ""
    named: bool = False
    evidence: str = ""
    observations: int = 0
    unit: str = ""
    seconds: float = 0.0
    reason: str = ""
    diagnosis: str = ""
    diagnosed: str = ""
    expected: tuple[str, ...] = ()
    accused_by: tuple[str, ...] = ()
    num_checks: int = 0
    error: str = ""

    @property
    def diagnosis_right(self) -> bool | None:
        """Whether the bug was named in first place; None where no hypothesis exists or nothing was caught."""
        return self.diagnosed in self.expected if self.expected and self.right else None


def outcome_of_mutant(mutant: Mutant, results: Mapping[str, Any] | None, *, stage: Stage, error: str = "") -> Outcome:
    """Judge the judge on a mutant; without results it is missed, and `error` says why."""
    checks = results["checks"] if results else []
    broken = [check for check in checks if check["reason"].startswith("make_decoder raised")]
    failed = [check for check in checks if check["verdict"] == "fail" and check not in broken]
    others = [*broken, *(check for check in checks if check["verdict"] in ("error", "inconclusive"))]
    passed = [check for check in checks if check["verdict"] == "pass"]
    # A broken check catches nothing, and a decoder that cannot be built is no bug that was caught. Of a mutant that must pass,
    # every check must have a verdict.
    right = bool(passed) and not failed and not others if mutant.equivalent else bool(failed)
    decisive = (failed or others or passed or [None])[0]
    return Outcome(
        id=mutant.id,
        kind="equivalent" if mutant.equivalent else "mutant",
        family=mutant.family,
        mechanism=mutant.mechanism,
        source=mutant.source,
        right=right and not error,
        stage=stage,
        named=decisive is not None and decisive["property"] in mutant.properties,
        expected=tuple(mutant.diagnosis),
        accused_by=_ids(failed),
        num_checks=len(checks),
        error=error or ("" if checks else "no check gave a verdict"),
        **_decision(decisive),
    )


def outcome_of_control(
    control: Control, results: Mapping[str, Any] | None, *, stage: Stage, error: str = ""
) -> Outcome:
    """Judge the judge on a correct decoder: no check may fail, break or remain undecided."""
    checks = results["checks"] if results else []
    accusing = [check for check in checks if check["verdict"] in ("fail", "error", "inconclusive")]
    passed = [check for check in checks if check["verdict"] == "pass"]
    return Outcome(
        id=control.id,
        kind="control",
        family="CTRL",
        mechanism=control.about,
        source="",
        right=bool(passed) and not accusing and not error,
        stage=stage,
        accused_by=_ids(accusing),
        num_checks=len(checks),
        error=error or ("" if checks else "no check gave a verdict"),
        **_decision((accusing or [None])[0]),
    )


def first_named(diagnosis: str) -> str:
    """The hypothesis that a diagnosis puts first: its first word, where that is the name of one."""
    # A check of the schedule puts its own suspicion first.
    text = diagnosis.partition("(SCHED); else: ")[2] or diagnosis
    match = re.match(r"([a-z0-9_]+) \(|([a-z0-9_]+): ", text)
    return (match.group(1) or match.group(2)) if match else ""


def _decision(check: Mapping[str, Any] | None) -> dict[str, Any]:
    if check is None:
        return {}
    details = check["details"]
    return {
        "check": check["id"].removeprefix("verify/suite/"),
        "property_name": check["property"],
        "evidence": check["evidence"],
        "observations": details["observations"],
        "unit": details["unit"],
        "seconds": round(details["duration_s"], 2),
        "reason": check["reason"],
        "diagnosis": details["diagnosis"],
        "diagnosed": first_named(details["diagnosis"]),
    }


def _ids(checks: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(check["id"].removeprefix("verify/suite/") for check in checks)
