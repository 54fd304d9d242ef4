"""Positions at which rounding cannot change what top-k, top-p and min-p cut off."""

import math

import numpy as np

from verify.betting.evidence import Floats
from verify.protocol import SamplingParams


def decided(law: Floats, sampling: SamplingParams, *, slack: float) -> list[int]:
    """Rows of `law` [N, V] (before truncation) whose kept tokens are the same for every law within `slack`.

    `slack` bounds the change of a log-probability, and of the difference of two. At other rows a correct engine may keep
    another token at the edge, so they are no evidence. The choice looks at the context only, never at what was emitted.
    """
    undecided = np.zeros(len(law), dtype=bool)
    with np.errstate(divide="ignore"):
        logs = np.log(law)
        if 0 < sampling.top_k < law.shape[1]:
            last = np.partition(logs, -sampling.top_k, axis=1)[:, -sampling.top_k, None]  # [N, 1]
            undecided |= (logs >= last - slack).sum(1) > sampling.top_k
            law = np.where(logs >= last, law, 0.0)
            law = law / law.sum(1, keepdims=True)
            logs = np.log(law)
        if sampling.top_p < 1:
            ordered = -np.sort(-law, axis=1)
            before = ordered.cumsum(1) - ordered
            kept = (before < sampling.top_p).sum(1)  # [N]
            undecided |= ((np.abs(before - sampling.top_p) <= math.expm1(slack)) & (ordered > 0)).any(1)
            rows = np.arange(len(law))
            following = ordered[rows, np.minimum(kept, law.shape[1] - 1)]
            swapped = np.log(ordered[rows, kept - 1]) - np.log(following) <= slack
            undecided |= (kept < law.shape[1]) & (following > 0) & swapped
        if sampling.min_p:
            margin = logs - logs.max(1, keepdims=True) - math.log(sampling.min_p)
            undecided |= (np.abs(margin) <= slack).any(1)
    return [int(row) for row in np.flatnonzero(~undecided)]
