"""The verdict of one check: what every judge in `verify` returns and every report reads."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """The possible outcomes of a check."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_APPLICABLE = "not_applicable"
    ERROR = "error"
    WAIVED = "waived"


class Evidence(StrEnum):
    """What a verdict rests on, strongest first."""

    EXACT = "exact"
    GREEDY = "greedy"
    CONTRACT = "contract"
    BETTING = "betting"
    TWO_SAMPLE = "two_sample"
    TIMING = "timing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One verdict with its evidence.

    `reason` is one sentence for a person: what was expected and what was observed. `observations` counts tokens, paths or
    requests (`unit` names which). `false_alarm` is the probability that this check fails on a lossless decoder.
    `smallest_visible` is the smallest error that this check would have seen, in `smallest_visible_unit`. `diagnosis` names
    the bug that explains a failure best, with its odds against the runner-up. `details` is JSON-ready evidence.
    """

    verdict: Verdict
    evidence: Evidence
    reason: str
    observations: int = 0
    unit: str = "tokens"
    false_alarm: float = 0.0
    smallest_visible: float | None = None
    smallest_visible_unit: str = ""
    diagnosis: str = ""
    details: dict[str, Any] = field(default_factory=dict)
