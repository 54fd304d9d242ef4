"""Whole runs against an engine in a process of its own: exit codes, what is kept, and bad command lines."""

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.verify.running import run_suite

WORKER = "worker:tests/verify/engines/workers/tiny.py"
CHAPTER = "verify/suite/test_18_engine.py"


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, results and what was printed."""
    return run_suite(tmp_path / "reports", *arguments, "--profile", "smoke")


def tiny(tiny_dirs: tuple[Path, Path], *options: str) -> list[str]:
    target, draft = map(str, tiny_dirs)
    return ["--decoder", WORKER, "--target", target, "--draft", draft, *options]


def test_a_correct_engine(tmp_path: Path, tiny_dirs: tuple[Path, Path]) -> None:
    checks = [
        f"{CHAPTER}::{each}"
        for each in ("test_plain_greedy", "test_greedy[lowest]", "test_greedy[highest]", "test_seeds")
    ]
    exit_code, results, printed = run(tmp_path, *checks, *tiny(tiny_dirs), "--allow-partial")
    assert exit_code == 0, printed
    verdicts = [each["verdict"] for each in results["checks"]]
    assert verdicts == ["pass", "pass", "not_applicable", "pass"]
    assert results["decoder"]["capabilities"]["logprobs"] == "raw"
    assert any("chapter 2" in each["what"] for each in results["not_verified"])
    assert "tiny.py" in results["command"]


def test_an_engine_that_dies_is_no_pass_and_its_answers_are_kept(tmp_path: Path, tiny_dirs: tuple[Path, Path]) -> None:
    checks = [f"{CHAPTER}::{each}" for each in ("test_greedy[lowest]", "test_answered")]
    exit_code, results, printed = run(tmp_path, *checks, *tiny(tiny_dirs, "--engine", "bug=die"), "--allow-partial")
    greedy, answered = results["checks"]
    assert (greedy["verdict"], answered["verdict"]) == ("pass", "error"), printed
    assert "died: the worker ended with exit code 3" in answered["reason"]
    assert exit_code not in (0, 1, 4, 5)
    (kept,) = (tmp_path / "reports").glob("*/latest/generations.jsonl.gz")
    with gzip.open(kept) as lines:
        assert len(lines.readlines()) == 30


def test_an_engine_that_refuses_each_request_passes_no_check(tmp_path: Path, tiny_dirs: tuple[Path, Path]) -> None:
    exit_code, results, printed = run(tmp_path, CHAPTER, *tiny(tiny_dirs, "--engine", "bug=always fails"))
    verdicts = Counter(each["verdict"] for each in results["checks"])
    assert verdicts == {"not_applicable": len(results["checks"]) - 2, "inconclusive": 1, "error": 1}, printed
    answered = results["checks"][-1]
    assert (answered["id"], answered["verdict"]) == (f"{CHAPTER}::test_answered", "error")
    assert "requests have no answer: status: the device is gone" in answered["reason"]
    assert exit_code == 11


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--decoder", WORKER, "--engine", "bug=not opened"], "the engine cannot be opened: method 'x'"),
        (["--decoder", "worker:nowhere.py"], "--decoder 'worker:nowhere.py': there is no such file"),
        (["--decoder", "worker:nowhere.sh"], "is no Python file; give worker:FILE.py"),
        (["--decoder", "vllm"], "verify/engines/vllm/environment.sh VENV` and give --engine-python"),
        (["--decoder", "vllm", "--engine-python", "nowhere"], "--engine-python 'nowhere' is not a file"),
        (["--decoder", "dspark", "--engine", "method=ngram"], "--engine is an option of engines, and 'dspark' is none"),
        (["--decoder", "openai", "--base-url", "localhost"], "--base-url 'localhost' is no URL"),
        (["--decoder", WORKER, "--engine", "method"], "--engine 'method' is not KEY=VALUE"),
        (["--decoder", WORKER, "--engine", "a=1", "--engine", "a=2"], "a is given already as '1'; give it once"),
        (["--decoder", "vlm"], "did you mean 'vllm'?"),
    ],
)
def test_bad_command_lines(tmp_path: Path, arguments: list[str], words: str) -> None:
    exit_code, results, printed = run(tmp_path, CHAPTER, *arguments)
    assert (exit_code, results.get("checks", [])) == (4, []), printed
    assert words in " ".join(printed.split())
