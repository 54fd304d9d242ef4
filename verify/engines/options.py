"""`--engine KEY=VALUE` as a worker reads it; standard library only, each error value, rule and remedy in a line."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def choice(options: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """One of `choices`, of which the first is the default."""
    value = options.get(name, choices[0])
    if value not in choices:
        raise ValueError(
            f"--engine {name}={value!r} must be one of {', '.join(choices)}; leave it out for {choices[0]}"
        )
    return value


def count(options: Mapping[str, str], name: str, default: int) -> int:
    """A whole number, 1 or more."""
    value = options.get(name, str(default))
    if not value.isdecimal() or not int(value):
        raise ValueError(f"--engine {name}={value!r} must be a whole number, 1 or more; leave it out for {default}")
    return int(value)


def from_json(options: Mapping[str, str], name: str, default: str = "") -> Any:
    """A value written as JSON."""
    value = options.get(name, default)
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(f"--engine {name}={value!r} must be JSON; write a text as '\"{value}\"'") from None


def only(options: Iterable[str], known: Sequence[str], *, engine: str) -> None:
    """No other options than these."""
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"--engine {unknown[0]}=... is no option of {engine}; known: {', '.join(known)}")
