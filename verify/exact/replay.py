"""Depth-first replay of choices: the part of the exact law that knows nothing of tensors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

# Replaying a prefix must meet the same choices; sums in another order may move their probabilities by this much.
_SAME_PROBABILITY = 1e-9


class Refusal(BaseException):
    """A random primitive, or an operation on a random value, that has no exact model.

    Not an `Exception`, so that a decoder's own `except Exception` cannot turn it into an output.
    """


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice point: what was drawn, the probabilities of its branches, and the branch taken."""

    name: str
    probabilities: tuple[float, ...]
    taken: int

    def __str__(self) -> str:
        return f"{self.name} -> {self.taken} (probability {self.probabilities[self.taken]:.6g})"


Operate: TypeAlias = Callable[["Replay", Any, Sequence[Any], Mapping[str, Any]], Any]
"""Applies a function to arguments of which at least one is random: (replay, function, args, kwargs)."""


class Replay:
    """The choices of the current run, and the prefix that it repeats.

    A run takes the planned choices first and the first possible branch after them. `advance` plans the next path, depth
    first, until none is left. `operate` is what the random values of this replay do when a function is applied to them.
    """

    def __init__(self, operate: Operate) -> None:
        self.operate = operate
        self.choices: list[Choice] = []
        self.refused = ""
        self.run = 0
        self.cleanups: list[Callable[[], None]] = []
        self._planned: list[Choice] = []

    @property
    def probability(self) -> float:
        """Probability of the choices made so far in this run."""
        product = 1.0
        for choice in self.choices:
            product *= choice.probabilities[choice.taken]
        return product

    def begin(self) -> None:
        """Start the next run."""
        self.run += 1
        self.choices = []

    def choose(self, weights: Sequence[float], name: str) -> int:
        """Return the branch to take, of those with a positive weight; a certain branch is no choice point."""
        possible = [index for index, weight in enumerate(weights) if weight > 0]
        if len(possible) == 1:
            return possible[0]
        if not possible:
            self.refuse(f"{name} without a possible outcome")
        total = sum(weights)
        probabilities = tuple(weight / total for weight in weights)
        position = len(self.choices)
        taken = possible[0]
        if position < len(self._planned):
            planned = self._planned[position]
            if len(planned.probabilities) != len(probabilities) or any(
                abs(a - b) > _SAME_PROBABILITY for a, b in zip(planned.probabilities, probabilities, strict=True)
            ):
                self.refuse(f"hidden state (a replay met {name} with other probabilities than the run before)")
            taken = planned.taken
        self.choices.append(Choice(name, probabilities, taken))
        return taken

    def refuse(self, name: str) -> NoReturn:
        """Stop the run: `name` has no exact model."""
        self.refused = self.refused or name
        raise Refusal(name)

    def close(self) -> None:
        """End the last run: no value drawn in it is valid any more."""
        self.run += 1
        while self.cleanups:
            self.cleanups.pop()()

    def advance(self) -> bool:
        """Plan the next path; False when every path was taken."""
        if len(self.choices) < len(self._planned):
            self.refused = self.refused or "hidden state (a replay made fewer choices than the run before)"
            return False
        for depth in range(len(self.choices) - 1, -1, -1):
            choice = self.choices[depth]
            for branch in range(choice.taken + 1, len(choice.probabilities)):
                if choice.probabilities[branch] > 0:
                    self._planned = [*self.choices[:depth], Choice(choice.name, choice.probabilities, branch)]
                    return True
        return False


def holds_random(value: Any) -> bool:
    """Whether `value`, or a member of the lists and tuples in it, is a random value that no comparison has decided."""
    return _find([value]) is not None


def operate_on(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Apply `func` as the replay of its first random argument says."""
    replay = getattr(args[0], "replay", None) if args else None  # nearly always the first
    if not isinstance(replay, Replay):
        replay = _find([*args, *kwargs.values()])
    if replay is None:
        raise TypeError(f"{func} has no random value among its arguments")
    return replay.operate(replay, func, args, kwargs)


def _find(arguments: Iterable[Any]) -> Replay | None:
    for argument in arguments:
        found = _find(argument) if isinstance(argument, (list, tuple)) else getattr(argument, "replay", None)
        if isinstance(found, Replay):
            return found
    return None
