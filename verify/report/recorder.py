"""The run's memory: verdicts as they come, written at once, so that no later crash loses them."""

import gzip
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from verify.report.judged import Learnt
from verify.report.schema import CheckResult, DecoderInfo, ModelInfo, NotVerified, Results, Waived
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


def worse(first: CheckResult, second: CheckResult) -> CheckResult:
    """Of two verdicts on a check the worse stays: nothing is retried away."""
    return min((first, second), key=lambda each: WORST_FIRST.index(each.verdict))


class Recorder:
    """Collects what a run learns and keeps `results.json` in `folder` up to date.

    `order` lists the checks as the report shows them, whichever was judged first. `missing` is asked at each writing for
    what the run has not verified yet, given the ids of the checks judged so far.
    """

    def __init__(
        self,
        folder: Path,
        *,
        frame: Mapping[str, object],
        decoder: DecoderInfo,
        order: Sequence[str] = (),
        missing: Callable[["Recorder"], list[NotVerified]],
    ) -> None:
        self.folder = folder
        self.decoder = decoder
        self.models: dict[str, ModelInfo] = {}
        self.checks: dict[str, CheckResult] = {}
        self.problems: list[NotVerified] = []
        self.environment: dict[str, str] = {}
        self._waived: dict[str, Waived] = {}
        self._order = {name: place for place, name in enumerate(order)}
        self._frame = frame
        self._missing = missing
        self._started = time.monotonic()
        self._generations: gzip.GzipFile | None = None

    def learn(self, learnt: Learnt) -> None:
        """Keep what a process learnt of the decoder; claimed with any pair is claimed."""
        claims = self.decoder.capabilities
        claims = claims | {name: claims.get(name) or claim for name, claim in learnt.claims.items()}
        self.decoder = self.decoder.model_copy(update={"capabilities": claims})
        self.models |= {each.name: each for each in learnt.models}
        if not learnt.generations:
            return
        if self._generations is None:
            self._generations = gzip.GzipFile(self.folder / "generations.jsonl.gz", "ab", compresslevel=4)
        self._generations.write("".join(f"{line}\n" for line in learnt.generations).encode())

    def add(self, result: CheckResult, waived: Waived | None = None) -> None:
        """Keep `result`, the worse where there are two, and write it down."""
        self.checks[result.id] = worse(self.checks.get(result.id, result), result)
        if waived is not None:
            self._waived[result.id] = waived
        self.write()

    def results(self) -> Results:
        """Everything so far; the verdict is that of a run which ends here."""
        checks = sorted(self.checks.values(), key=lambda each: (each.chapter, self._order.get(each.id, 0)))
        waived = [self._waived[each.id] for each in checks if each.verdict is Verdict.WAIVED]
        not_verified = [*self.problems, *self._missing(self)]
        return Results.model_validate(
            {
                **self._frame,
                "verdict": conclude(checks, not_verified).verdict,
                "decoder": self.decoder,
                "models": [self.models[name] for name in sorted(self.models)],
                "checks": checks,
                "not_verified": not_verified,
                "waived": waived,
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

    def close(self) -> None:
        """End the log of generations."""
        if self._generations is not None:
            self._generations.close()
            self._generations = None
