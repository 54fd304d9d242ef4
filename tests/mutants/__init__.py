"""Planted bugs and correct but unusual decoders: `pytest verify/ --decoder mutant:RES-8`, or `control:sample-match`.

Each bug replaces one small piece of a correct decoder while that runs, and names the row of the public catalog that it was
planted from. `python -m tests.mutants.run` has the suite judge all of them.
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from tests.mutants.catalog import MUTANTS
from tests.mutants.controls import CONTROLS, Control
from tests.mutants.mutant import Mutant, PatchedDecoder, require_names

Factory = Callable[[Any], Any]


def mutant_named(name: str) -> Factory:
    """The adapter factory of a planted bug; ValueError with the nearest id where there is none of this id."""
    mutant = MUTANTS[_known("planted bug", name, MUTANTS)]
    require_names(mutant.patches)
    return lambda models: PatchedDecoder(mutant.make, mutant.patches, models)


def control_named(name: str) -> Factory:
    """The adapter factory of a correct but unusual decoder; ValueError as above."""
    make = CONTROLS[_known("control", name, CONTROLS)].make
    require_names(getattr(make, "patches", {}))
    return make


def _known(kind: str, name: str, known: Mapping[str, Any]) -> str:
    if name in known:
        return name
    nearest = get_close_matches(name, known, n=1, cutoff=0.0)
    raise ValueError(f"there is no {kind} {name!r}; did you mean {nearest[0]!r}? Known: {', '.join(known)}")


__all__ = ["CONTROLS", "MUTANTS", "Control", "Mutant", "PatchedDecoder", "control_named", "mutant_named"]
