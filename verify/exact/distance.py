"""Distances between laws on finite sets, and laws of independent outcomes."""

import math
from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from typing import Any, TypeVar

Outcome = TypeVar("Outcome", bound=Hashable)


def total_variation(left: Mapping[Any, float], right: Mapping[Any, float]) -> float:
    """Half the sum of absolute differences: for laws, the largest difference in the probability of any event."""
    outcomes = left.keys() | right.keys()
    return math.fsum(abs(left.get(outcome, 0.0) - right.get(outcome, 0.0)) for outcome in outcomes) / 2


def product_law(laws: Sequence[Mapping[Outcome, float]]) -> dict[tuple[Outcome, ...], float]:
    """Law of independent outcomes, one from each law: tuples with the product of their probabilities."""
    return {
        tuple(outcome for outcome, _ in pairs): math.prod(probability for _, probability in pairs)
        for pairs in product(*(law.items() for law in laws))
    }
