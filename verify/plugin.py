"""The pytest plugin: collects the checks, hands each its judge, records verdicts, reports and sets the exit code.

It acts only in a session that judges a decoder: one that collects checks, or one that was started on the suite itself.
A session that only collects writes no report and keeps pytest's own exit code.
"""

import inspect
from collections.abc import Generator, Mapping
from shutil import get_terminal_size

import pytest

from verify import options as command_line
from verify import parallel
from verify.judge import MARKER, Check, Judge
from verify.manifest import check_id
from verify.outcome import check_result, finding_of, reproduce_command
from verify.report import terminal
from verify.report.schema import CheckResult, NotVerified, Waived
from verify.results import Finding, Verdict
from verify.run import Run
from verify.waivers import apply_waiver, find_waiver

ACTIVE = pytest.StashKey[bool]()
RUN = pytest.StashKey[Run]()
PROBLEMS = pytest.StashKey[list[NotVerified]]()
JUDGE = pytest.StashKey[Judge]()
SECONDS = pytest.StashKey[float]()
HANDED_IN = "verify_judged"  # what a check's report carries: `verify.report.judged` as text
ENDINGS = {
    pytest.ExitCode.INTERRUPTED: "interrupted before its end",
    pytest.ExitCode.INTERNAL_ERROR: "pytest itself broke; its message is in the terminal",
}
CATEGORIES: dict[str, tuple[str, str, tuple[str, dict[str, bool]]]] = {
    Verdict.PASS: ("passed", ".", ("PASSED", {"green": True})),
    Verdict.FAIL: ("failed", "F", ("FAIL", {"red": True})),
    Verdict.ERROR: ("error", "E", ("ERROR", {"red": True})),
    Verdict.INCONCLUSIVE: ("inconclusive", "i", ("INCONCLUSIVE", {"yellow": True})),
    Verdict.NOT_APPLICABLE: ("not applicable", "n", ("NOT APPLICABLE", {"blue": True})),
    Verdict.WAIVED: ("waived", "w", ("WAIVED", {"purple": True})),
}


def activate(config: pytest.Config) -> None:
    """Say that this session judges a decoder, whatever it collects; what the decoder warns of is no verdict on it."""
    config.stash[ACTIVE] = True
    config.addinivalue_line("filterwarnings", "default")


def check_of(item: pytest.Item) -> Check | None:
    """The check that a test item is, if it is one."""
    mark = item.get_closest_marker(MARKER)
    return mark.args[0] if mark and mark.args and isinstance(mark.args[0], Check) else None


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the suite's options, and what it does under pytest-xdist."""
    command_line.add_options(parser)
    if not pluginmanager.is_registered(parallel):
        pluginmanager.register(parallel, parallel.__name__)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker behind `verify.judge.check`."""
    config.addinivalue_line("markers", f"{MARKER}(check): a check of the conformance suite; use verify.judge.check")
    config.stash[PROBLEMS] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    """Read the options before pytest-xdist starts its workers, so that a wrong one need not wait for their end."""
    if session.config.stash.get(ACTIVE, False) and parallel.is_controller(session.config):
        parallel.refuse_unsupported(session.config, command_line.read_options(session.config))


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Check the command line before anything is collected, where it is known that this session judges a decoder."""
    if session.config.stash.get(ACTIVE, False):
        _start(session.config)
    if parallel.is_controller(session.config):
        parallel.collect(session)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Remember what could not be collected: the checks in there will not run."""
    report = yield
    if not report.passed:
        word = "was skipped" if report.skipped else "could not be collected"
        lines = report.longreprtext.strip().splitlines()
        reason = (
            report.longrepr[2] if isinstance(report.longrepr, tuple) else (lines[-1] if lines else "no reason given")
        )
        problem = NotVerified(kind="run", what=report.nodeid or "collection", reason=f"{word}: {reason}", required=True)
        collector.config.stash[PROBLEMS].append(problem)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, None, None]:
    """See all checks before and after anyone else selects among them; leave out those of other profiles and doors."""
    seen = list(items)
    yield
    checks = [(item, check) for item in dict.fromkeys([*seen, *items]) if (check := check_of(item))]
    if not checks and not config.stash.get(ACTIVE, False):
        return
    if not config.stash.get(ACTIVE, False):
        activate(config)
    run = _start(config)
    others = [item for item in items if (check := check_of(item)) and not run.executes(check)]
    if others:
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)
    kept = [_id(run, item) for item in items if check_of(item)]
    run.select({_id(run, item): check for item, check in checks}, kept)
    if not config.option.collectonly and not run.options.worker:
        run.start(config.stash[PROBLEMS])
        config.pluginmanager.register(Reports(run, {item.nodeid: (item, check) for item, check in checks}))


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Print what is under test and every related variable."""
    run = config.stash.get(RUN, None)
    if run is None:
        return []
    return terminal.header(
        run.options,
        name=run.name,
        adapter=run.adapter,
        claims=run.early_claims,
        budget=run.budget,
        num_checks=len(run.selected),
        environment=run.environment,
        folder=run.recorder.folder if run.recorder else None,
    )


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Judge:
    """The judge of this check."""
    check = check_of(request.node)
    if check is None:
        raise RuntimeError(f"{request.node.name} takes `judge` but is no check; decorate it with verify.judge.check")
    return _judge(request.node, check)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn what happened into a finding, and let the report carry and show it instead of pytest's own words."""
    report = yield
    run, check = item.config.stash.get(RUN, None), check_of(item)
    if run is None or check is None:
        return report
    judge = _judge(item, check)
    run.progress.clear()
    item.stash[SECONDS] = item.stash.get(SECONDS, 0.0) + call.duration
    finding = finding_of(check, judge, call.excinfo.value if call.excinfo else None, when=call.when)
    if finding is not None:
        _hand_in(report, finding, item, judge, traceback=report.longreprtext)
    return report


