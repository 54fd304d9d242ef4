"""The pytest side of a race: options, the race that all measurements share, the report at the end."""

import shlex

import pytest
from rich.console import Console

from verify.bench.options import BenchOptions, add_options, read_bench_options
from verify.bench.race import NotJudged, Race
from verify.bench.terminal import tables
from verify.bench.writer import write_race
from verify.options import relative

OPTIONS = pytest.StashKey[BenchOptions]()
RACE = pytest.StashKey[Race]()
WIDTH = 110  # the tables need it; a narrower terminal wraps lines rather than columns


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of a race."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Check the command line before anything is collected."""
    session.config.stash[OPTIONS] = read_bench_options(session.config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One measurement of speed for each concurrency."""
    if "concurrency" in metafunc.fixturenames:
        metafunc.parametrize("concurrency", metafunc.config.stash[OPTIONS].concurrency)


@pytest.fixture(scope="session")
def bench_options(pytestconfig: pytest.Config) -> BenchOptions:
    """What was asked."""
    return pytestconfig.stash[OPTIONS]


@pytest.fixture(scope="session")
def race(pytestconfig: pytest.Config, bench_options: BenchOptions) -> Race:
    """The race; ends the session where the decoder may not be timed."""
    command = "pytest " + shlex.join(pytestconfig.invocation_params.args)
    try:
        made = Race(bench_options, working_dir=pytestconfig.invocation_params.dir, command=command)
    except NotJudged as refusal:
        pytest.exit(str(refusal), returncode=pytest.ExitCode.USAGE_ERROR)
    pytestconfig.stash[RACE] = made
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the reports and print the table."""
    race = config.stash.get(RACE, None)
    if race is None:
        return
    results = race.finish()
    folder = race.options.out or race.options.common.report_dir / "bench" / _folder(results.decoder, results.baseline)
    write_race(results, folder)
    terminalreporter.section("race")
    console = Console(file=terminalreporter._tw._file, width=max(WIDTH, terminalreporter._tw.fullwidth))
    for each in tables(results):
        console.print(each)
    terminalreporter.write_line(f"report: {relative(folder / 'bench.html', config.invocation_params.dir)}")


def _folder(decoder: str, baseline: str) -> str:
    return "-over-".join("".join(c if c.isalnum() or c in "._-" else "-" for c in each) for each in (decoder, baseline))
