"""One value of the command line: what it means, or a `pytest.UsageError` with value, rule and remedy."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

import pytest


def choose(name: str, value: str, valid: Sequence[str], *, also: str = "") -> str:
    """Return `value` if it is valid; otherwise raise `pytest.UsageError` that lists the valid ones and the nearest."""
    if value in valid:
        return value
    nearest = get_close_matches(value, valid, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    raise pytest.UsageError(f"{name} {value!r} is not valid{hint} Valid: {', '.join(valid)}{also}")


def directory(name: str, value: str | None, base: Path) -> Path | None:
    """An existing directory, relative to `base`."""
    if value is None:
        return None
    if not (base / value).is_dir():
        raise pytest.UsageError(f"{name} {value!r} is not a directory; give a checkpoint directory")
    return (base / value).resolve()


def file(name: str, value: str | None, base: Path, *, hint: str) -> Path | None:
    """An existing file, relative to `base`; `hint` says what to give."""
    if value is None:
        return None
    if not (base / value).is_file():
        raise pytest.UsageError(f"{name} {value!r} is not a file; {hint}")
    return (base / value).resolve()


def key_values(given: Sequence[str]) -> dict[str, str]:
    """The options of an engine, each given once as KEY=VALUE."""
    options: dict[str, str] = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals or not key:
            raise pytest.UsageError(f"--engine {each!r} is not KEY=VALUE; write --engine method=ngram")
        if key in options:
            raise pytest.UsageError(f"--engine {each!r}: {key} is given already as {options[key]!r}; give it once")
        options[key] = value
    return options


def url(name: str, value: str | None) -> str | None:
    """The address of a server, without the slash at its end."""
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise pytest.UsageError(
            f"{name} {value!r} is no URL; write the server's address, such as http://localhost:8000"
        )
    return value.rstrip("/")


def probability(name: str, value: str) -> float:
    """A number between 0 and 1, and neither."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < 1:
        raise pytest.UsageError(f"{name} {value!r} must be a probability between 0 and 1, such as 1e-6")
    return number


def whole_number(name: str, value: str) -> int:
    """A number of 63 bits at most."""
    if not value.isdecimal() or int(value) >= 2**63:
        raise pytest.UsageError(f"{name} {value!r} must be a whole number from 0 to 2**63 - 1")
    return int(value)
