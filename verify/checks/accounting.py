"""Accounting: what a decoder reports of its rounds against the output and the rounds that the target saw."""

from collections.abc import Sequence

from verify.coverage import HOW_TO_BE_SEEN, rounds_told
from verify.models.observer import Round
from verify.results import Evidence, Finding, Verdict
from verify.subject import Observed, describe


def judge_record(answers: Sequence[Observed]) -> Finding:
    """A reported record agrees with the output and with the rounds seen from the target.

    Every round emits its accepted tokens and one more, except that a limit or a stop token may cut the last round. Where the
    first token comes from prefill, which verifies nothing, it may be left out: most engines do not count it.
    """
    checked = 0
    for each in answers:
        record, tokens = each.generation.record, len(each.generation.token_ids)
        from_prefill = int(each.rounds is None or begins_plainly(each.rounds))
        problem = ""
        if record is None:
            problem = "record is claimed but absent"
        elif not -from_prefill <= record.num_accepted_draft_tokens - (tokens - record.num_spec_steps) <= 1:
            problem = (
                f"{record.num_spec_steps} rounds with {record.num_accepted_draft_tokens} accepted tokens cannot emit {tokens}: "
                "each round emits its accepted tokens and one more (the last round may lack that one)"
            )
        elif each.rounds is not None and not 0 <= len(each.rounds) - record.num_spec_steps <= from_prefill:
            problem = f"num_spec_steps is {record.num_spec_steps} but the target verified {len(each.rounds)} blocks"
        elif each.rounds is not None and sum(r.num_draft_tokens for r in each.rounds) != record.num_draft_tokens:
            drafted = sum(r.num_draft_tokens for r in each.rounds)
            problem = f"num_draft_tokens is {record.num_draft_tokens} but the target saw {drafted}"
        if problem:
            return Finding(
                verdict=Verdict.FAIL,
                evidence=Evidence.CONTRACT,
                reason=problem,
                observations=checked,
                unit="records",
                diagnosis="the acceptance accounting is wrong (STAT)",
                details={"request": describe(each.request)},
            )
        checked += 1
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=f"{checked} records agree with the output and the observed rounds",
        observations=checked,
        unit="records",
        smallest_visible=1.0,
        smallest_visible_unit="miscounted token or round",
    )


def begins_plainly(rounds: Sequence[Round]) -> bool:
    """Whether the first token came from a forward that verified nothing."""
    return bool(rounds) and not rounds[0].output_offset and not rounds[0].num_draft_tokens


def judge_roles(answers: Sequence[Observed]) -> Finding:
    """Reported roles agree with the rounds seen from the target.

    How the last token of an output came about cannot be seen. The first, and the token of a round without a draft, may have
    any role but that of an accepted draft, and only the first may be said to come from prefill.
    """
    checked = 0
    for each in answers:
        roles = each.generation.roles
        if roles is None:
            return _wrong_roles("roles are claimed but absent", each, checked)
        for position, allowed in enumerate(_possible_roles(each)):
            if roles[position] not in allowed:
                wanted = " or ".join(map(repr, sorted(allowed)))
                return _wrong_roles(
                    f"the token at output position {position} is said to be {roles[position]!r}, and the rounds say {wanted}",
                    each,
                    checked,
                )
            checked += 1
    if not checked:
        return Finding(
            verdict=Verdict.INCONCLUSIVE,
            evidence=Evidence.CONTRACT,
            reason=f"the rounds could not be seen from the target; {HOW_TO_BE_SEEN}",
        )
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=f"{checked} roles agree with the observed rounds",
        observations=checked,
        smallest_visible=1.0,
        smallest_visible_unit="wrong role",
    )


def _possible_roles(answer: Observed) -> list[set[str]]:
    """The roles that each output token but the last may have had, by the rounds as seen, or else as told by the record."""
    possible: list[set[str]] = []
    seen = answer.rounds is not None
    for one in (answer.rounds if seen else rounds_told(answer.generation.record)) or ():
        # Of a tree only one path can be accepted, so that its leaf is followed by a bonus although drafts are left.
        known = seen and one.num_draft_tokens
        last = {"recovered"} if one.num_accepted < one.num_draft_tokens else {"bonus"}
        possible += [{"accepted"}] * one.num_accepted
        possible.append(last if known else {"recovered", "bonus"})
    if possible and possible[0] != {"accepted"}:
        possible[0] = possible[0] | {"first"}
    return possible[: len(answer.generation.token_ids) - 1]


def _wrong_roles(reason: str, answer: Observed, checked: int) -> Finding:
    return Finding(
        verdict=Verdict.FAIL,
        evidence=Evidence.CONTRACT,
        reason=reason,
        observations=checked,
        diagnosis="the acceptance accounting is wrong (STAT)",
        details={"request": describe(answer.request), "roles": list(answer.generation.roles or ())},
    )
