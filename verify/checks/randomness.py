"""Randomness: seeds reproduce, and different streams are independent."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from verify.betting.evidence import Floats, Ints
from verify.greedy.controls import first_divergence
from verify.protocol import Request
from verify.results import Evidence, Finding, Verdict
from verify.scoring import score
from verify.subject import Observed, Subject, describe

REPEATS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
NUM_SIMULATED = 200


def judge_reproducible(subject: Subject, requests: Sequence[Request], *, company: Sequence[Request] = ()) -> Finding:
    """The same seed gives the same output twice, and (with `company`) also in a batch beside other requests."""
    for index, request in enumerate(requests):
        first = subject.generate([request])[0].token_ids
        others = [replace(each, seed=10_000 + position) for position, each in enumerate(company)]
        again = subject.generate([*others, request])[-1].token_ids
        position = first_divergence(first, again)
        if position is not None:
            beside = f" in a batch of {len(company) + 1}" if company else ""
            return Finding(
                verdict=Verdict.FAIL,
                evidence=Evidence.CONTRACT,
                reason=f"seed {request.seed} gave another output the second time{beside}, from position {position} on",
                observations=index + 1,
                unit="outputs",
                diagnosis="the request's seed is not the only source of its randomness (RNG)",
                details={"request": describe(request), "first": list(first), "second": list(again)},
            )
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=f"{len(requests)} seeded requests reproduced{' beside other requests' if company else ''}",
        observations=len(requests),
        unit="outputs",
        smallest_visible=1.0,
        smallest_visible_unit="different token",
    )


def judge_distinct(
    subject: Subject,
    first: Request,
    second: Request,
    *,
    alpha: float,
    together: bool = False,
    before: Sequence[Request] = (),
) -> Finding:
    """Two streams must differ: identical outputs have the probability of a collision under the target's law.

    The outputs are long enough that a collision by chance has probability below `alpha`, which is computed, not assumed.
    `before`: asked ahead of each of the two.
    """
    if together:
        one, two = subject.generate([first, second])
    else:
        answers = []
        for each in (first, second):
            for earlier in before:
                subject.generate([earlier])
            answers += subject.generate([each])
        one, two = answers
    laws = subject.reference.laws(first, one.token_ids)
    # Given `one`, an independent second stream repeats it with the probability of `one` itself.
    chance = laws[torch.arange(len(one.token_ids)), list(one.token_ids)].log().sum().exp().item()
    same = list(one.token_ids) == list(two.token_ids)
    if not same:
        verdict, reason = Verdict.PASS, f"different streams gave different outputs of {len(one.token_ids)} tokens"
    elif chance <= alpha:
        verdict, reason = Verdict.FAIL, f"two streams gave the same {len(one.token_ids)} tokens; chance {chance:.1e}"
    else:
        verdict, reason = Verdict.INCONCLUSIVE, f"the same output twice, but that has probability {chance:.1e}"
    return Finding(
        verdict=verdict,
        evidence=Evidence.BETTING,
        reason=reason,
        observations=len(one.token_ids),
        false_alarm=alpha,
        smallest_visible=1.0,
        smallest_visible_unit="shared stream",
        diagnosis="streams are shared or reseeded with a constant (RNG)" if verdict is Verdict.FAIL else "",
        details={"request": describe(first), "chance": chance},
    )


def judge_independent_streams(subject: Subject, answers: Sequence[Observed], *, alpha: float) -> Finding:
    """Consecutive streams are independent: the first token of one does not predict that of the next.

    All answers are to one prompt, so their first tokens share a law. A bettor learns (Dirichlet prior around the law) how
    the token depends on that of the stream before, and stakes half of its wealth on it: a martingale under independence.
    """
    (law,) = (each.target_probs[0] for each in score(subject, answers[:1]))  # [V]
    firsts = np.array([[each.generation.token_ids[0] for each in answers]])
    (largest,) = largest_log_wealth(law, firsts)
    failed = bool(largest >= -math.log(alpha))
    visible = smallest_visible_repeat(law, num_streams=len(answers), alpha=alpha)
    passed = Verdict.PASS if visible else Verdict.INCONCLUSIVE
    return Finding(
        verdict=Verdict.FAIL if failed else passed,
        evidence=Evidence.BETTING,
        reason=f"{len(answers)} streams with consecutive seeds: a bet that one predicts the next grew to "
        f"10^{largest / math.log(10):.1f} (alarm at 10^{-math.log10(alpha):.1f})"
        f"{'' if visible else '; too few streams to see even that each repeats the one before'}",
        observations=len(answers),
        unit="streams",
        false_alarm=alpha,
        smallest_visible=visible,
        smallest_visible_unit="share that repeats the stream before",
        diagnosis="streams of different seeds are correlated (RNG)" if failed else "",
        details={"log10_wealth": largest / math.log(10)},
    )


def largest_log_wealth(law: Floats, tokens: Ints) -> Floats:
    """The largest wealth that the bet on dependence ever had, in nats, [R], for R runs of first tokens [R, N] of `law` [V]."""
    runs = np.arange(len(tokens))
    strength = 2.0 * law.size
    counts = np.zeros((len(tokens), law.size, law.size))
    log_wealth, largest = np.zeros(len(tokens)), np.zeros(len(tokens))
    for before, now in pairwise(tokens.T):
        learned = (counts[runs, before, now] + strength * law[now]) / (counts[runs, before].sum(1) + strength)
        possible = law[now] > 0  # a support violation is judged elsewhere
        log_wealth += np.log(np.where(possible, 0.5 + 0.5 * learned / np.where(possible, law[now], 1), 1))
        largest = np.maximum(largest, log_wealth)
        counts[runs, before, now] += 1
    return largest


def smallest_visible_repeat(law: Floats, *, num_streams: int, alpha: float) -> float | None:
    """The smallest of `REPEATS` that the bet sees in 97% of `NUM_SIMULATED` runs; None where there is none.

    Simulated: with that probability a stream's first token is that of the stream before, else it is drawn from `law` [V].
    """
    rng = np.random.default_rng(0)
    drawn = rng.choice(law.size, p=law / law.sum(), size=(NUM_SIMULATED, num_streams))
    coins = rng.random((NUM_SIMULATED, num_streams))
    for share in REPEATS:
        tokens = drawn.copy()
        for now in range(1, num_streams):
            tokens[:, now] = np.where(coins[:, now] < share, tokens[:, now - 1], drawn[:, now])
        if (largest_log_wealth(law, tokens) >= -math.log(alpha)).mean() >= 0.97:
            return share
    return None
