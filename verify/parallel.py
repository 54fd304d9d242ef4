"""The suite under pytest-xdist: workers judge, and their controller collects too, records and concludes.

The controller hands the run's seed to its workers; all else they derive as it does, from the same command line. What a
check found travels on its report. The hooks named `pytest_xdist_*` and `*_node` exist where pytest-xdist is installed.
"""

import os
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from verify.options import Options, seed_text, worker_id
from verify.values import choose

SEED = "verify_seed"
# Not `each`, which judges twice, nor those by scope, file and group: they run again and again what ended its worker.
DISTRIBUTIONS = ("load", "worksteal")
DEFAULT_DISTRIBUTION = "worksteal"


def is_controller(config: pytest.Config) -> bool:
    """Whether other processes run the tests of this session."""
    return config.pluginmanager.has_plugin("dsession")


def describe_workers(config: pytest.Config) -> dict[str, str]:
    """The number of workers, for the report's environment; nothing where there are none."""
    return {"workers": str(len(config.option.tx))} if is_controller(config) else {}


def refuse_unsupported(config: pytest.Config, options: Options) -> None:
    """Raise `pytest.UsageError` for ways to distribute that would judge twice, elsewhere, or a server from two sides."""
    if not is_controller(config):
        return
    choose("--dist", config.option.dist, DISTRIBUTIONS)
    for spec in config.option.tx:
        if spec != "popen":
            raise pytest.UsageError(f"--tx {spec!r}: workers run on this machine, with this Python; use -n N instead")
    if options.door == "engine":
        raise pytest.UsageError(
            f"-n {len(config.option.tx)} with --decoder {options.decoder}: an engine is asked in one campaign by one "
            "process; leave out -n"
        )


def collect(session: pytest.Session) -> None:
    """Collect in the controller, so that it knows what has to be judged; errors end the session as without workers."""
    session.perform_collect()
    failed = session.testsfailed
    if failed and not session.config.option.continue_on_collection_errors:
        raise session.Interrupted(f"{failed} error{'s' if failed > 1 else ''} during collection")


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, Any]:
    """Let -n alone mean the distribution that is fastest here; a wrapper, to come before pytest-xdist's own default."""
    option = config.option
    if getattr(option, "looponfail", False):
        raise pytest.UsageError("-f repeats what failed until it passes, which is no verdict; leave it out")
    if getattr(option, "numprocesses", None) and option.dist == "no" and not option.distload:
        option.dist = DEFAULT_DISTRIBUTION
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Take the run's seed in a worker."""
    if worker_id(config):
        config.option.verify_seed = config.workerinput[SEED]  # type: ignore[attr-defined]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: Sequence[object]) -> None:
    """Share the cores among the workers, which inherit this environment, unless OMP_NUM_THREADS is given.

    In the environment, because torch reads it when it is imported, which a worker's conftest does early.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(specs))))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the seed to a worker: one drawn there would be another."""
    node.workerinput[SEED] = seed_text(node.config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    """Refuse a session whose processes disagree about what to run, as with --stepwise."""
    expected = {item.nodeid for item in node.config.pluginmanager.get_plugin("session").items}
    if different := sorted(expected.symmetric_difference(ids)):
        raise pytest.UsageError(
            f"worker {node.gateway.id} collected {len(ids)} tests and its controller {len(expected)}, different in "
            f"{different[0]!r}; leave out -n, or the option or plugin that selects differently in each process"
        )
