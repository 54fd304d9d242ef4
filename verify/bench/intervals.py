"""Confidence intervals of ratios, from paired turns and from two runs, and of shares."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from verify.bench.schema import Estimate

CONFIDENCE = 0.95


def paired_ratio(slow: Sequence[float], fast: Sequence[float]) -> Estimate:
    """How many times `slow` is `fast`, turn by turn: the geometric mean, with Student's interval of the logarithms.

    A moment in which the machine is slow hits both numbers of a turn and leaves their ratio as it is. Raises ValueError below
    two turns.
    """
    if len(slow) < 2:
        raise ValueError(f"{len(slow)} turns; an interval needs at least 2. Measure longer.")
    logs = np.log(np.asarray(slow)) - np.log(np.asarray(fast))
    error = float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return _around(float(logs.mean()), error, degrees=len(logs) - 1)


def independent_ratio(new: Sequence[float], old: Sequence[float]) -> Estimate:
    """How many times `new` is `old`, for two runs: as `paired_ratio`, with Welch's degrees of freedom."""
    for samples in (new, old):
        if len(samples) < 2:
            raise ValueError(f"{len(samples)} turns; an interval needs at least 2. Measure longer.")
    ours, theirs = np.log(np.asarray(new)), np.log(np.asarray(old))
    parts = [float(each.var(ddof=1)) / len(each) for each in (ours, theirs)]
    total = sum(parts)
    bottom = sum(part**2 / (len(each) - 1) for part, each in zip(parts, (ours, theirs), strict=True))
    return _around(float(ours.mean() - theirs.mean()), math.sqrt(total), degrees=total**2 / bottom if bottom else 1.0)


def mean_of(samples: Sequence[float]) -> Estimate:
    """The mean with Student's interval; without width below two samples."""
    values = np.asarray(samples, dtype=float)
    middle = float(values.mean())
    if len(values) < 2:
        return Estimate(low=middle, estimate=middle, high=middle)
    half = (
        float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    )
    return Estimate(low=middle - half, estimate=middle, high=middle + half)


def typical_of(samples: Sequence[float]) -> Estimate:
    """The geometric mean of positive numbers, such as times and rates, with Student's interval of the logarithms."""
    around = mean_of([math.log(each) for each in samples])
    return Estimate(low=math.exp(around.low), estimate=math.exp(around.estimate), high=math.exp(around.high))


def share_of(successes: int, trials: int) -> Estimate:
    """A share with its Clopper-Pearson interval; raises ValueError without trials."""
    if trials < 1:
        raise ValueError("0 trials; a share needs at least 1. Measure longer.")
    low, high = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="exact")
    return Estimate(low=float(low), estimate=successes / trials, high=float(high))


def _around(middle: float, error: float, *, degrees: float) -> Estimate:
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    return Estimate(low=math.exp(middle - half), estimate=math.exp(middle), high=math.exp(middle + half))
