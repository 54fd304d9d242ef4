"""What an engine is opened on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verify.engines.protocol import EngineSettings
from verify.suite.engines import ENGINE_FACTORY, open_engine

URL = "http://localhost:8000"


@pytest.mark.parametrize(
    ("base_url", "target", "draft", "opened"),
    [
        (None, None, None, ("pair-target", "pair-draft")),
        (None, "own", None, ("pair-target", None)),  # the target itself would never be rejected
        (None, "own", "small", ("pair-target", "pair-draft")),
        (URL, "own", "small", ("pair-target", "pair-draft")),
        (URL, "own", None, ("pair-target", None)),
        (URL, None, None, (None, None)),
    ],
)
def test_a_target_alone_is_no_draft(
    tmp_path: Path, base_url: str | None, target: str | None, draft: str | None, opened: tuple[str | None, str | None]
) -> None:
    seen: list[EngineSettings] = []
    options: Any = SimpleNamespace(
        base_url=base_url,
        target=target and Path(target),
        draft=draft and Path(draft),
        report_dir=tmp_path,
        decoder="worker:x.py",
        device="cpu",
        dtype="float32",
        engine={},
        engine_python=None,
        baseline_url=None,
        model=None,
    )
    models: Any = SimpleNamespace(target_dir="pair-target", draft_dir="pair-draft")
    open_engine(options, models, {ENGINE_FACTORY: seen.append})
    assert (seen[0].target, seen[0].draft) == opened
