"""The log of a run that was killed goes on without a gap, a repetition or half a line."""

import json
from pathlib import Path

from dspark.training.metrics import read, truncate


def test_entries_after_the_checkpoint_and_half_a_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4)) + '{"step": 5, "lo')
    assert [entry["step"] for entry in read(path)] == [1, 2, 3, 4]
    truncate(path, steps=3)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_new_run_has_nothing_to_drop(tmp_path: Path) -> None:
    truncate(tmp_path / "none.jsonl", steps=0)
    assert not (tmp_path / "none.jsonl").exists()
