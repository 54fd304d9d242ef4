"""The `pytest11` entry point: lets `pytest --pyargs verify` know its options, and is idle in other sessions.

pytest reads the conftest of an installed package only while it collects, which is too late to add options. Options are
not added to every session because names such as `--device` belong to other projects there.
"""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Register `verify.plugin` when the command line asks for the installed package `verify`."""
    asked = any(arg.split("::")[0].split(".")[0] == "verify" for arg in args)
    if not (asked and early_config.known_args_namespace.pyargs):
        return
    from verify import plugin

    if not early_config.pluginmanager.is_registered(plugin):
        early_config.pluginmanager.register(plugin, plugin.__name__)
    plugin.activate(early_config)
