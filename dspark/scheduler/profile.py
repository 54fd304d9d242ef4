"""How fast the target is, by the number of tokens in its forward."""

import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

SCHEMA = "dspark-speed-profile/1"


@dataclass(frozen=True, slots=True, kw_only=True)
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
        if counts[0] < 1 or any(right <= left for left, right in pairwise(counts)):
            raise ValueError(f"token_counts are {list(counts)}; they must rise from at least 1. Sort them.")
        if not all(0 < speed < math.inf for speed in speeds):
            raise ValueError(
                f"steps_per_second are {list(speeds)}; they must be positive and finite. Measure the profile again."
            )

    def at(self, num_tokens: int) -> float:
        """Steps per second with `num_tokens` tokens in the forward."""
        counts, speeds = self.token_counts, self.steps_per_second
        right = bisect_left(counts, num_tokens)
        if right == len(counts):
            seconds_per_token = 0.0
            if len(counts) > 1:
                seconds_per_token = max(0.0, (1 / speeds[-1] - 1 / speeds[-2]) / (counts[-1] - counts[-2]))
            return 1 / (1 / speeds[-1] + seconds_per_token * (num_tokens - counts[-1]))
        if right == 0 or counts[right] == num_tokens:
            return speeds[right]
        left = right - 1
        share = (num_tokens - counts[left]) / (counts[right] - counts[left])
        return 1 / ((1 - share) / speeds[left] + share / speeds[right])

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        stored = {
            "schema": SCHEMA,
            "token_counts": list(self.token_counts),
            "steps_per_second": list(self.steps_per_second),
            "conditions": dict(self.conditions),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(stored, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "SpeedProfile":
        """Read what `save` wrote; raises ValueError (value, rule, remedy) on anything else."""
        remedy = "Make one with `dspark profile`."
        if not path.is_file():
            raise ValueError(f"{str(path)!r} is not a file; a speed profile is needed. {remedy}")
        try:
            stored = json.loads(path.read_text())
            schema = stored["schema"]
            if schema != SCHEMA:
                raise ValueError(f"schema is {schema!r}, not {SCHEMA!r}")
            return cls(
                token_counts=tuple(int(count) for count in stored["token_counts"]),
                steps_per_second=tuple(float(speed) for speed in stored["steps_per_second"]),
                conditions=dict(stored["conditions"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{str(path)!r} is no speed profile ({what}). {remedy}") from error
