"""The run's memory: verdicts as they come, written at once, so that no later crash loses them."""

import gzip
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path

from verify.report.schema import CheckResult, DecoderInfo, ModelInfo, NotVerified, Results, Waived, jsonable
from verify.report.verdict import conclude
from verify.results import Verdict

WORST_FIRST = (
    Verdict.FAIL,
    Verdict.ERROR,
    Verdict.WAIVED,
    Verdict.INCONCLUSIVE,
    Verdict.NOT_APPLICABLE,
    Verdict.PASS,
)
GENERATION_FIELDS = ("token_ids", "finish_reason", "logprobs", "roles", "record")
RECORD_FIELDS = (
    "num_spec_steps",
    "num_draft_tokens",
    "num_accepted_draft_tokens",
    "acceptance_histogram",
    "drafted_per_step",
    "accepted_per_step",
)


def folder_name(decoder: str) -> str:
    """A decoder's name as that of the folder of its runs."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", decoder).strip(".-") or "decoder"


def make_run_dir(report_dir: Path, decoder: str) -> Path:
    """Create `report_dir/<decoder>/<UTC time>/` and point the link `latest` beside it there."""
    parent = report_dir / folder_name(decoder)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path = parent / stamp
    attempt = 1
    while path.exists():  # a second run within the same second
        attempt += 1
        path = parent / f"{stamp}-{attempt}"
    path.mkdir(parents=True)
    with suppress(OSError):  # a convenience; some file systems have no links
        temporary = parent / f".latest-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(path.name, target_is_directory=True)
        temporary.replace(parent / "latest")
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class Recorder:
    """Collects what a run learns and keeps `results.json` in `folder` up to date.

    `missing` is asked at each writing for what the run has not verified yet, given the ids of the checks judged so far.
    """

    def __init__(
        self,
        folder: Path,
        *,
        frame: Mapping[str, object],
        decoder: DecoderInfo,
        missing: Callable[["Recorder"], list[NotVerified]],
    ) -> None:
        self.folder = folder
        self.decoder = decoder
        self.models: dict[str, ModelInfo] = {}
        self.checks: dict[str, CheckResult] = {}
        self.waived: list[Waived] = []
        self.problems: list[NotVerified] = []
        self.environment: dict[str, str] = {}
        self._frame = frame
        self._missing = missing
        self._started = time.monotonic()
        self._generations: gzip.GzipFile | None = None

    def add(self, result: CheckResult) -> CheckResult:
        """Keep `result` and write it down; of two verdicts on a check the worse stays: nothing is retried away."""
        earlier = self.checks.get(result.id)
        if earlier is not None:
            result = min((earlier, result), key=lambda each: WORST_FIRST.index(each.verdict))
        self.checks[result.id] = result
        self.write()
        return result

    def results(self) -> Results:
        """Everything so far; the verdict is that of a run which ends here."""
        checks = sorted(self.checks.values(), key=lambda each: each.chapter)
        not_verified = [*self.problems, *self._missing(self)]
        return Results.model_validate(
            {
                **self._frame,
                "verdict": conclude(checks, not_verified).verdict,
                "decoder": self.decoder,
                "models": list(self.models.values()),
                "checks": checks,
                "not_verified": not_verified,
                "waived": self.waived,
                "environment": self.environment,
                "duration_s": time.monotonic() - self._started,
            }
        )

    def write(self) -> Results:
        """Write `results.json` and push the logged generations to the disk."""
        results = self.results()
        write_atomically(self.folder / "results.json", results.to_json())
        if self._generations is not None:
            self._generations.flush()
        return results

    def log_generation(self, *, check: str, models: str, request: object, generation: object) -> None:
        """Append one line to `generations.jsonl.gz`."""
        if self._generations is None:
            self._generations = gzip.GzipFile(self.folder / "generations.jsonl.gz", "ab", compresslevel=4)
        line = {
            "check": check,
            "models": models,
            "request": _plain(request),
            "generation": _attributes(generation, GENERATION_FIELDS),
        }
        self._generations.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """End the log of generations."""
        if self._generations is not None:
            self._generations.close()
            self._generations = None


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return jsonable(value)


def _attributes(value: object, names: tuple[str, ...]) -> dict[str, object]:
    found = {name: getattr(value, name, None) for name in names}
    if found.get("record") is not None:
        found["record"] = _attributes(found["record"], RECORD_FIELDS)
    return {name: jsonable(item) for name, item in found.items() if item is not None}
