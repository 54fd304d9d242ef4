"""What a check hands in: its verdict and what was learnt on the way, as text on pytest's report.

The process that judges need not be the one that records: with pytest-xdist they are two.
"""

import json
from dataclasses import fields, is_dataclass

from pydantic import JsonValue

from verify.report.schema import CheckResult, ModelInfo, Record, Waived, jsonable

GENERATION_FIELDS = ("token_ids", "finish_reason", "logprobs", "roles", "record")
RECORD_FIELDS = (
    "num_spec_steps",
    "num_draft_tokens",
    "num_accepted_draft_tokens",
    "acceptance_histogram",
    "drafted_per_step",
    "accepted_per_step",
)


class Learnt(Record):
    """What a process learnt of the decoder: its claims so far, the pairs that it was built with, and new generations."""

    claims: dict[str, JsonValue]
    models: list[ModelInfo]
    generations: list[str]
    """Lines of `generations.jsonl.gz`."""


class Judged(Record):
    """One check's verdict; `waived` where `--xfails` turned a failure into it."""

    result: CheckResult
    waived: Waived | None
    learnt: Learnt


def generation_line(*, check: str, models: str, request: object, generation: object) -> str:
    """One request and its answer, as a line of `generations.jsonl.gz`."""
    line = {
        "check": check,
        "models": models,
        "request": _plain(request),
        "generation": _attributes(generation, GENERATION_FIELDS),
    }
    return json.dumps(line, separators=(",", ":"))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return jsonable(value)


def _attributes(value: object, names: tuple[str, ...]) -> dict[str, object]:
    found = {name: getattr(value, name, None) for name in names}
    if found.get("record") is not None:
        found["record"] = _attributes(found["record"], RECORD_FIELDS)
    return {name: jsonable(item) for name, item in found.items() if item is not None}
