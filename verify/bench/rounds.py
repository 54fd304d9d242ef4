"""How much is accepted, seen from the target's forwards, or else as the decoder itself says."""

from collections.abc import Sequence
from dataclasses import dataclass

from verify.bench.contestant import Contestant
from verify.checks.acceptance import whole_rounds
from verify.coverage import rounds_told
from verify.models.observer import Round, observed
from verify.protocol import ModelPair, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Rounds of some requests, one at a time.

    `lengths` are tokens a round, the recovered or bonus token included. `reached[k]` counts rounds in which draft k was verified
    with all before it accepted, `accepted[k]` those that accepted it too. `target_forwards` includes those of the prompts.
    `source` says who counted; rounds that began where the limit might cut them are left out.
    """

    source: str
    lengths: tuple[int, ...]
    reached: tuple[int, ...]
    accepted: tuple[int, ...]
    target_forwards: int
    tokens: int


def count_rounds(contestant: Contestant, requests: Sequence[Request], models: ModelPair) -> Counts:
    """Decode the requests one by one and count."""
    whole: list[Round] = []
    sources: set[str] = set()
    forwards = tokens = 0
    for request in requests:
        with observed(models.target) as trace:
            [answer] = contestant.decode([request], concurrency=1)
        forwards += len(trace.calls)
        tokens += len(answer.token_ids)
        rounds = trace.rounds(len(request.prompt_token_ids), len(answer.token_ids))
        if rounds is not None:
            sources.add("seen from the target's forwards")
        elif (rounds := rounds_told(answer.record)) is not None:
            sources.add("as the decoder reports")
        else:
            sources.add("not visible: no cache in one row, and no record")
        whole += whole_rounds(rounds or [], request)
    pairs = [(each.num_draft_tokens, each.num_accepted) for each in whole]
    deepest = max((drafted for drafted, _ in pairs), default=0)
    return Counts(
        source=" and ".join(sorted(sources)),
        lengths=tuple(kept + 1 for _, kept in pairs),
        reached=tuple(sum(kept >= k and drafted > k for drafted, kept in pairs) for k in range(deepest)),
        accepted=tuple(sum(kept > k for _, kept in pairs) for k in range(deepest)),
        target_forwards=forwards,
        tokens=tokens,
    )
