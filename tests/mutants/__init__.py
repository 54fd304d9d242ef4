"""Planted bugs: `pytest verify/ --decoder tests.mutants:RES-8` runs the suite against the reference decoder with one bug.

Each mutant replaces one small piece of `dspark` while the decoder runs, and names the row of the public catalog that it
was planted from.
"""

from collections.abc import Callable
from typing import Any

from tests.mutants.catalog import MUTANTS
from tests.mutants.mutant import Mutant, make_mutant_decoder


def __getattr__(name: str) -> Callable[[Any], Any]:
    """The adapter factory of the mutant with this id."""
    if name not in MUTANTS:
        raise AttributeError(f"no mutant {name!r}; known: {', '.join(MUTANTS)}")
    return lambda models: make_mutant_decoder(MUTANTS[name], models)


__all__ = ["MUTANTS", "Mutant", "make_mutant_decoder"]
