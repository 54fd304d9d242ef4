"""The exact law of a program's outcome: every path through its randomness, each run once."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from verify.exact.elsewhere import NumpyGenerators
from verify.exact.interception import Interception
from verify.exact.operations import operate
from verify.exact.replay import Choice, Refusal, Replay, holds_random

Outcome = TypeVar("Outcome", bound=Hashable)
# At 1 / _FIRST_LOOK of the paths allowed, give up if the walk as a whole seems _HOPELESS times too long.
_FIRST_LOOK = 20
_HOPELESS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Enumeration(Generic[Outcome]):
    """The law of the outcomes of a run.

    `mass` is the sum of the probabilities of all paths run: 1 when `complete`, which is False if the limit of paths was hit
    or a primitive was `refused`. `refused` names the random primitive, or the operation on a random value, that has no
    exact model ("" if there was none); the law is then meaningless and empty.
    """

    law: Mapping[Outcome, float]
    num_paths: int
    mass: float
    complete: bool
    refused: str = ""


def enumerate_outcomes(
    run: Callable[[], Outcome],
    *,
    max_paths: int,
    progress: Callable[[int, float], None] | None = None,
    generators: NumpyGenerators | None = None,
) -> Enumeration[Outcome]:
    """Run `run` once per possible outcome of its randomness and add up the probabilities of equal results.

    `run` must draw all its randomness inside the call and carry nothing over to the next one. It is called once more, before
    all else and with real randomness: what it imports and builds on first use is then out of the way, and its outcome must
    be one of those found. `progress` is called after
    each path with the number of paths and their mass; `generators`, kept from one enumeration to the next, saves a search
    through all live objects each time. Probabilities are float64; a uniform counts as continuous on [0, 1),
    which is what torch draws up to 2^-24 (float32) or 2^-53 (float64). Raises what `run` raises, with a note of the choices
    that led there, and ValueError for `max_paths` below 1. A program whose randomness is out of sight (another process)
    shows one path. While it runs, random functions are replaced in the whole process: one enumeration at a time.

    It ends incomplete at `max_paths`, or at a twentieth of them where the walk has hardly begun by then.
    """
    if max_paths < 1:
        raise ValueError(f"max_paths is {max_paths}; it must be at least 1; 100000 is a usual limit")
    ordinary, failure = _ordinary_run(run)
    replay = Replay(operate)
    interception = Interception(replay, generators=generators)
    shares: dict[Outcome, list[float]] = {}
    num_paths, mass, more = 0, 0.0, True
    with interception.installed():
        while more and num_paths < max_paths and not _hopeless(num_paths, max_paths, replay.choices):
            replay.begin()
            try:
                outcome = interception.call(run)
                if holds_random(outcome):
                    replay.refuse("an outcome that contains an undecided random value")
            except Refusal:
                break
            except Exception as error:
                if replay.refused:
                    break
                made = "; ".join(map(str, replay.choices)) or "none"
                error.add_note(f"choices made before (path {num_paths + 1}): {made}")
                raise
            more = replay.advance()
            if replay.refused:
                break
            shares.setdefault(outcome, []).append(replay.probability)
            num_paths += 1
            mass += replay.probability
            if progress is not None:
                progress(num_paths, mass)
    if not more and not replay.refused and ordinary not in shares:
        if failure is not None:
            failure.add_note("raised in an ordinary run, and on no path of the enumeration")
            raise failure
        replay.refused = "hidden state (an ordinary run had an outcome that no path has)"
    if replay.refused:
        return Enumeration(law={}, num_paths=num_paths, mass=mass, complete=False, refused=replay.refused)
    return Enumeration(
        law={outcome: math.fsum(each) for outcome, each in shares.items()},
        num_paths=num_paths,
        mass=math.fsum(probability for each in shares.values() for probability in each),
        complete=not more,
    )


def _hopeless(num_paths: int, max_paths: int, choices: Sequence[Choice]) -> bool:
    return num_paths == max_paths // _FIRST_LOOK and num_paths > _HOPELESS * max_paths * _share_walked(choices)


def _share_walked(choices: Sequence[Choice]) -> float:
    """How much of a depth-first walk lies behind the path of these choices, were all branches alike."""
    share, width = 0.0, 1.0
    for choice in choices:
        possible = [branch for branch, probability in enumerate(choice.probabilities) if probability > 0]
        width /= len(possible)
        share += possible.index(choice.taken) * width
    return share + width


def _ordinary_run(run: Callable[[], Outcome]) -> tuple[Outcome | None, Exception | None]:
    """Outcome of a run with real randomness, or what it raised: the enumeration meets that again, choices known."""
    try:
        return run(), None
    except Exception as error:
        return None, error
