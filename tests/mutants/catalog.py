"""All planted bugs by id; the ids are rows of the catalog of real bugs, with a letter where one row has several."""

from tests.mutants import (
    acceptance,
    batches,
    blocks,
    bonus,
    cache,
    draft_laws,
    drafters,
    grammars,
    lossy,
    numerics,
    orders,
    processors,
    randomness,
    reports,
    residual,
    serving,
    states,
    stopping,
    transformers,
    trees,
    vocabularies,
)
from tests.mutants.mutant import Mutant

GROUPS = (
    acceptance,
    draft_laws,
    residual,
    blocks,
    trees,
    bonus,
    processors,
    orders,
    grammars,
    stopping,
    cache,
    states,
    batches,
    vocabularies,
    randomness,
    numerics,
    reports,
    lossy,
    drafters,
    serving,
    transformers,
)


def by_id() -> dict[str, Mutant]:
    """Every planted bug; raises ValueError where two share an id."""
    found: dict[str, Mutant] = {}
    for mutant in (mutant for group in GROUPS for mutant in group.MUTANTS):
        if mutant.id in found:
            raise ValueError(f"the id {mutant.id} is used twice; ids are names. Put a letter behind one.")
        found[mutant.id] = mutant
    return found


MUTANTS = by_id()
