"""A pytest plugin, `-p tests.mutants.first_failure`: a run ends at the first check that fails.

Unlike `-x` it goes on behind a check that is inconclusive or broken, which says nothing about a planted bug.
"""

import pytest

from verify.results import Verdict

OPTIONS = ("-p", "tests.mutants.first_failure")


class FirstFailure:
    """Stops the session that it is part of."""

    def __init__(self) -> None:
        self.session: pytest.Session | None = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Remember what is to be stopped."""
        self.session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Stop behind a check that failed."""
        if self.session is not None and getattr(report, "verify_verdict", None) is Verdict.FAIL:
            self.session.shouldstop = "a check has failed, and the runner needs no more"


def pytest_configure(config: pytest.Config) -> None:
    """Take part in this session."""
    config.pluginmanager.register(FirstFailure())
