"""Makes `pytest verify/` a run of the suite: registers `verify.plugin`, where all hooks live."""

import pytest

from verify import plugin


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the plugin before the command line is parsed, unless `-p` or `--pyargs` did."""
    if not pluginmanager.is_registered(plugin):
        pluginmanager.register(plugin, plugin.__name__)


def pytest_configure(config: pytest.Config) -> None:
    """Say that this session judges a decoder, so that even a session that collects nothing ends with a verdict."""
    plugin.activate(config)
