"""What an engine is to the suite: it answers requests, with speculation or without, and may fail on any of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from verify.protocol import Capabilities, Generation, Request

FailureKind: TypeAlias = Literal["refused", "status", "timeout", "died", "malformed"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without an answer.

    `refused`: no connection, or a request that the engine rejects; `status`: an error of the engine's own; `timeout`: no
    answer in time; `died`: the engine ended while it was asked; `malformed`: an answer that cannot be read.
    """

    kind: FailureKind
    message: str


class EngineError(Exception):
    """An engine that cannot be opened: value, rule, remedy."""


class NoControl(Exception):
    """The engine has no way to answer without speculation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What an engine is opened with; paths are absolute, `folder` is writable and kept with the report.

    `target` None: a server whose model is not at hand, compared with its baseline only.

    `options` are the engine's own (`--engine KEY=VALUE`). `python` is the interpreter of its virtual environment. The URLs and
    the model's name are those of servers.
    """

    target: Path | None
    draft: Path | None
    folder: Path
    device: str = "cpu"
    dtype: str = "float32"
    options: Mapping[str, str] = field(default_factory=dict)
    python: Path | None = None
    base_url: str | None = None
    baseline_url: str | None = None
    model: str | None = None


class Engine(Protocol):
    """An open engine; made by `make_engine(settings: EngineSettings) -> Engine`, which raises `EngineError`."""

    @property
    def name(self) -> str:
        """With version and method, the same in every run: "llama.cpp 0.3.36, draft model"."""

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked; `draft_model` says that drafts come from a model, `logprobs` which log-probabilities it gives."""

    @property
    def concurrency(self) -> Sequence[int]:
        """Numbers of requests at once that make a difference to it."""

    @property
    def same_seed_same_output(self) -> bool:
        """Claims that a seed gives one sequence, with speculation and without."""

    def answer(
        self, requests: Sequence[Request], *, speculative: bool, concurrency: int
    ) -> Iterator[tuple[int, Generation | Failure]]:
        """Yield (index, answer) as each request ends; raises `NoControl` where plain decoding cannot be had."""

    def close(self) -> None:
        """End whatever was started."""
