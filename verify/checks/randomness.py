"""Randomness: seeds reproduce, and different streams are independent."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from verify.greedy.controls import first_divergence
from verify.protocol import Request
from verify.results import Evidence, Finding, Verdict
from verify.scoring import score
from verify.subject import Observed, Subject, describe


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
    subject: Subject, first: Request, second: Request, *, alpha: float, together: bool = False
) -> Finding:
    """Two streams must differ: identical outputs have the probability of a collision under the target's law.

    The outputs are long enough that a collision by chance has probability below `alpha`, which is computed, not assumed.
    """
    if together:
        one, two = subject.generate([first, second])
    else:
        (one,), (two,) = subject.generate([first]), subject.generate([second])
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
    strength = 2.0 * law.size
    counts = np.zeros((law.size, law.size))
    log_wealth = largest = 0.0
    for earlier, later in pairwise(answers):
        before, token_id = earlier.generation.token_ids[0], later.generation.token_ids[0]
        if law[token_id] > 0:  # a support violation is judged elsewhere
            learned = (counts[before, token_id] + strength * law[token_id]) / (counts[before].sum() + strength)
            log_wealth += math.log(0.5 + 0.5 * learned / law[token_id])
            largest = max(largest, log_wealth)
        counts[before, token_id] += 1
    failed = largest >= -math.log(alpha)
    return Finding(
        verdict=Verdict.FAIL if failed else Verdict.PASS,
        evidence=Evidence.BETTING,
        reason=f"{len(answers)} streams with consecutive seeds: a bet that one predicts the next grew to "
        f"10^{largest / math.log(10):.1f} (alarm at 10^{-math.log10(alpha):.1f})",
        observations=len(answers),
        unit="streams",
        false_alarm=alpha,
        diagnosis="streams of different seeds are correlated (RNG)" if failed else "",
        details={"log10_wealth": largest / math.log(10)},
    )
