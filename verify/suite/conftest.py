"""Loads the pair of --target and --draft, and opens the engine, before the first check: a wrong one is a usage error."""

from typing import Any

import pytest

from verify.entrance import ENGINE
from verify.parallel import is_controller
from verify.plugin import RUN
from verify.suite.support import TRAINED_PAIR, load_trained_pair


def pytest_collection_finish(session: pytest.Session) -> None:
    """Load once; raises `pytest.UsageError` with the loader's own words."""
    run = session.config.stash.get(RUN, None)
    if run is None or session.config.option.collectonly:
        return
    engine = run.options.door == "engine"
    if run.options.target is not None or engine:
        try:
            pair = load_trained_pair(run.options)
        except Exception as error:
            raise pytest.UsageError(f"--target/--draft: {error}") from error
        if not is_controller(session.config):  # which judges nothing and needs no memory for it
            run.shared[TRAINED_PAIR] = pair
    if engine and run.selected:
        from verify.suite.engines import open_engine

        try:
            open_engine(run.options, run.shared[TRAINED_PAIR], run.shared)
        except Exception as error:
            raise pytest.UsageError(f"--decoder {run.options.decoder}: {error}") from error


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End what was started."""
    run = session.config.stash.get(RUN, None)
    engine: Any = None if run is None else run.shared.get(ENGINE)
    if engine is not None:
        engine.close()
