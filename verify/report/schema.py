"""The schema of `results.json`: what a run leaves behind and every report is made from."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, WithJsonSchema

from verify.results import Evidence, Verdict

SCHEMA_VERSION: Literal["1.0"] = "1.0"
SCHEMA_FILE = Path(__file__).parent / "results.schema.json"

RunVerdict: TypeAlias = Literal["pass", "fail", "inconclusive", "incomplete"]


NON_FINITE = ("Infinity", "-Infinity", "NaN")  # JSON has no such numbers; pydantic writes and reads these words
Number: TypeAlias = Annotated[float, WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": list(NON_FINITE)}]})]


class Record(BaseModel):
    """Base of all records: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)


class Wealth(Record):
    """A bet's course: log10 of each bettor's wealth after so many tokens; `threshold` is log10(1/alpha)."""

    kind: Literal["wealth"]
    title: str
    tokens: list[int]
    log10_wealth: dict[str, list[Number]]
    threshold: Number


class Acceptance(Record):
    """Acceptance by position in the block with its confidence interval; `definition` says which acceptance."""

    kind: Literal["acceptance"]
    title: str
    positions: list[int]
    measured: list[Number]
    low: list[Number]
    high: list[Number]
    theory: list[Number] | None = None
    definition: Literal["conditional", "prefix survival"]


class Divergences(Record):
    """Greedy divergences: gap between the best and the emitted token's log-probability, against the noise floor."""

    kind: Literal["divergences"]
    title: str
    positions: list[int]
    gaps: list[Number]
    floor: Number


class Law(Record):
    """Expected and observed probability of each outcome."""

    kind: Literal["law"]
    title: str
    labels: list[str]
    expected: list[Number]
    observed: list[Number]


class Coverage(Record):
    """How often each path of the decoder was reached."""

    kind: Literal["coverage"]
    title: str
    counts: dict[str, int]


Picture: TypeAlias = Annotated[Wealth | Acceptance | Divergences | Law | Coverage, Field(discriminator="kind")]
PICTURE: TypeAdapter[Picture] = TypeAdapter(Picture)


class Details(Record):
    """The evidence of one check."""

    observations: int
    unit: str
    """What was counted: tokens, paths, requests."""
    false_alarm: float
    """Probability that this check fails on a lossless decoder, as spent."""
    alpha: float
    """Probability that it was allowed to spend: its share of the run's budget."""
    smallest_visible: float | None
    """The smallest error that this check would have seen; null where it states none."""
    smallest_visible_unit: str
    diagnosis: str
    duration_s: float
    command: str
    """Reproduces this one check."""
    seed: int
    required: bool
    about: str
    """The check's own description: the property, why it can fail, what to look at."""
    pictures: list[Picture]
    traceback: str
    data: dict[str, JsonValue]
    """Whatever else the check reports; `minimal_case` is shown with a failure."""


class CheckResult(Record):
    """The verdict of one check."""

    id: str
    chapter: int
    property: str
    verdict: Verdict
    evidence: Evidence
    reason: str
    details: Details


class NotVerified(Record):
    """Something that this run says nothing about, and why.

    capability: not claimed by the decoder. not_applicable: the check found nothing to judge. profile: runs at a higher
    profile only. not_selected: left out by the command line. not_run: selected, but no verdict. run: a problem of the
    whole run.
    """

    kind: Literal["capability", "not_applicable", "profile", "not_selected", "not_run", "run"]
    what: str
    reason: str
    required: bool = False


class Waived(Record):
    """A failure that the implementer expects: the entry of `--xfails` and the failure itself."""

    id: str
    pattern: str
    reason: str
    failure: str


class DecoderInfo(Record):
    """The decoder under test; `capabilities` are its claims, empty if it was never built."""

    name: str
    adapter: str
    capabilities: dict[str, JsonValue]


class ModelInfo(Record):
    """A pair of models that the decoder was built with."""

    name: str
    vocab_size: int | None
    device: str
    dtype: str


class Results(Record):
    """One run: its verdict, its checks and everything needed to run it again."""

    schema_version: Literal["1.0"] = SCHEMA_VERSION
    verdict: RunVerdict
    decoder: DecoderInfo
    models: list[ModelInfo]
    device: str
    dtype: str
    seed: int
    profile: Literal["smoke", "default", "exhaustive"]
    false_alarm: float
    """Probability that a lossless decoder fails this run."""
    checks: list[CheckResult]
    not_verified: list[NotVerified]
    waived: list[Waived]
    environment: dict[str, str]
    commit: str
    command: str
    duration_s: float

    def to_json(self) -> str:
        """The text of `results.json`."""
        return self.model_dump_json(indent=1) + "\n"


def jsonable(value: object) -> Any:
    """`value` in JSON's terms: numpy and torch numbers as numbers, non-finite ones as words, unknown things as text."""
    if value is None or isinstance(value, bool | int | str):
        return str(value) if isinstance(value, str) else value  # a StrEnum becomes a plain string
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        return float(value) if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | range):
        return [jsonable(item) for item in value]
    for convert in ("tolist", "item"):
        if hasattr(value, convert):
            return jsonable(getattr(value, convert)())
    return repr(value)


def schema_text() -> str:
    """The text of `results.schema.json`."""
    schema = Results.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Results of a verify run"
    return json.dumps(schema, indent=2) + "\n"
