"""Makes `pytest verify/` a run of the suite: registers `verify.plugin`, where all hooks live."""

from pathlib import Path

import pytest

from verify import plugin

BENCH = Path(__file__).parent / "bench"
collect_ignore = ["bench"]  # it times decoders, in sessions of its own: `pytest verify/bench`


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the plugin before the command line is parsed, unless `-p` or `--pyargs` did."""
    if not pluginmanager.is_registered(plugin):
        pluginmanager.register(plugin, plugin.__name__)


def pytest_configure(config: pytest.Config) -> None:
    """Say that this session judges a decoder, so that even a session that collects nothing ends with a verdict."""
    asked = [(config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in config.args]
    if not all(path.is_relative_to(BENCH) for path in asked):
        plugin.activate(config)
