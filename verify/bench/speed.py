"""Tokens a second of several contestants on the same requests, and how many times the first is faster."""

from collections.abc import Callable, Sequence

from verify.bench.clock import Clock
from verify.bench.contestant import Contestant
from verify.bench.intervals import paired_ratio, typical_of
from verify.bench.schema import Speed
from verify.bench.turns import Patience, Task, interleave
from verify.protocol import Request


def measure_speed(
    contestants: Sequence[Contestant],
    requests: Callable[[int], Sequence[Request]],
    *,
    concurrency: int,
    clock: Clock,
    patience: Patience,
) -> Speed:
    """Paired turns; `requests` gives those of a turn, always as many of the same length. The first contestant is the decoder.

    The fastest of the others is the baseline. Which requests got the decoder's own tokens is seen in the unmeasured turn, where
    decoding is greedy.
    """
    outputs: dict[str, list[list[int]]] = {}

    def task(contestant: Contestant) -> Task:
        def work(turn: int) -> None:
            answers = contestant.decode(requests(turn), concurrency=concurrency)
            if contestant.name not in outputs:
                outputs[contestant.name] = [list(each.token_ids) for each in answers]

        return work

    seconds = interleave({each.name: task(each) for each in contestants}, clock=clock, patience=patience)
    decoder, *others = (each.name for each in contestants)
    first = requests(0)
    tokens = sum(request.max_new_tokens for request in first)
    rates = {name: typical_of([tokens / each for each in times]) for name, times in seconds.items()}
    same = {
        name: sum(ours == theirs for ours, theirs in zip(outputs[decoder], outputs[name], strict=True))
        for name in others
    }
    return Speed(
        concurrency=concurrency,
        requests_per_turn=len(first),
        tokens_per_turn=tokens,
        batched={each.name: each.claims.batch for each in contestants},
        seconds=seconds,
        tokens_per_s=rates,
        tokens_per_s_per_user={name: rate.estimate / concurrency for name, rate in rates.items()},
        speed_up={name: paired_ratio(seconds[name], seconds[decoder]) for name in others},
        baseline=min(others, key=lambda name: sum(seconds[name])),
        identical_outputs={name: f"{count} of {len(first)}" for name, count in same.items()}
        if first[0].sampling.greedy
        else {},
    )
