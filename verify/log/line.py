"""One line of a log: what was asked of an engine, and what it emitted."""

import json
import math
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA_FILE = Path(__file__).parent / "line.schema.json"
Id: TypeAlias = Annotated[int, Field(ge=0)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
# Settings beyond these are no settings, and would overflow the target's logits.
SMALLEST, LARGEST = 1e-9, 1e9
Number: TypeAlias = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


def _temperature(value: float) -> float:
    if 0 < value < SMALLEST:
        raise ValueError(f"{value} is neither 0 nor at least {SMALLEST:g}")
    return value


def _bias(value: float) -> float:
    if -math.inf < value < -LARGEST:
        raise ValueError(f"{value} is neither -Infinity nor at least {-LARGEST:g}")
    return value


def _text(value: str) -> str:
    if not value.isprintable():
        raise ValueError("a name holds printable characters only")
    return value


class _Part(BaseModel):
    """Immutable, no unknown keys: a misspelt setting must not be taken for its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Sampling(_Part):
    """The settings of `verify.protocol.SamplingParams`, with their meaning and order."""

    temperature: Annotated[float, Field(ge=0, le=LARGEST), AfterValidator(_temperature)]
    """0 is greedy. Required: a wrong guess would be taken for a bug."""
    top_k: Count = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=SMALLEST, le=LARGEST)] = 1.0
    presence_penalty: Number = 0.0
    frequency_penalty: Number = 0.0
    logit_bias: dict[Id, Annotated[float, Field(le=LARGEST), AfterValidator(_bias)]] = {}
    """-Infinity bans a token."""
    forbidden_token_ids: list[Id] = []
    allowed_token_ids: list[Id] | None = None


class Counts(_Part):
    """What the engine says it accepted; the fields of `verify.protocol.AcceptanceRecord`."""

    num_spec_steps: Count
    num_draft_tokens: Count
    num_accepted_draft_tokens: Count
    acceptance_histogram: list[Count] | None = None
    """Left out by engines that count totals only."""
    drafted_per_step: list[Count] | None = None
    accepted_per_step: list[Count] | None = None


class Line(_Part):
    """One request and its answer. Token ids are the target's; lengths and stops as in `verify.protocol.Request`."""

    prompt_token_ids: Annotated[list[Id], Field(min_length=1)]
    """Everything the model saw before the first emitted token, special tokens included."""
    token_ids: list[Id]
    """Every emitted token, a final stop token included."""
    sampling: Sampling
    max_new_tokens: Annotated[int, Field(ge=1)]
    """The limit in force: the smaller of what was asked and what the context allowed."""
    min_new_tokens: Count = 0
    stop_token_ids: list[Id] = []
    """Tokens that end the output, the end of text included unless it is ignored."""
    finish_reason: Literal["stop", "length"] | None = None
    seed: int | None = None
    """Lines with one seed are taken for one stream of randomness, and a repeated request for a promise of the same output."""
    num_draft_tokens: Count | None = None
    """Drafts a round."""
    engine: Annotated[str, Field(max_length=200), AfterValidator(_text)] = ""
    """Name and version; the same in all lines."""
    logprobs: list[float] | None = None
    """Natural logarithms, one an emitted token."""
    logprobs_of: Literal["raw", "processed"] | None = None
    """Of the model's own logits, or of the law after every setting (in greedy decoding at temperature 1)."""
    roles: list[Literal["first", "accepted", "recovered", "bonus"]] | None = None
    record: Counts | None = None
    text: str | None = None
    """What the tokens say, for people; nobody looks at it."""

    @model_validator(mode="after")
    def _say_which_logprobs(self) -> Self:
        if self.logprobs is not None and self.logprobs_of is None:
            raise ValueError('logprobs without logprobs_of; say "raw" or "processed"')
        return self


def first_problem(error: ValidationError, *, whole: str) -> str:
    """The place and the words of the first thing that is wrong; `whole` is the place where it is all of it."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"


def schema_text() -> str:
    """The text of `line.schema.json`."""
    schema = Line.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "One line of a log of generations"
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
