"""Grammar: an output is a path of the automaton that was asked for."""

from collections.abc import Sequence

from verify.coverage import Coverage
from verify.grammar import first_violation, possible_tokens
from verify.results import Evidence, Finding, Verdict
from verify.subject import Observed, describe


def judge_grammar(answers: Sequence[Observed], *, coverage: Coverage, required_paths: Sequence[str] = ()) -> Finding:
    """Every token is one that the grammar leaves possible after those before it."""
    checked = 0
    for each in answers:
        output = each.generation.token_ids
        wrong = first_violation(each.request, output)
        checked += len(output) if wrong is None else wrong
        if wrong is not None:
            return Finding(
                verdict=Verdict.FAIL,
                evidence=Evidence.CONTRACT,
                reason=f"token {output[wrong]} at output position {wrong} is impossible under the grammar, which leaves "
                f"{_possible(each, wrong)} there",
                observations=checked,
                unit="tokens",
                diagnosis="the automaton's state is not that of the emitted text: drafts not masked, or a state that rejected "
                "drafts have moved (GRAM)",
                details={"request": describe(each.request), "token_ids": list(output)},
            )
    missing = coverage.missing(required_paths)
    if missing:
        return Finding(
            verdict=Verdict.INCONCLUSIVE,
            evidence=Evidence.CONTRACT,
            reason=f"never reached: {', '.join(missing)}",
            observations=checked,
            unit="tokens",
        )
    stopped = sum(each.generation.finish_reason == "stop" for each in answers)
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=f"{len(answers)} outputs are paths of the grammar, {stopped} of them to its end",
        observations=checked,
        unit="tokens",
        smallest_visible=1.0,
        smallest_visible_unit="token outside the grammar",
        details={"pictures": [coverage.picture("Paths reached")]},
    )


def _possible(each: Observed, position: int) -> list[int]:
    grammar = each.request.sampling.grammar
    assert grammar is not None
    state = grammar.initial_state
    for token_id in each.generation.token_ids[:position]:
        state = grammar.next_state(state, token_id)
    return sorted(possible_tokens(grammar, state, each.request.stop_token_ids))
