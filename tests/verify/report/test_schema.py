"""The schema of results, what may go into it, and what comes back."""

import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from verify.report.__main__ import main
from verify.report.recorder import WORST_FIRST, Recorder, make_run_dir
from verify.report.schema import SCHEMA_FILE, DecoderInfo, Results, jsonable, schema_text
from verify.report.words import CHAPTERS, EVIDENCE, MARKS, VERDICTS
from verify.results import Evidence, Verdict

TOP_LEVEL = (
    "schema_version, verdict, decoder, models, device, dtype, seed, profile, false_alarm, checks, not_verified, waived, "
    "environment, commit, command, duration_s"
)


def test_the_committed_schema_is_that_of_the_code() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run `python -m verify.report --write-schema`"


def test_results_have_the_promised_keys_and_follow_the_schema(everything: Results) -> None:
    document = json.loads(everything.to_json())
    assert ", ".join(document) == TOP_LEVEL
    assert list(document["checks"][0]) == ["id", "chapter", "property", "verdict", "evidence", "reason", "details"]
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    validator.validate(document)
    assert "-Infinity" in json.dumps(document)  # the ruined bettor's wealth, which plain JSON cannot hold
    document["checks"][0]["verdict"] = "probably"
    document["extra"] = 1
    assert len(list(validator.iter_errors(document))) == 2


def test_results_survive_the_round_trip(everything: Results) -> None:
    again = Results.model_validate_json(everything.to_json())
    assert again == everything
    picture: Any = again.checks[0].details.pictures[0]
    assert picture.log10_wealth["ruined"][-1] == -math.inf


def test_anything_becomes_json() -> None:
    value = {
        1: np.float32(0.5),
        "array": np.array([[1, 2]]),
        "tensor": torch.tensor([1.0, math.inf]),
        "verdict": Verdict.PASS,
        "nested": (math.nan, {"set": frozenset([3])}, None, True),
        "unknown": Path("x"),
    }
    assert json.loads(json.dumps(jsonable(value), allow_nan=False)) == {
        "1": 0.5,
        "array": [[1, 2]],
        "tensor": [1.0, "Infinity"],
        "verdict": "pass",
        "nested": ["NaN", {"set": [3]}, None, True],
        "unknown": repr(Path("x")),
    }


def test_every_word_is_explained() -> None:
    assert set(VERDICTS) == set(MARKS) == set(WORST_FIRST) == set(Verdict)
    assert set(EVIDENCE) == set(Evidence)
    assert list(CHAPTERS) == list(range(1, 19))


def test_reports_can_be_made_again_from_stored_results(
    everything: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "results.json"
    stored.write_text(everything.to_json(), encoding="utf-8")
    texts = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        assert main([str(stored), "--out", str(folder)]) == 0
        texts.append({path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()})
    assert texts[0] == texts[1]
    assert set(texts[0]) == {"report.html", "summary.md", "junit.xml"}
    assert "fail: " in capsys.readouterr().out
    stored.write_text('{"schema_version": "0.1"}', encoding="utf-8")
    assert main([str(stored)]) == 4
    assert "is not a results.json of schema 1.0" in capsys.readouterr().err


def test_each_run_has_a_directory_and_the_link_points_to_the_last(tmp_path: Path) -> None:
    first, second = make_run_dir(tmp_path, "a:b/../c"), make_run_dir(tmp_path, "a:b/../c")
    assert first != second
    assert re.fullmatch(r"\d{8}T\d{6}Z(-\d+)?", first.name)
    assert first.parent.parent == tmp_path
    assert (first.parent / "latest").resolve() == second.resolve()


def test_the_recorder_writes_at_once_and_keeps_the_worse_verdict(tmp_path: Path, make_check: Any) -> None:
    frame = {
        "device": "cpu",
        "dtype": "float32",
        "seed": 1,
        "profile": "smoke",
        "false_alarm": 1e-6,
        "commit": "",
        "command": "pytest",
    }
    info = DecoderInfo(name="d", adapter="d", capabilities={})
    recorder = Recorder(tmp_path, frame=frame, decoder=info, missing=lambda _: [])
    for verdict, kept in (("pass", "pass"), ("fail", "fail"), ("error", "fail"), ("pass", "fail")):
        recorder.add(make_check(Verdict(verdict)))
        stored = Results.model_validate_json((tmp_path / "results.json").read_text(encoding="utf-8"))
        assert [each.verdict for each in stored.checks] == [kept]
        assert stored.verdict == kept
