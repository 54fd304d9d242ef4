"""From a file to lines: every good line is kept, every broken one is named with its reason."""

import gzip
import importlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from pydantic import ValidationError

from verify.log.line import Line, first_problem

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
# Pairs whose lines in a run's own `generations.jsonl.gz` belong to the target of --target.
JUDGED_PAIRS = ("fixture-pair", "given-pair")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line with its number in the file, from 1."""

    number: int
    line: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A file of generations. `broken` holds (line number, reason); `elsewhere` counts recorded lines on other models."""

    engine: str
    entries: tuple[Entry, ...]
    broken: tuple[tuple[int, str], ...]
    elsewhere: int = 0


def read_log(path: Path) -> Log:
    """Read `path`; `pytest.UsageError` for a kind of file that cannot be read here."""
    if not path.name.endswith(SUFFIXES):
        raise pytest.UsageError(f"--generations {path.name!r}: its name must end in {', '.join(SUFFIXES)}")
    entries: list[Entry] = []
    broken: list[tuple[int, str]] = []
    elsewhere = number = 0
    opened = _open(path)
    while True:
        number += 1
        try:
            text = opened.readline()
        except Exception as error:  # each decompressor has exceptions of its own
            broken.append((number, f"the file ends or breaks in the middle of its compressed data: {error}"))
            break
        if not text:
            break
        try:
            line = _line(text)
            if line is not None and entries:
                _agree(entries[0].line, line)
        except ValueError as error:
            broken.append((number, str(error)))
            continue
        if line is None:
            elsewhere += bool(text.strip())
        else:
            entries.append(Entry(number=number, line=line))
    opened.close()
    name = entries[0].line.engine if entries else ""
    engine = name or path.name.removesuffix(next(each for each in SUFFIXES if path.name.endswith(each)))
    return Log(engine=engine, entries=tuple(entries), broken=tuple(broken), elsewhere=elsewhere)


def _open(path: Path) -> IO[bytes]:
    """Decompressing; zstd through the standard library (Python 3.14), or the package zstandard where it is installed."""
    if not path.name.endswith(".zst"):
        return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")  # type: ignore[return-value]
    for name in ("compression.zstd", "zstandard"):
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            continue
        return io.BufferedReader(module.open(path, "rb"))
    raise pytest.UsageError(
        f"--generations {path.name!r}: reading .zst needs Python 3.14 or the package zstandard; or decompress it"
    )


def _line(text: bytes) -> Line | None:
    """A good line; None for an empty one and a recorded one on other models; ValueError with one sentence."""
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from error
    if isinstance(value, dict) and {"check", "models", "request", "generation"} <= value.keys():
        if value["models"] not in JUDGED_PAIRS:
            return None
        value = _recorded(value["request"], value["generation"])
    try:
        return Line.model_validate(value)
    except ValidationError as error:
        others = error.error_count() - 1
        more = f" (and {others} more)" if others else ""
        raise ValueError(first_problem(error, whole="line") + more) from error


def _recorded(request: Any, generation: Any) -> Any:
    """A line of a run's own `generations.jsonl.gz` in the form of a log; log-probabilities, of a kind unsaid, are left out."""
    if not isinstance(request, dict) or not isinstance(generation, dict):
        return None
    asked = {name: value for name, value in request.items() if name != "logprobs"}
    if isinstance(asked.get("sampling"), dict):  # a setting that is None is not set
        asked["sampling"] = {name: value for name, value in asked["sampling"].items() if value is not None}
    return asked | {name: value for name, value in generation.items() if name != "logprobs"}


def _agree(first: Line, line: Line) -> None:
    if line.engine != first.engine:
        raise ValueError(f"engine: {line.engine!r} after {first.engine!r}; a log has one engine, split the file")
    if line.logprobs_of and first.logprobs_of and line.logprobs_of != first.logprobs_of:
        raise ValueError(f"logprobs_of: {line.logprobs_of!r} after {first.logprobs_of!r}; a log has one kind")
