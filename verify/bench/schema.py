"""The schema of a stored race: what was timed, against what, where, and how sure each number is."""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from verify.report.schema import Record

SCHEMA_VERSION: Literal["1.0"] = "1.0"
SCHEMA_FILE = Path(__file__).parent / "bench.schema.json"


class Estimate(Record):
    """An estimate between the ends of its 95% confidence interval."""

    low: float
    estimate: float
    high: float


class Standing(Record):
    """What is known of a contestant's losslessness; only a verdict of pass for this very code lets its speed be reported."""

    name: str
    verdict: Literal["pass", "fail", "inconclusive", "incomplete", "not judged", "outdated", "the target itself"]
    reason: str
    source: str = ""
    commit: str = ""


class Models(Record):
    """The pair that was decoded; `statement` says what its cost is worth."""

    name: str
    statement: str
    target_parameters: int
    draft_parameters: int
    target_bytes_per_forward: int
    """Weights that one forward reads, without the cache."""
    vocab_size: int
    device: str
    dtype: str


class Settings(Record):
    """The work, the same for all contestants."""

    prompts: str
    num_prompts: int
    prompt_tokens: int
    max_new_tokens: int
    temperature: float
    seed: int
    num_draft_tokens: dict[str, int]
    """By contestant."""
    minutes: float


class Speed(Record):
    """Decoding at one concurrency; the raw seconds of every turn are kept."""

    concurrency: int
    requests_per_turn: int
    tokens_per_turn: int
    batched: dict[str, bool]
    """Whether a contestant answers the requests as one batch; otherwise it answers one after the other."""
    seconds: dict[str, list[float]]
    tokens_per_s: dict[str, Estimate]
    tokens_per_s_per_user: dict[str, float]
    """Tokens a second divided by the concurrency."""
    speed_up: dict[str, Estimate]
    """Of the decoder over each other contestant, from paired turns."""
    baseline: str
    """The contestant that counts: the one asked for, or the faster way of decoding plainly."""
    identical_outputs: dict[str, str]
    """Requests of the first turn with the decoder's tokens; greedy answers may differ where two tokens are as good as tied."""


class Latency(Record):
    """One request at a time; seconds. `between_chunks` is null where a decoder does not stream."""

    streamed: bool
    time_to_first_token: Estimate
    time_per_later_token: Estimate | None
    """Null where all tokens came at once."""
    between_chunks: Estimate | None
    between_chunks_99th: float | None


class Accepted(Record):
    """Acceptance; `conditional[k]` is the share of verified drafts k accepted where all before were."""

    source: str
    rounds: int
    mean_acceptance_length: Estimate | None
    """Tokens a round, the recovered or bonus token included."""
    conditional: list[Estimate]
    target_forwards_per_token: float
    """Those that read the prompts included."""


class Shares(Record):
    """Where the time of one contestant goes, as shares of an instrumented run that took `overhead` longer than a plain one."""

    shares: dict[str, float]
    seconds_per_verification: float | None
    overhead: float


class Memory(Record):
    """Bytes held at the peak above what the loaded models hold; null where it cannot be seen."""

    peak_bytes: int | None
    how: str


class Limit(Record):
    """How far verification is from what the machine can do: a forward takes at least the time to read its weights."""

    copy_bytes_per_s: float
    matmul_flops_per_s: float
    seconds_to_read: float
    seconds_to_multiply: float
    """For the positions of one verification."""
    seconds_measured: float
    share_reached: float
    """The larger of the two over what was measured."""
    plain_tokens_per_s: float
    """Of plain decoding, one request at a time, at the limit."""


class Part(Record):
    """A small part, timed by pytest-benchmark; seconds."""

    median: float
    interquartile_range: float
    rounds: int


class BenchResults(Record):
    """One race."""

    schema_version: Literal["1.0"] = SCHEMA_VERSION
    decoder: str
    baseline: str
    standings: list[Standing]
    unjudged: bool
    """Whether a speed is reported although the decoder has no verdict of pass."""
    models: Models
    settings: Settings
    speed: list[Speed] = Field(default_factory=list)
    latency: dict[str, Latency] = Field(default_factory=dict)
    latency_ratios: dict[str, Estimate] = Field(default_factory=dict)
    """How many times shorter the decoder's are, by quantity."""
    acceptance: dict[str, Accepted] = Field(default_factory=dict)
    shares: dict[str, Shares] = Field(default_factory=dict)
    memory: dict[str, Memory] = Field(default_factory=dict)
    limit: Limit | None = None
    parts: dict[str, Part] = Field(default_factory=dict)
    environment: dict[str, str]
    commit: str
    command: str
    duration_s: float

    def to_json(self) -> str:
        """The text of `bench.json`."""
        return self.model_dump_json(indent=1) + "\n"


def schema_text() -> str:
    """The text of `bench.schema.json`."""
    schema = BenchResults.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A race of verify.bench"
    return json.dumps(schema, indent=2) + "\n"
