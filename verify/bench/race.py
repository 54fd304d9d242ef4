"""One race: builds the models and the contestants, measures what it is asked, and keeps the results."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from verify.bench.clock import DeviceClock
from verify.bench.contestant import PLAIN, Contestant
from verify.bench.entrants import describe_models, enter, open_models
from verify.bench.intervals import mean_of, paired_ratio, share_of, typical_of
from verify.bench.latency import measure_latencies
from verify.bench.limit import bytes_per_forward, flops_per_token, measure_machine
from verify.bench.memory import peak_bytes
from verify.bench.options import BenchOptions
from verify.bench.prompts import read_prompts
from verify.bench.rounds import count_rounds
from verify.bench.schema import (
    Accepted,
    BenchResults,
    Latency,
    Limit,
    Memory,
    Part,
    Settings,
    Shares,
    Speed,
    Standing,
)
from verify.bench.shares import measure_shares
from verify.bench.speed import measure_speed
from verify.bench.standing import find_standing, places_of
from verify.bench.turns import Patience
from verify.declared import CHECKOUT
from verify.protocol import Request, SamplingParams
from verify.report.environment import describe_commit, describe_environment

SHARE_OF_SPEED = 0.7  # of the minutes; the rest is for everything else
REQUESTS_ALONE = 2  # a turn at concurrency 1
FEWEST, MOST = 3, 16  # requests that are looked at one by one, as time allows
SHARE_OF_EXTRAS = 0.1  # of the minutes, for each measurement that is not of speed
MOST_PROMPTS = 64


class Race:
    """The decoder against its baseline on one pair of models; `results` grows with every measurement."""

    def __init__(self, options: BenchOptions, *, working_dir: Path, command: str) -> None:
        self.options = options
        self.began = time.monotonic()
        common = options.common
        environment = describe_environment(device=common.device)
        self.standings = [
            self._standing(name, environment)
            for name in dict.fromkeys((common.decoder, options.baseline))
            if name != PLAIN
        ]
        if self.standings[0].verdict != "pass" and not options.unjudged:
            raise NotJudged(self.standings[0])
        self.models = open_models(options)
        self.clock = DeviceClock(self.models.device)
        self.decoder, *self.others = enter(options, self.models, working_dir=working_dir)
        prompts, kind = read_prompts(self.models, num_tokens=options.prompt_tokens, at_most=MOST_PROMPTS)
        self.requests = [
            Request(
                prompt_token_ids=prompt,
                max_new_tokens=options.max_new_tokens,
                sampling=SamplingParams(temperature=options.temperature),
                seed=common.seed + number if self._seeded else None,
            )
            for number, prompt in enumerate(prompts)
        ]
        everyone = [self.decoder, *self.others]
        self.results = BenchResults(
            decoder=common.decoder,
            baseline=options.baseline,
            standings=self.standings,
            unjudged=self.standings[0].verdict != "pass",
            models=describe_models(options, self.models),
            settings=Settings(
                prompts=kind,
                num_prompts=len(prompts),
                prompt_tokens=options.prompt_tokens,
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                seed=common.seed,
                num_draft_tokens={each.name: each.num_draft_tokens for each in everyone},
                minutes=options.minutes,
            ),
            environment=environment
            | {"threads": str(torch.get_num_threads()), "processor": _processor(), "load before": _load()},
            commit=describe_commit(CHECKOUT),
            command=command,
            duration_s=0.0,
        )

    def measure_speed(self, concurrency: int) -> Speed:
        """Paired turns at one concurrency; every turn has other prompts, the same for all."""
        per_turn = concurrency if concurrency > 1 else REQUESTS_ALONE
        patience = Patience(seconds=self.options.minutes * 60 * SHARE_OF_SPEED / len(self.options.concurrency))
        speed = measure_speed(
            [self.decoder, *self.others],
            lambda turn: self._turn(turn, per_turn),
            concurrency=concurrency,
            clock=self.clock,
            patience=patience,
        )
        self._keep(speed=[*self.results.speed, speed])
        return speed

    def measure_latency(self) -> None:
        """Times to the first and later tokens; in the ratios an entry is a request."""
        found = measure_latencies(
            [self.decoder, *self.others], self.requests[: self._affordable(2.0)], clock=self.clock
        )
        kept = {
            name: Latency(
                streamed=each.streamed,
                time_to_first_token=typical_of(each.first),
                time_per_later_token=typical_of(each.per_token) if each.per_token else None,
                between_chunks=typical_of(each.chunks) if each.chunks else None,
                between_chunks_99th=_quantile(each.chunks, 0.99) if each.chunks else None,
            )
            for name, each in found.items()
        }
        ours = found[self.decoder.name]
        ratios = {}
        for other in self.others:
            theirs = found[other.name]
            pairs = {
                "time to first token": (theirs.first, ours.first),
                "time per later token": (theirs.per_token, ours.per_token),
            }
            for quantity, (slow, fast) in pairs.items():
                if len(slow) == len(fast) > 1:
                    ratios[f"{quantity}, over {other.name}"] = paired_ratio(slow, fast)
        self._keep(latency=kept, latency_ratios=ratios)

    def measure_acceptance(self) -> None:
        """Rounds of every contestant that drafts."""
        kept = {}
        for contestant in (self.decoder, *self.others):
            if contestant.num_draft_tokens == 0:
                continue
            counts = count_rounds(contestant, self.requests[: self._affordable(1.0)], self.models)
            kept[contestant.name] = Accepted(
                source=counts.source,
                rounds=len(counts.lengths),
                mean_acceptance_length=mean_of(counts.lengths) if counts.lengths else None,
                conditional=[
                    share_of(accepted, reached)
                    for accepted, reached in zip(counts.accepted, counts.reached, strict=True)
                    if reached
                ],
                target_forwards_per_token=counts.target_forwards / counts.tokens,
            )
        self._keep(acceptance=kept)

    def measure_shares(self) -> None:
        """Where the time of each contestant goes, and how far the decoder's verification is from the machine's limit."""
        kept = {}
        machine = measure_machine(self.models.device, self.models.dtype, clock=self.clock)
        requests = self.requests[: self._affordable(3.0)]
        measured = 0.0
        for contestant in (self.decoder, *self.others):

            def work(contestant: Contestant = contestant) -> None:
                contestant.decode(requests, concurrency=1)

            work()
            started = self.clock.now()
            work()
            undisturbed = self.clock.now() - started
            spent = measure_shares(work, self.models, clock=self.clock)
            each = spent.seconds["verify"] / spent.num_verifications if spent.num_verifications else None
            if contestant is self.decoder and each:
                measured = each
            kept[contestant.name] = Shares(
                shares={part: seconds / spent.total for part, seconds in spent.seconds.items()},
                seconds_per_verification=each,
                overhead=spent.total / undisturbed - 1,
            )
        size = bytes_per_forward(self.models.target)
        reading = size / machine.copy_bytes_per_s
        positions = 1 + self.decoder.num_draft_tokens
        multiplying = positions * flops_per_token(self.models.target) / machine.matmul_flops_per_s
        limit = Limit(
            **asdict(machine),
            seconds_to_read=reading,
            seconds_to_multiply=multiplying,
            seconds_measured=measured,
            share_reached=max(reading, multiplying) / measured if measured else 0.0,
            plain_tokens_per_s=1 / reading,
        )
        self._keep(shares=kept, limit=limit)

    def measure_memory(self) -> None:
        """Peaks at the largest concurrency."""
        kept = {}
        concurrency = max(self.options.concurrency)
        for contestant in (self.decoder, *self.others):

            def work(contestant: Contestant = contestant) -> None:
                contestant.decode(self._turn(0, concurrency), concurrency=concurrency)

            peak, how = peak_bytes(work, device=self.models.device)
            kept[contestant.name] = Memory(peak_bytes=peak, how=how)
        self._keep(memory=kept)

    def keep_part(self, name: str, part: Part) -> None:
        """A part that was timed elsewhere."""
        self._keep(parts=self.results.parts | {name: part})

    def finish(self) -> BenchResults:
        """The results with the time that they took."""
        environment = self.results.environment | {"load after": _load()}
        self._keep(environment=environment, duration_s=time.monotonic() - self.began)
        return self.results

    def _keep(self, **measured: object) -> None:
        self.results = self.results.model_copy(update=measured)

    def _turn(self, turn: int, count: int) -> list[Request]:
        start = turn * count
        return [self.requests[(start + index) % len(self.requests)] for index in range(count)]

    def _affordable(self, passes: float) -> int:
        """Requests that all contestants can answer `passes` times in the time for one measurement, going by their speed alone."""
        alone = next((speed for speed in self.results.speed if speed.concurrency == 1), None)
        if alone is None:
            return FEWEST
        each = sum(sum(times) / len(times) for times in alone.seconds.values()) / alone.requests_per_turn
        return max(FEWEST, min(MOST, int(self.options.minutes * 60 * SHARE_OF_EXTRAS / (passes * each))))

    @property
    def _seeded(self) -> bool:
        return all(each.claims.seeds_per_request for each in (self.decoder, *self.others))

    def _standing(self, name: str, environment: dict[str, str]) -> Standing:
        ours = name == self.options.common.decoder
        return find_standing(
            name,
            given=self.options.verdict if ours else None,
            folders=places_of(name, checkout=CHECKOUT, report_dir=self.options.common.report_dir),
            checkout=CHECKOUT,
            environment=environment,
        )


class NotJudged(Exception):
    """The decoder has no verdict of pass, so no speed of it is reported."""

    def __init__(self, standing: Standing) -> None:
        super().__init__(
            f"no speed is reported for {standing.name!r}: its verdict is {standing.verdict} ({standing.reason}); a fast decoder "
            "that is not lossless is only fast. Judge it first, or say --unjudged."
        )


def _quantile(samples: Sequence[float], share: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(share * len(samples)))]


def _load() -> str:
    try:
        return f"{os.getloadavg()[0]:.2f}"
    except OSError:
        return "unknown"


def _processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
