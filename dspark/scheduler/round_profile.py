"""How fast whole rounds are: drafting, verification and everything between, by the number of rows and of drafts."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dspark.scheduler.curve import require_positive, require_rising, seconds_at
from dspark.scheduler.profile import SCHEMA as SPEED_SCHEMA
from dspark.scheduler.profile import SpeedProfile, read_stored, write_stored

SCHEMA = "dspark-round-profile/1"


@dataclass(frozen=True, kw_only=True)
class RoundProfile:
    """Seconds of a round of `row_counts[i]` rows: `plain_seconds[i]` without drafting, `drafted_seconds[i][j]` with it.

    Of each row's drafts `draft_counts[j]` are verified then. Between the measured points seconds are linear, in rows and in
    drafts per row; beyond the last they go on as between the last two, and never fall. `conditions` say what was measured.
    """

    row_counts: tuple[int, ...]
    draft_counts: tuple[int, ...]
    plain_seconds: tuple[float, ...]
    drafted_seconds: tuple[tuple[float, ...], ...]
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_rising("row_counts", self.row_counts, smallest=1)
        require_rising("draft_counts", self.draft_counts, smallest=0)
        shape = (len(self.row_counts), len(self.draft_counts))
        lengths = {len(self.plain_seconds), len(self.drafted_seconds)}
        if lengths != {shape[0]} or {len(row) for row in self.drafted_seconds} != {shape[1]}:
            raise ValueError(
                f"the seconds do not have the shape of {shape[0]} row counts and {shape[1]} draft counts. Measure them again."
            )
        for row in (self.plain_seconds, *self.drafted_seconds):
            require_positive("seconds of a round", row)

    def of_rows(self, num_rows: int) -> SpeedProfile:
        """See `Speeds`: a step is a whole round that has drafted."""
        if num_rows not in self._by_rows:
            by_drafts = zip(*self.drafted_seconds, strict=True)
            seconds = [seconds_at(self.row_counts, each, num_rows) for each in by_drafts]
            self._by_rows[num_rows] = SpeedProfile(
                token_counts=tuple(num_rows * (1 + count) for count in self.draft_counts),
                steps_per_second=tuple(1 / each for each in seconds),
            )
        return self._by_rows[num_rows]

    def plain_rounds_per_second(self, num_rows: int) -> float:
        """Rounds per second that do not draft."""
        return 1 / seconds_at(self.row_counts, self.plain_seconds, num_rows)

    @cached_property
    def _by_rows(self) -> dict[int, SpeedProfile]:
        return {}

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_stored(path, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> "RoundProfile":
        """Read what `save` wrote; raises ValueError (value, rule, remedy) on anything else."""
        return read_stored(path, {SCHEMA: cls.of_stored})

    @classmethod
    def of_stored(cls, stored: Mapping[str, Any]) -> "RoundProfile":
        """The profile of a file's content; KeyError, TypeError or ValueError where it is none."""
        return cls(
            row_counts=tuple(int(count) for count in stored["row_counts"]),
            draft_counts=tuple(int(count) for count in stored["draft_counts"]),
            plain_seconds=tuple(float(each) for each in stored["plain_seconds"]),
            drafted_seconds=tuple(tuple(float(each) for each in row) for row in stored["drafted_seconds"]),
            conditions=dict(stored["conditions"]),
        )


def load_profile(path: Path) -> SpeedProfile | RoundProfile:
    """Read a profile of either kind; raises ValueError (value, rule, remedy) on anything else."""
    kinds: dict[str, Callable[[Mapping[str, Any]], SpeedProfile | RoundProfile]] = {
        SPEED_SCHEMA: SpeedProfile.of_stored,
        SCHEMA: RoundProfile.of_stored,
    }
    return read_stored(path, kinds)
