"""Serving under load, simulated: requests arrive at random and share one target, whose rounds were measured.

What is real: the confidences and acceptances of recorded rounds, and the time of a round. What is not: a round is drawn anew from
those of one recorded request instead of following the text, all responses are equally long, and the prefill is free.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.progress import track

from dspark.rounds import RecordedRounds
from dspark.scheduler.protocol import Scheduler
from dspark.scheduler.round_profile import RoundProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What is served: `num_requests` requests of `num_tokens` tokens each, at most `max_rows` at a time."""

    num_requests: int = 200
    num_tokens: int = 128
    max_rows: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One policy at one load.

    `load` is arrivals per second. `tokens_per_second` counts all tokens from the first arrival to the last finish;
    `tokens_per_second_per_user` is the mean over requests of tokens / time in service, `wait_seconds` the mean time before
    it. `drafts_per_row` is the mean number of verified drafts, `draft_acceptance_rate` accepted / verified (bonus excluded),
    `mean_acceptance_length` tokens per row and round (bonus included), `rows` the mean batch.
    """

    policy: str
    load: float
    tokens_per_second: float
    tokens_per_second_per_user: float
    wait_seconds: float
    rows: float
    drafts_per_row: float
    draft_acceptance_rate: float
    mean_acceptance_length: float


@dataclass(slots=True)
class _Request:
    arrival: float
    rounds: np.random.Generator
    choices: np.ndarray[tuple[int], np.dtype[np.int64]]
    num_tokens: int
    started: float = 0.0
    num_emitted: int = 0


@dataclass(slots=True)
class _Tally:
    steps: int = 0
    rows: int = 0
    drafts: int = 0
    accepted: int = 0
    waits: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)


def sweep(
    policies: Mapping[str, Scheduler],
    loads: Sequence[float],
    *,
    rounds: RecordedRounds,
    profile: RoundProfile,
    service: Service | None = None,
    seed: int = 0,
) -> list[Outcome]:
    """Simulate every policy at every load; one seed gives one result.

    All policies of a load meet the same arrivals, and request i draws its rounds from the same source in the same order.
    """
    points = [(name, scheduler, load) for load in loads for name, scheduler in policies.items()]
    return [
        simulate(name, scheduler, load, rounds=rounds, profile=profile, service=service, seed=seed)
        for name, scheduler, load in track(points, description="loads and policies")
    ]


def simulate(
    policy: str,
    scheduler: Scheduler,
    load: float,
    *,
    rounds: RecordedRounds,
    profile: RoundProfile,
    service: Service | None = None,
    seed: int = 0,
) -> Outcome:
    """Serve Poisson arrivals of `load` requests a second with one scheduler; ValueError for a load that is not positive."""
    if not 0 < load < np.inf:
        raise ValueError(f"load is {load}; it must be a positive number of requests per second. Raise it.")
    service = service or Service()
    full = rounds.where(rounds.lengths == rounds.num_positions)
    if not len(full):
        raise ValueError("no recorded round has a whole block; the simulation draws from those. Record longer texts.")
    confidences: list[list[float]] = full.confidences.tolist()
    accepted: list[int] = full.accepted.tolist()
    waiting = deque(_arrivals(full, load, service, seed))
    now = first = waiting[0].arrival
    session = scheduler.open()
    running: list[_Request] = []
    tally = _Tally()
    while waiting or running:
        if not running:
            now = max(now, waiting[0].arrival)
        while waiting and waiting[0].arrival <= now and len(running) < service.max_rows:
            running.append(waiting.popleft())
            running[-1].started = now
            tally.waits.append(now - running[-1].arrival)
        num_rows, drafts = len(running), session.wants_drafts(len(running))
        drawn = [int(each.choices[each.rounds.integers(len(each.choices))]) for each in running]
        # As the decoder does: no draft that could not be emitted.
        wanted = [
            confidences[one][: each.num_tokens - each.num_emitted - 1] for each, one in zip(running, drawn, strict=True)
        ]
        admitted = session.admit(wanted) if drafts else (0,) * num_rows
        speed = (
            profile.of_rows(num_rows).at(num_rows + sum(admitted))
            if drafts
            else profile.plain_rounds_per_second(num_rows)
        )
        now += 1 / speed
        for each, one, length in zip(running, drawn, admitted, strict=True):
            num_accepted = min(accepted[one], length)
            each.num_emitted += num_accepted + 1
            tally.drafts += length
            tally.accepted += num_accepted
            if each.num_emitted == each.num_tokens:
                tally.speeds.append(each.num_tokens / (now - each.started))
        tally.steps += 1
        tally.rows += num_rows
        running = [each for each in running if each.num_emitted < each.num_tokens]
    return Outcome(
        policy=policy,
        load=load,
        tokens_per_second=service.num_requests * service.num_tokens / (now - first),
        tokens_per_second_per_user=float(np.mean(tally.speeds)),
        wait_seconds=float(np.mean(tally.waits)),
        rows=tally.rows / tally.steps,
        drafts_per_row=tally.drafts / tally.rows,
        draft_acceptance_rate=tally.accepted / tally.drafts if tally.drafts else 0.0,
        mean_acceptance_length=1 + tally.accepted / tally.rows,
    )


def _arrivals(rounds: RecordedRounds, load: float, service: Service, seed: int) -> list[_Request]:
    """The requests in order of arrival, each with a recorded request whose rounds it draws from."""
    sources = [np.flatnonzero(rounds.request_ids == one) for one in np.unique(rounds.request_ids)]
    arrivals, choices, *streams = np.random.SeedSequence(seed).spawn(2 + service.num_requests)
    gaps = np.random.default_rng(arrivals).exponential(size=service.num_requests)
    chosen = np.random.default_rng(choices).integers(len(sources), size=service.num_requests)
    return [
        _Request(float(arrival), np.random.default_rng(stream), sources[source], service.num_tokens)
        for arrival, stream, source in zip(gaps.cumsum() / load, streams, chosen, strict=True)
    ]


def load_figure(outcomes: Sequence[Outcome], *, baselines: Collection[str] = ()) -> Figure:
    """Throughput against the speed that a user sees, one curve a policy and one point a load: up and right is better.

    Policies in `baselines` are drawn thin, from light to dark grey in their order.
    """
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    speeds, lengths = figure.subplots(1, 2)
    names = list(dict.fromkeys(each.policy for each in outcomes))
    thin = [name for name in names if name in baselines]
    thick = [name for name in names if name not in baselines]
    for name in thin + thick:
        points = [each for each in outcomes if each.policy == name]
        style: dict[str, Any] = {"label": name, "marker": "o", "markersize": 3}
        if name in thin:
            grey = 0.8 - 0.7 * thin.index(name) / max(1, len(thin) - 1)
            style |= {"color": str(grey), "linewidth": 0.9, "linestyle": "--"}
        else:
            style |= {"color": f"C{thick.index(name) % 10}", "linewidth": 1.8}
            lengths.plot([each.load for each in points], [each.drafts_per_row for each in points], **style)
        speeds.plot(
            [each.tokens_per_second_per_user for each in points], [each.tokens_per_second for each in points], **style
        )
    speeds.set(xlabel="tokens/s/user in service", ylabel="tokens/s of the whole service", ylim=(0, None))
    lengths.set(xlabel="load (requests/s)", ylabel="drafts verified per row and round", xscale="log")
    lengths.set_xticks(sorted({each.load for each in outcomes}))
    lengths.xaxis.set_major_formatter("{x:.3g}")
    lengths.minorticks_off()
    for axes in (speeds, lengths):
        axes.spines[["right", "top"]].set_visible(False)
    figure.legend(*speeds.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure
