"""Makes `pytest verify/bench` a race: registers `verify.bench.plugin`."""

import pytest

from verify.bench import plugin


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the plugin before the command line is parsed."""
    if not pluginmanager.is_registered(plugin):
        pluginmanager.register(plugin, plugin.__name__)
