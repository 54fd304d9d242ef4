"""How far a long check is, in the terminal and nowhere else."""

import shutil
import time
from typing import Any

import pytest

SAVE, RESTORE, ERASE = "\x1b7", "\x1b8", "\x1b[K"
INTERVAL_S = 0.2


class Progress:
    """Shows one line's rest at a time, at the cursor, and leaves no trace; silent where the terminal is not one."""

    def __init__(self, config: pytest.Config) -> None:
        self._reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
        self._capture = config.pluginmanager.get_plugin("capturemanager")
        self._enabled = bool(self._reporter and self._reporter.isatty)
        self._shown_at = 0.0

    def show(self, text: str) -> None:
        """Replace what was shown; at most five times a second."""
        now = time.monotonic()
        if not self._enabled or now - self._shown_at < INTERVAL_S:
            return
        self._shown_at = now
        self._write(text[: max(20, shutil.get_terminal_size().columns // 3)])

    def clear(self) -> None:
        """Erase what was shown."""
        if self._enabled and self._shown_at:
            self._shown_at = 0.0
            self._write("")

    def _write(self, text: str) -> None:
        message = f"{SAVE}{' ' if text else ''}{text}{ERASE}{RESTORE}"
        if self._capture is None:
            self._reporter.write(message, flush=True)
        else:
            with self._capture.global_and_fixture_disabled():
                self._reporter.write(message, flush=True)
