"""The implementer's expected failures: a file of their own, every entry with a reason, every entry still true."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from verify.results import Evidence, Finding, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiver:
    """One `[[xfail]]` table: `id` is a check's id, in which `*` and `?` are wildcards; brackets are not."""

    id: str
    reason: str

    def matches(self, check_id: str) -> bool:
        """Whether this entry speaks of that check."""
        pattern = re.escape(self.id).replace(r"\*", ".*").replace(r"\?", ".")
        return re.fullmatch(pattern, check_id) is not None


def read_waivers(path: Path) -> tuple[Waiver, ...]:
    """Read `[[xfail]] id = "..." reason = "..."` tables; raise `pytest.UsageError` for anything else."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise pytest.UsageError(f"--xfails {path.name} is not TOML: {error}") from error
    tables = document.pop("xfail", [])
    if document or not isinstance(tables, list):
        raise pytest.UsageError(f"--xfails {path.name} has keys {sorted(document)}; only [[xfail]] tables are valid")
    return tuple(_waiver(table, path.name, number) for number, table in enumerate(tables, start=1))


def find_waiver(waivers: Sequence[Waiver], check_id: str) -> Waiver | None:
    """The first entry that speaks of this check."""
    return next((waiver for waiver in waivers if waiver.matches(check_id)), None)


def apply_waiver(finding: Finding, waiver: Waiver) -> Finding:
    """A failure becomes `waived`; a pass becomes a failure, because the waiver is stale; other verdicts stay."""
    if finding.verdict is Verdict.FAIL:
        return replace(finding, verdict=Verdict.WAIVED)
    if finding.verdict is Verdict.PASS:
        reason = f"stale waiver {waiver.id!r} ({waiver.reason}): the check passes; remove the entry from --xfails"
        return replace(finding, verdict=Verdict.FAIL, evidence=Evidence.CONTRACT, reason=reason)
    return finding


def _waiver(table: object, name: str, number: int) -> Waiver:
    if not isinstance(table, dict) or set(table) != {"id", "reason"}:
        keys = sorted(table) if isinstance(table, dict) else type(table).__name__
        raise pytest.UsageError(f"--xfails {name}: entry {number} has {keys}; it must have exactly `id` and `reason`")
    for key, value in table.items():
        if not isinstance(value, str) or not value.strip():
            raise pytest.UsageError(
                f"--xfails {name}: entry {number}: {key} is {value!r}; it must be a non-empty string"
            )
    return Waiver(id=table["id"], reason=table["reason"])
