"""Judge the judge: `python -m tests.mutants.run [--whole] [ID ...]` runs every planted bug and every control.

A mutant meets its own check first. Only where that passes does the whole suite run, up to the first failure; `--whole` runs
the whole suite, to its end, in any case. Controls meet the whole suite. Each runs in a process of its own; what is done
is kept until a source changes, so an interrupted run goes on where it was.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.mutants import CONTROLS, MUTANTS, first_failure
from tests.mutants.controls import Control
from tests.mutants.mutant import Mutant
from tests.mutants.outcome import Outcome, Stage, outcome_of_control, outcome_of_mutant
from tests.mutants.report import write_report
from tests.mutants.trial import Process, results_of, start_trial

ROOT = Path(__file__).parents[2]
STORE = ROOT / "reports" / "local" / "mutants"
REPORT = ROOT / "reports" / "mutants"
SOURCES = ("tests/mutants", "dspark", "verify")
POLL_SECONDS = 0.2

Steps: TypeAlias = Generator[None, None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One mutant or control, and the runs that it needs, in order; a later one only if the one before did not catch it."""

    subject: Mutant | Control
    stages: tuple[Stage, ...]

    @property
    def decoder(self) -> str:
        """How the suite is told."""
        return f"{'mutant' if isinstance(self.subject, Mutant) else 'control'}:{self.subject.id}"

    def checks(self, stage: Stage) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Checks and options of a run."""
        if stage == "own check" and isinstance(self.subject, Mutant):
            return (self.subject.check,), ("--allow-partial",)
        if isinstance(self.subject, Control):
            return (), self.subject.options
        return (), (first_failure.OPTIONS if len(self.stages) > 1 else ())

    @property
    def must_pass(self) -> bool:
        """Whether nothing is wrong with the decoder's law."""
        return isinstance(self.subject, Control) or self.subject.equivalent

    def outcome(self, results: dict[str, Any] | None, *, stage: Stage, error: str) -> Outcome:
        """What a run says."""
        if isinstance(self.subject, Mutant):
            return outcome_of_mutant(self.subject, results, stage=stage, error=error)
        return outcome_of_control(self.subject, results, stage=stage, error=error)


def jobs_of(ids: Sequence[str], *, whole: bool) -> list[Job]:
    """What to run: the named ones, or all; raises ValueError for an unknown id."""
    known: dict[str, Mutant | Control] = {**MUTANTS, **CONTROLS}
    unknown = [each for each in ids if each not in known]
    if unknown:
        raise ValueError(f"there is no mutant or control {unknown[0]!r}. Known: {', '.join(known)}.")
    return [job_of(known[each], whole=whole) for each in ids or known]


def job_of(subject: Mutant | Control, *, whole: bool) -> Job:
    """A subject with the runs that it needs."""
    if whole or isinstance(subject, Control):
        return Job(subject=subject, stages=("whole suite",))
    return Job(subject=subject, stages=("own check",) if subject.equivalent else ("own check", "whole suite"))


def run(
    jobs: Sequence[Job],
    *,
    store: Path,
    fingerprint: str,
    workers: int = 2,
    time_out: float = 3600.0,
    start: Callable[..., Process] = start_trial,
    done: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Run the jobs that the store has no outcome of; outcomes in the order of the jobs."""
    outcomes: dict[str, Outcome] = {}
    waiting: list[Steps] = []
    for job in jobs:
        known = recall(store, job, fingerprint)
        if known is None:
            waiting.append(_steps(job, outcomes, store=store, fingerprint=fingerprint, time_out=time_out, start=start))
        else:
            outcomes[job.decoder] = known
            done(known)
    running: list[Steps] = []
    seen = set(outcomes)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(waiting.pop(0))
            running = [steps for steps in running if next(steps, "ended") is None]
            for name in [name for name in outcomes if name not in seen]:
                seen.add(name)
                done(outcomes[name])
            time.sleep(POLL_SECONDS if running else 0)
    finally:
        for steps in running:
            steps.close()
    return [outcomes[job.decoder] for job in jobs]


def _steps(
    job: Job,
    outcomes: dict[str, Outcome],
    *,
    store: Path,
    fingerprint: str,
    time_out: float,
    start: Callable[..., Process],
) -> Steps:
    """The runs of one job; yields while one is under way."""
    for stage in job.stages:
        folder = store / "runs" / job.decoder.replace(":", "-") / f"{stage.replace(' ', '-')}-{time.time_ns()}"
        checks, options = job.checks(stage)
        process = start(job.decoder, checks, folder, *options)
        began = time.monotonic()
        error = ""
        try:
            while process.exitcode is None and not error:
                process.join(0)
                if time.monotonic() - began > time_out:
                    error = f"no end after {time_out:.0f} s"
                yield
        finally:  # also where the runner itself is interrupted
            if process.exitcode is None:
                process.terminate()
                process.join()
        outcome = job.outcome(results_of(folder), stage=stage, error=error)
        if outcome.right != job.must_pass:  # caught, or accused: the next run would add nothing
            break
    outcomes[job.decoder] = outcome
    if not outcome.error:  # a run that broke off is tried again next time
        remember(store, job, outcome, fingerprint)


def recall(store: Path, job: Job, fingerprint: str) -> Outcome | None:
    """The outcome in the store, if it is of these sources and of as much of the suite."""
    path = _path(store, job)
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["fingerprint"] != fingerprint or kept["stages"] != list(job.stages):
        return None
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in kept["outcome"].items()
    }
    return Outcome(**values)


def remember(store: Path, job: Job, outcome: Outcome, fingerprint: str) -> None:
    """Keep an outcome."""
    path = _path(store, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"fingerprint": fingerprint, "stages": list(job.stages), "outcome": asdict(outcome)}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def fingerprint_of(root: Path, sources: Iterable[str] = SOURCES) -> str:
    """A hash of every source that an outcome depends on."""
    digest = hashlib.sha256()
    for source in sources:
        for path in sorted((root / source).rglob("*.py")):
            if not path.name.startswith("test_") or source == "verify":
                digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _path(store: Path, job: Job) -> Path:
    return store / f"{job.decoder.replace(':', '-')}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report; 0 if every mutant was caught and no control accused."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__.splitlines()[0])
    parser.add_argument("ids", nargs="*", metavar="ID", help="mutants and controls (default: all)")
    parser.add_argument("--whole", action="store_true", help="the whole suite for every mutant, to its end")
    parser.add_argument("--workers", type=int, default=2, help="processes at once (default: 2)")
    parser.add_argument("--time-out", type=float, default=3600.0, metavar="S", help="seconds per run (default: 3600)")
    parser.add_argument(
        "--report-dir", type=Path, default=REPORT, help="where the report goes (default: reports/mutants)"
    )
    given = parser.parse_args(arguments)
    try:
        jobs = jobs_of(given.ids, whole=given.whole)
    except ValueError as error:
        parser.error(str(error))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("planted bugs and controls", total=len(jobs))

        def done(outcome: Outcome) -> None:
            if not outcome.right:
                wrong = "accused" if outcome.kind != "mutant" else "missed"
                progress.console.print(f"{outcome.id}: {wrong}: {outcome.error or outcome.reason}")
            progress.advance(task)

        outcomes = run(
            jobs,
            store=STORE,
            fingerprint=fingerprint_of(ROOT),
            workers=given.workers,
            time_out=given.time_out,
            done=done,
        )
    summary = write_report(outcomes, given.report_dir)
    print(summary)
    return 0 if all(outcome.right for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
