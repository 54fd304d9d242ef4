"""Loads the pair of --target and --draft before the first check, so that a wrong one is a usage error, not many failures."""

import pytest

from verify.plugin import RUN
from verify.suite.support import TRAINED_PAIR, load_trained_pair


def pytest_collection_finish(session: pytest.Session) -> None:
    """Load once; raises `pytest.UsageError` with the loader's own words."""
    run = session.config.stash.get(RUN, None)
    if run is None or run.options.target is None or session.config.option.collectonly:
        return
    try:
        run.shared[TRAINED_PAIR] = load_trained_pair(run.options)
    except Exception as error:
        raise pytest.UsageError(f"--target/--draft: {error}") from error