class Reports:
    """Records what each report carries, wherever its check ran, and what carries nothing although it failed."""

    def __init__(self, run: Run, checks: Mapping[str, tuple[pytest.Item, Check]]) -> None:
        self._run = run
        self._checks = checks

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A check that failed with no verdict ended with its process: pytest-xdist's words say so."""
        if report.nodeid not in self._checks:
            self._run.other_failures += report.failed
            return
        item, check = self._checks[report.nodeid]
        if report.failed and not hasattr(report, HANDED_IN):
            judge = _judge(item, check)
            finding = Finding(verdict=Verdict.ERROR, evidence=check.evidence, reason=str(report.longrepr))
            report.when, report.location = "call", item.location  # pytest-xdist knows neither
            _hand_in(report, finding, item, judge)
        if hasattr(report, HANDED_IN):
            self._run.record(getattr(report, HANDED_IN))


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Give each verdict a category and a word of its own."""
    verdict = getattr(report, "verify_verdict", None)
    return None if verdict is None else CATEGORIES[verdict]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the reports and set the exit code; a usage error and a session that only collected keep pytest's own."""
    run = session.config.stash.get(RUN, None)
    if run is None or run.recorder is None or exitstatus == pytest.ExitCode.USAGE_ERROR:
        return
    if exitstatus in ENDINGS:
        reason = str(session.shouldstop or session.shouldfail or ENDINGS[pytest.ExitCode(exitstatus)])
        run.recorder.problems.append(NotVerified(kind="run", what="the run", reason=reason, required=True))
    session.exitstatus = run.finish()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table per chapter, the verdict, and what the exit code means, in place of pytest's short summary."""
    run = config.stash.get(RUN, None)
    if run is None or run.recorder is None or run.results is None or run.conclusion is None:
        return
    terminalreporter.section("verdict")
    text = terminal.summary(
        run.results,
        run.conclusion,
        exit_code=run.exit_code,
        folder=run.recorder.folder,
        problems=run.report_problems,
        width=get_terminal_size((120, 24)).columns,  # of a file or a pipe: wide enough for the table
        color=terminalreporter.hasmarkup,
    )
    terminalreporter.write(text)
    if not run.other_failures:
        terminalreporter.reportchars = ""


def _start(config: pytest.Config) -> Run:
    if RUN not in config.stash:
        config.stash[RUN] = Run(config)
    return config.stash[RUN]


def _id(run: Run, item: pytest.Item) -> str:
    suite = run.options.suite
    if item.path.is_relative_to(suite):
        return check_id(item.path, item.nodeid.split("::", 1)[1], suite=suite)
    return item.nodeid


def _judge(item: pytest.Item, check: Check) -> Judge:
    if JUDGE not in item.stash:
        run = item.config.stash[RUN]
        item.stash[JUDGE] = run.judge(_id(run, item), check)
    return item.stash[JUDGE]


def _hand_in(
    report: pytest.TestReport, finding: Finding, item: pytest.Item, judge: Judge, *, traceback: str = ""
) -> None:
    """Let the report carry the verdict, waived where the implementer expects it, and show it."""
    run = item.config.stash[RUN]
    waiver, waived = find_waiver(run.waivers, judge.id), None
    if waiver is not None:
        failure, finding = finding.reason, apply_waiver(finding, waiver)
        if finding.verdict is Verdict.WAIVED:
            waived = Waived(id=judge.id, pattern=waiver.id, reason=waiver.reason, failure=failure)
    result = check_result(
        id=judge.id,
        check=judge.check,
        finding=finding,
        alpha=judge.alpha,
        seed=judge.seed,
        duration_s=item.stash.get(SECONDS, 0.0),
        command=reproduce_command(item, judge, by_option=not item.config.stash.get(ACTIVE, False)),
        about=inspect.getdoc(getattr(item, "function", None)) or "",
        traceback=traceback if finding.verdict is Verdict.ERROR else "",
    )
    setattr(report, HANDED_IN, run.hand_in(result, waived))
    _show(report, result, item)


def _show(report: pytest.TestReport, result: CheckResult, item: pytest.Item) -> None:
    verdict = result.verdict
    report.verify_verdict = verdict.value  # type: ignore[attr-defined]
    if hasattr(report, "wasxfail"):
        del report.wasxfail  # pytest's own xfail has no say over a check
    if verdict is Verdict.PASS:
        report.outcome, report.longrepr = "passed", None
    elif verdict in (Verdict.FAIL, Verdict.ERROR):
        report.outcome, report.longrepr = "failed", terminal.failure(result)
    else:
        path, line, _ = item.reportinfo()
        report.outcome, report.longrepr = "skipped", (str(path), (line or 0) + 1, result.reason)
