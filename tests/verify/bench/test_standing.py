"""Which stored verdict counts, and when it is about other code."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from verify.bench.standing import find_standing, places_of
from verify.report.schema import DecoderInfo, Results

NOW = {"torch": "2", "transformers": "5"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one decoder, committed."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "adapter.py").write_text("make = None\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "a")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def judged(checkout: Path, where: str, **changes: Any) -> None:
    given: dict[str, Any] = {
        "verdict": "pass",
        "decoder": DecoderInfo(name="mine", adapter="mine.adapter:make", capabilities={}),
        "models": [],
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "profile": "default",
        "false_alarm": 1e-6,
        "checks": [],
        "not_verified": [],
        "waived": [],
        "environment": NOW,
        "commit": git(checkout, "rev-parse", "HEAD"),
        "command": "",
        "duration_s": 0.0,
    }
    folder = checkout / where
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(Results(**(given | changes)).to_json())


def standing(checkout: Path, given: Path | None = None, **now: str) -> Any:
    folders = places_of("mine", checkout=checkout, report_dir=checkout / "local")
    return find_standing("mine", given=given, folders=folders, checkout=checkout, environment=NOW | now)


def test_a_pass_for_this_code_counts(checkout: Path) -> None:
    judged(checkout, "reports/mine")
    (checkout / "elsewhere.py").write_text("changed = True\n")
    assert standing(checkout).verdict == "pass"


def test_without_a_verdict_the_decoder_is_not_judged(checkout: Path) -> None:
    assert standing(checkout).verdict == "not judged"
    assert "pytest verify/ --decoder mine" in standing(checkout).reason
    assert standing(checkout, given=checkout / "nowhere").verdict == "not judged"


def test_a_newer_failure_counts_and_an_unfinished_run_does_not(checkout: Path) -> None:
    judged(checkout, "reports/mine")
    judged(checkout, "local/mine/latest", verdict="incomplete")
    assert standing(checkout).verdict == "pass"
    (checkout / "local/mine/latest/results.json").unlink()
    (checkout / "local/mine/latest").rmdir()
    judged(checkout, "local/mine/latest", verdict="fail")
    assert standing(checkout).verdict == "fail"
    assert standing(checkout, given=checkout / "reports/mine").verdict == "pass"


def test_a_verdict_on_other_code_versions_or_decoders_is_outdated(checkout: Path) -> None:
    judged(checkout, "reports/mine")
    assert standing(checkout, torch="3").verdict == "outdated"
    (checkout / "mine" / "adapter.py").write_text("make = 1\n")
    assert standing(checkout).verdict == "outdated"
    assert "mine has changed since" in standing(checkout).reason
    judged(checkout, "other", decoder=DecoderInfo(name="yours", adapter="mine.adapter:make", capabilities={}))
    assert "about 'yours'" in standing(checkout, given=checkout / "other").reason


def test_a_file_that_is_no_verdict_is_none(checkout: Path) -> None:
    (checkout / "x.json").write_text("{}")
    assert standing(checkout, given=checkout / "x.json").verdict == "not judged"
