"""Time to the first token, time per later token, time between chunks: one request at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from verify.bench.clock import Clock
from verify.bench.contestant import Contestant
from verify.protocol import Request, StreamingDecoder

RESOLUTION = 1e-6  # seconds; a difference of two noisy times can be none at all


@dataclass(slots=True)
class Latencies:
    """Seconds, one entry a request; of `chunks` one for each but the first, none where a decoder does not stream."""

    first: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    chunks: list[float] = field(default_factory=list)
    streamed: bool = False


def measure_latencies(
    contestants: Sequence[Contestant], requests: Sequence[Request], *, clock: Clock
) -> dict[str, Latencies]:
    """All contestants on each request in turn; the first request is a warm-up.

    A decoder that streams is timed chunk by chunk. One that does not is asked for one token and for all of them; the time per
    later token is the difference over their number.
    """
    found = {each.name: Latencies() for each in contestants}
    for number, request in enumerate([requests[0], *requests]):
        for contestant in contestants:
            into = found[contestant.name] if number else Latencies()
            measure = _streamed if contestant.claims.streaming else _in_two_calls
            measure(contestant, contestant.asks(request), clock, into)
    return found


def _streamed(contestant: Contestant, request: Request, clock: Clock, into: Latencies) -> None:
    into.streamed = True
    last = started = clock.now()
    sizes: list[int] = []
    for chunk in cast(StreamingDecoder, contestant.decoder).stream(request):
        now = clock.now()
        if sizes:
            into.chunks.append(now - last)
        else:
            into.first.append(now - started)
            first = now
        sizes.append(len(chunk))
        last = now
    if sum(sizes) > sizes[0]:
        into.per_token.append((last - first) / (sum(sizes) - sizes[0]))


def _in_two_calls(contestant: Contestant, request: Request, clock: Clock, into: Latencies) -> None:
    started = clock.now()
    contestant.decoder.generate([replace(request, max_new_tokens=1)])
    middle = clock.now()
    contestant.decoder.generate([request])
    ended = clock.now()
    into.first.append(middle - started)
    later = (ended - middle) - (middle - started)
    into.per_token.append(max(later, RESOLUTION) / (request.max_new_tokens - 1))
