"""The exact law with its rounds: at which place in a round each token of each outcome stood."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from verify.exact.elsewhere import NumpyGenerators
from verify.exact.enumeration import enumerate_outcomes
from verify.intake import admit
from verify.models.observer import observed
from verify.protocol import Request
from verify.subject import Subject, rounds_of

Output = tuple[int, ...]
UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token stands: what was emitted before it, where its round began and how much that had drafted.

    `start` and `num_drafted` are -1 where rounds cannot be seen.
    """

    prefix: Output
    start: int = UNKNOWN
    num_drafted: int = UNKNOWN

    @property
    def offset(self) -> int:
        """Position inside the round, -1 where rounds cannot be seen; `num_drafted` is the bonus position."""
        return len(self.prefix) - self.start if self.start != UNKNOWN else UNKNOWN


@dataclass(slots=True)
class Following:
    """What follows a place: its probability, that of each token, and that of tokens known to be accepted or not."""

    reached: float = 0.0
    token_probs: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    accepted: float = 0.0
    ended: float = 0.0

    @property
    def acceptance(self) -> float:
        """Share of the tokens here that were accepted drafts; NaN where the output always ended."""
        known = self.accepted + self.ended
        return self.accepted / known if known else math.nan


def places_of(law: Mapping[Output, float]) -> dict[Place, Following]:
    """The places of a law of which only the output is known."""
    found: dict[Place, Following] = defaultdict(Following)
    for output, probability in law.items():
        for position, token_id in enumerate(output):
            following = found[Place(output[:position])]
            following.reached += probability
            following.token_probs[token_id] += probability
    return {place: following for place, following in found.items() if following.reached > 0}


def watched_places(
    subject: Subject, request: Request, *, max_paths: int, generators: NumpyGenerators | None = None
) -> dict[Place, Following] | None:
    """Enumerate one request again and watch the target's forwards; None where rounds cannot be told on every path."""

    def run() -> tuple[Output, tuple[tuple[int, int, int], ...] | None]:
        with observed(subject.models.target) as trace:
            answers = subject.decoder.generate([request])
        (generation,) = admit([request], answers, vocab_size=subject.models.vocab_size)
        rounds = rounds_of(trace, request, generation)
        seen = (
            None
            if rounds is None
            else tuple((each.output_offset, each.num_draft_tokens, each.num_accepted) for each in rounds)
        )
        return tuple(generation.token_ids), seen

    try:
        enumerated = enumerate_outcomes(run, max_paths=max_paths, generators=generators)
    except Exception:  # the verdict stands without it
        return None
    if not enumerated.complete:
        return None
    found: dict[Place, Following] = defaultdict(Following)
    for (output, rounds), probability in enumerated.law.items():
        if rounds is None:
            return None
        for start, num_drafted, num_accepted in rounds:
            for position in range(start, min(start + num_accepted + 1, len(output))):
                following = found[Place(output[:position], start, num_drafted)]
                following.reached += probability
                following.token_probs[output[position]] += probability
                if position + 1 < len(output):  # of the last token nobody can see whether it was a draft
                    if position < start + num_accepted:
                        following.accepted += probability
                    else:
                        following.ended += probability
    return {place: following for place, following in found.items() if following.reached > 0}
