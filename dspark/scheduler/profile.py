"""How fast a step is, by the number of tokens in the target's forward."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dspark.scheduler.curve import require_positive, require_rising, seconds_at

Profile = TypeVar("Profile")
SCHEMA = "dspark-speed-profile/1"


class Speeds(Protocol):
    """What a scheduler weighs expected tokens with."""

    def of_rows(self, num_rows: int) -> "SpeedProfile":
        """Steps per second of `num_rows` rows that have drafted, by the tokens in the forward."""


@dataclass(frozen=True, kw_only=True)
class SpeedProfile:
    """SPS: `steps_per_second[i]` target forwards a second with `token_counts[i]` tokens, anchors included, in each.

    Between two counts the seconds of a step are interpolated linearly. Below the first they are those of the first; beyond
    the last they go on as between the last two, and never fall. `conditions` say what was measured.
    """

    token_counts: tuple[int, ...]
    steps_per_second: tuple[float, ...]
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts, speeds = self.token_counts, self.steps_per_second
        if len(counts) != len(speeds) or not counts:
            raise ValueError(
                f"the profile has {len(counts)} token counts and {len(speeds)} speeds; it needs one speed for each count. "
                "Measure it again."
            )
        require_rising("token_counts", counts, smallest=1)
        require_positive("steps_per_second", speeds)

    def at(self, num_tokens: int) -> float:
        """Steps per second with `num_tokens` tokens in the forward."""
        known = self._known
        if num_tokens not in known:
            seconds = [1 / speed for speed in self.steps_per_second]
            known[num_tokens] = 1 / seconds_at(self.token_counts, seconds, num_tokens)
        return known[num_tokens]

    def of_rows(self, num_rows: int) -> "SpeedProfile":
        """See `Speeds`: the same whatever the rows."""
        return self

    @cached_property
    def _known(self) -> dict[int, float]:
        """What was measured or asked before: schedules ask for the same counts in every round."""
        return dict(zip(self.token_counts, self.steps_per_second, strict=True))

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_stored(path, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> "SpeedProfile":
        """Read what `save` wrote; raises ValueError (value, rule, remedy) on anything else."""
        return read_stored(path, {SCHEMA: cls.of_stored})

    @classmethod
    def of_stored(cls, stored: Mapping[str, Any]) -> "SpeedProfile":
        """The profile of a file's content; KeyError, TypeError or ValueError where it is none."""
        return cls(
            token_counts=tuple(int(count) for count in stored["token_counts"]),
            steps_per_second=tuple(float(speed) for speed in stored["steps_per_second"]),
            conditions=dict(stored["conditions"]),
        )


def write_stored(path: Path, stored: Mapping[str, Any]) -> None:
    """Write a profile as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored, indent=1) + "\n")


def read_stored(path: Path, kinds: Mapping[str, Callable[[Mapping[str, Any]], Profile]]) -> Profile:
    """The profile in a file, made by the one of `kinds` that its schema names; ValueError (value, rule, remedy) on all else."""
    remedy = "Make one with `dspark profile`."
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is not a file; a speed profile is needed. {remedy}")
    try:
        stored = json.loads(path.read_text())
        schema = stored["schema"]
        if schema not in kinds:
            raise ValueError(f"schema is {schema!r}, not {' or '.join(map(repr, kinds))}")
        return kinds[schema](stored)
    except (ValueError, KeyError, TypeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{str(path)!r} is no speed profile ({what}). {remedy}") from error
