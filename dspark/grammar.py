"""Grammars over token ids: a table for a small one, and the masks of a block.

The state is never kept: it is found anew from the output and the drafts before each position, so no draft that was rejected can
stay in it.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

from dspark.request import DecodingRequest, Grammar


@dataclass(frozen=True, slots=True)
class TokenAutomaton:
    """A `dspark.request.Grammar` as a table: `transitions[state][token_id]` is the next state, `final` are states to stop in."""

    transitions: Mapping[Hashable, Mapping[int, Hashable]]
    initial_state: Hashable = 0
    final: frozenset[Hashable] = frozenset()

    def allowed(self, state: Hashable) -> Sequence[int]:
        """The tokens that may come next."""
        return tuple(self.transitions.get(state, {}))

    def next_state(self, state: Hashable, token_id: int) -> Hashable:
        """The state after one of the allowed tokens."""
        return self.transitions[state][token_id]

    def is_final(self, state: Hashable) -> bool:
        """Whether the output may stop here."""
        return state in self.final


def possible_tokens(request: DecodingRequest, token_ids: Sequence[int], *, start: int) -> list[list[int] | None]:
    """What may follow `token_ids[:n]` for n from `start` to all of them; the tokens stand after the prompt.

    None, which bans nothing, behind a token that the grammar does not allow and behind a stop token: neither becomes text with
    something after it. ValueError where the grammar raises anything.
    """
    grammar = request.sampling.grammar
    if grammar is None:
        return [None] * (len(token_ids) + 1 - start)
    try:
        return _possible(grammar, token_ids, request.stop_token_ids)[start:]
    except Exception as error:  # somebody else's code: whatever it raises, this request cannot go on, and others can
        raise ValueError(
            f"the grammar raised {error!r} within the tokens {list(token_ids)}; it must answer for every state that it gives. "
            "Mend it."
        ) from error


def _possible(grammar: Grammar, token_ids: Sequence[int], stop_token_ids: Collection[int]) -> list[list[int] | None]:
    possible: list[list[int] | None] = [None] * (len(token_ids) + 1)
    state = grammar.initial_state
    for place in range(len(token_ids) + 1):
        tokens = [*grammar.allowed(state), *(stop_token_ids if grammar.is_final(state) else ())]
        possible[place] = tokens
        if place == len(token_ids) or token_ids[place] not in tokens or token_ids[place] in stop_token_ids:
            break
        state = grammar.next_state(state, token_ids[place])
    return possible
