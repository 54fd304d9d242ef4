"""Progress is for a person at a terminal and leaves no trace."""

from types import SimpleNamespace
from typing import Any

import pytest

from verify.report.progress import ERASE, RESTORE, SAVE, Progress


def make(written: list[str], *, isatty: bool) -> Progress:
    reporter = SimpleNamespace(isatty=isatty, write=lambda text, flush: written.append(text))
    plugins: dict[str, Any] = {"terminalreporter": reporter}
    config: Any = SimpleNamespace(pluginmanager=SimpleNamespace(get_plugin=plugins.get))
    return Progress(config)


def test_what_is_shown_is_erased_and_not_shown_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("verify.report.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    written: list[str] = []
    progress = make(written, isatty=True)
    progress.show("tokens: 1/9")
    progress.show("tokens: 2/9")
    now[0] += 1
    progress.show("tokens: 9/9")
    progress.clear()
    progress.clear()
    assert written == [f"{SAVE}{text}{ERASE}{RESTORE}" for text in (" tokens: 1/9", " tokens: 9/9", "")]


def test_a_file_or_a_pipe_sees_nothing() -> None:
    written: list[str] = []
    progress = make(written, isatty=False)
    progress.show("tokens: 1/9")
    progress.clear()
    assert written == []
