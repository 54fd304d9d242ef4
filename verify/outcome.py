"""From what happened in a check to its one verdict."""

import json
import math
import shlex
from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from verify.judge import Check, ContractViolation, Judge, NotApplicable
from verify.options import OWN_SUITE, command_arguments, relative
from verify.report.schema import PICTURE, CheckResult, Details, Picture, jsonable
from verify.results import Evidence, Finding, Verdict


def finding_of(check: Check, judge: Judge, error: BaseException | None, *, when: str) -> Finding | None:
    """The finding of one phase of a check; None for a set-up or tear-down that went well.

    A failure that was concluded stands, whatever the check does afterwards. A fixture may raise `ContractViolation` or
    `NotApplicable` just like the check.
    """

    def unjudged(verdict: Verdict, reason: str) -> Finding:
        return Finding(verdict=verdict, evidence=check.evidence, reason=reason)

    if when == "call" and judge.finding is not None and judge.finding.verdict is Verdict.FAIL:
        return judge.finding
    match error:
        case None:
            if when != "call":
                return None
            return judge.finding or unjudged(Verdict.ERROR, "concluded nothing: the check ended without judge.conclude")
        case ContractViolation():
            return Finding(
                verdict=Verdict.FAIL, evidence=Evidence.CONTRACT, reason=str(error), details=dict(error.details)
            )
        case NotApplicable():
            return unjudged(Verdict.NOT_APPLICABLE, str(error))
        case pytest.skip.Exception():
            return unjudged(
                Verdict.ERROR, f"skipped ({error}): a check may not skip; raise NotApplicable with a reason"
            )
    return unjudged(Verdict.ERROR, f"{type(error).__name__} in {when}: {str(error).strip() or 'no message'}")


def check_result(
    *,
    id: str,  # noqa: A002 (the key of the report)
    check: Check,
    finding: Finding,
    alpha: float,
    seed: int,
    duration_s: float,
    command: str,
    about: str,
    traceback: str,
) -> CheckResult:
    """The record of a finding; a picture that breaks the schema is left out and named, and changes no verdict."""
    data = dict(finding.details)
    pictures, broken = _pictures(data.pop("pictures", []))
    if broken:
        data["broken_pictures"] = broken
    visible = finding.smallest_visible
    return CheckResult(
        id=id,
        chapter=check.chapter,
        property=check.property,
        verdict=finding.verdict,
        evidence=finding.evidence,
        reason=finding.reason,
        details=Details(
            observations=int(finding.observations),
            unit=finding.unit,
            false_alarm=float(finding.false_alarm),
            alpha=alpha,
            smallest_visible=float(visible) if visible is not None and math.isfinite(visible) else None,
            smallest_visible_unit=finding.smallest_visible_unit,
            diagnosis=finding.diagnosis,
            duration_s=duration_s,
            command=command,
            seed=seed,
            required=check.required,
            about=about,
            pictures=pictures,
            traceback=traceback,
            data=jsonable(data),
        ),
    )


def reproduce_command(item: pytest.Item, judge: Judge, *, by_option: bool) -> str:
    """The command that runs this one check again, with the same seed and the same share of the budget.

    `by_option`: no conftest brings the plugin along, so that the command has to.
    """
    base = item.config.invocation_params.dir
    names = item.nodeid.split("::", 1)[1]
    command = ["pytest", *(["-p", "verify.plugin"] if by_option else [])]
    if item.path.is_relative_to(OWN_SUITE) and not item.path.is_relative_to(base):
        module = ".".join(item.path.relative_to(OWN_SUITE.parent.parent).with_suffix("").parts)
        command += ["--pyargs", f"{module}::{names}"]
    else:
        command.append(f"{relative(item.path, base)}::{names}")
    command += command_arguments(judge.options, base=base)
    if judge.alpha:
        command += ["--false-alarm", repr(judge.alpha)]
    return shlex.join([*command, "--allow-partial"])


def _pictures(claimed: object) -> tuple[list[Picture], list[str]]:
    good: list[Picture] = []
    broken: list[str] = []
    if not isinstance(claimed, Sequence) or isinstance(claimed, str):
        return good, [f"details['pictures'] is {type(claimed).__name__}; it must be a list of pictures"]
    for number, picture in enumerate(claimed):
        try:
            # JSON mode: it reads the words for non-finite numbers that `jsonable` writes.
            good.append(PICTURE.validate_json(json.dumps(jsonable(picture))))
        except ValidationError as error:
            broken.append(f"picture {number}: {error}")
    return good, broken
