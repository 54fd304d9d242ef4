"""Token automata: the grammars that the suite brings, and the walk of an output through any grammar."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from verify.protocol import Grammar, Request


@dataclass(frozen=True, slots=True)
class TokenAutomaton:
    """A `Grammar` as a table: `transitions[state][token_id]` is the next state; the output may stop in the states `final`.

    Raises ValueError where a state leads nowhere and is not final: an output that arrived there could not go on.
    """

    transitions: Mapping[int, Mapping[int, int]]
    initial_state: int = 0
    final: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        reached = {self.initial_state, *(state for row in self.transitions.values() for state in row.values())}
        stuck = sorted(state for state in reached if not self.transitions.get(state) and state not in self.final)
        if stuck:
            raise ValueError(
                f"state {stuck[0]} has no transition and is not final; an output that arrives there can neither go on nor stop. "
                "Add a transition, or make it final."
            )

    def allowed(self, state: int) -> Sequence[int]:
        """See `Grammar`."""
        return tuple(self.transitions.get(state, {}))

    def next_state(self, state: int, token_id: int) -> int:
        """See `Grammar`."""
        return self.transitions[state][token_id]

    def is_final(self, state: int) -> bool:
        """See `Grammar`."""
        return state in self.final


def possible_tokens(grammar: Grammar, state: Hashable, stop_token_ids: Iterable[int]) -> set[int]:
    """The tokens that may follow a state."""
    return {*grammar.allowed(state), *(stop_token_ids if grammar.is_final(state) else ())}


def first_violation(request: Request, output: Sequence[int]) -> int | None:
    """The first output position whose token the request's grammar does not allow there; None where the output is a path."""
    grammar = request.sampling.grammar
    if grammar is None:
        return None
    state = grammar.initial_state
    for position, token_id in enumerate(output):
        if token_id not in possible_tokens(grammar, state, request.stop_token_ids):
            return position
        if token_id in request.stop_token_ids:
            return None
        state = grammar.next_state(state, token_id)
    return None
