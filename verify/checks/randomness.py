"""Randomness: seeds reproduce, and different streams are independent."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from scipy.special import logsumexp

from verify.betting.evidence import Floats, Ints
from verify.greedy.controls import first_divergence
from verify.protocol import Generation, Request
from verify.results import Evidence, Finding, Verdict
from verify.scoring import array, score
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
    return _distinct(
        subject, first, one, two, alpha=alpha, diagnosis="streams are shared or reseeded with a constant (RNG)"
    )


def judge_distinct_decoders(make: Callable[[], Subject], request: Request, *, alpha: float) -> Finding:
    """Decoders that `make` builds one after the other, each asked when it is new, do not begin with the same stream.

    A constant that is set when a module is imported, once a process, is not seen.
    """
    subject = make()
    (one,) = subject.generate([request])
    (two,) = make().generate([request])  # made only now: a constant seed would begin the stream of both again
    diagnosis = (
        "every decoder is seeded with one constant when it is made (RNG), so all servers give the same outputs; claim "
        "`seeded_at_start` where that is documented"
    )
    return _distinct(subject, request, one, two, alpha=alpha, diagnosis=diagnosis)


def _distinct(
    subject: Subject, request: Request, one: Generation, two: Generation, *, alpha: float, diagnosis: str
) -> Finding:
    laws = subject.reference.laws(request, one.token_ids)
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
        diagnosis=diagnosis if verdict is Verdict.FAIL else "",
        details={"request": describe(request), "chance": chance},
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


def judge_no_repetition(subject: Subject, requests: Sequence[Request], *, alpha: float) -> Finding:
    """A stream of random numbers does not begin again within an output. Give a target with one law everywhere.

    There the same numbers are the same tokens. For every lag a bettor stakes half of its wealth on the token that stood so far
    before, which is a martingale under the target's law whatever came before; what counts is their mean.
    """
    each_alpha = alpha / len(requests)
    largest, law = 0.0, np.ones(1)
    for request in requests:
        token_ids = list(subject.generate([request])[0].token_ids)
        laws = array(subject.reference.laws(request, token_ids))  # [N, V]
        law = laws[0]
        largest = max(
            largest, largest_log_wealth_of_lags(laws[np.arange(len(token_ids)), token_ids], np.array(token_ids))
        )
    length = min(request.max_new_tokens for request in requests)
    failed = largest >= -math.log(each_alpha)
    visible = smallest_visible_repetition(law, num_tokens=length, alpha=each_alpha)
    passed = Verdict.PASS if visible else Verdict.INCONCLUSIVE
    return Finding(
        verdict=Verdict.FAIL if failed else passed,
        evidence=Evidence.BETTING,
        reason=f"{len(requests)} outputs of {length} tokens: a bet that one repeats itself grew to "
        f"10^{largest / math.log(10):.1f} (alarm at 10^{-math.log10(each_alpha):.1f})"
        f"{'' if visible else '; too few tokens to see even that the second half is the first'}",
        observations=len(requests) * length,
        false_alarm=alpha,
        smallest_visible=visible,
        smallest_visible_unit="share of an output's second half that repeats its first",
        diagnosis="the stream of random numbers begins again within the output (RNG)" if failed else "",
        details={"log10_wealth": largest / math.log(10)},
    )


def largest_log_wealth_of_lags(probs: Floats, token_ids: Ints) -> float:
    """The largest mean wealth of the bets on every lag, in nats, for emitted tokens [N] of target probabilities `probs` [N]."""
    num_tokens = len(token_ids)
    log_wealth = np.zeros(num_tokens)  # [lag - 1]
    largest = 0.0
    for now in range(1, num_tokens):
        if probs[now] > 0:  # a support violation is judged elsewhere
            same = token_ids[:now][::-1] == token_ids[now]
            log_wealth[:now] += np.log(0.5 + 0.5 * same / probs[now])
            largest = max(largest, float(logsumexp(log_wealth)) - math.log(num_tokens))
    return largest


def smallest_visible_repetition(law: Floats, *, num_tokens: int, alpha: float) -> float | None:
    """The smallest of `REPEATS` that the bet on the right lag alone sees in 97% of `NUM_SIMULATED` runs; None where none is.

    Simulated: with that probability a token of the second half is that of the first, else it is drawn from `law` [V].
    """
    rng = np.random.default_rng(0)
    first, drawn = rng.choice(law.size, p=law / law.sum(), size=(2, NUM_SIMULATED, num_tokens // 2))
    coins = rng.random(first.shape)

    def wealth(share: float) -> Floats:
        same = (coins < share) | (drawn == first)
        gained: Floats = np.log(0.5 + 0.5 * same / law[np.where(same, first, drawn)]).sum(1)
        return gained

    return _smallest_seen(wealth, alarm=math.log(num_tokens / alpha))


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

    def wealth(share: float) -> Floats:
        tokens = drawn.copy()
        for now in range(1, num_streams):
            tokens[:, now] = np.where(coins[:, now] < share, tokens[:, now - 1], drawn[:, now])
        return largest_log_wealth(law, tokens)

    return _smallest_seen(wealth, alarm=-math.log(alpha))


def _smallest_seen(wealth: Callable[[float], Floats], *, alarm: float) -> float | None:
    """The smallest of `REPEATS` at which 97% of the simulated runs, whose wealth in nats is given, reach the alarm."""
    return next((share for share in REPEATS if (wealth(share) >= alarm).mean() >= 0.97), None)
