"""The gate between a decoder and the checks: everything a decoder returns is validated here, once.

A check never sees a malformed generation. What breaks the protocol raises `Malformed` with value, rule and remedy.
"""

import math
from collections.abc import Sequence
from operator import index
from typing import Any, get_args

from verify.protocol import AcceptanceRecord, FinishReason, Generation, Request, Role

ROLES: tuple[str, ...] = get_args(Role)
FINISH_REASONS: tuple[str, ...] = get_args(FinishReason)


class Malformed(Exception):
    """A decoder returned something that the protocol does not allow."""


def admit(requests: Sequence[Request], answers: Any, *, vocab_size: int) -> list[Generation]:
    """Turn what `generate` returned into valid `Generation`s, one per request; raises `Malformed`."""
    if not isinstance(answers, Sequence):
        raise Malformed(
            f"generate returned {type(answers).__name__}; it must return a sequence with one Generation per request."
        )
    if len(answers) != len(requests):
        raise Malformed(
            f"generate returned {len(answers)} generations for {len(requests)} requests; "
            "return exactly one per request, in order."
        )
    return [_admit_one(request, answer, vocab_size) for request, answer in zip(requests, answers, strict=True)]


def _admit_one(request: Request, answer: Any, vocab_size: int) -> Generation:
    for name in ("token_ids", "finish_reason"):
        if not hasattr(answer, name):
            raise Malformed(
                f"a generation of type {type(answer).__name__} has no {name!r}; see verify.protocol.Generation."
            )
    token_ids = _token_ids(answer.token_ids, vocab_size)
    _check_length(request, token_ids, answer.finish_reason)
    logprobs = getattr(answer, "logprobs", None)
    if logprobs is not None:
        logprobs = [float(value) for value in logprobs]
        if len(logprobs) != len(token_ids):
            raise Malformed(f"{len(logprobs)} logprobs for {len(token_ids)} tokens; return one per emitted token.")
        if any(math.isnan(value) for value in logprobs):
            raise Malformed("a logprob is NaN; return the natural logarithm of the emitted token's probability.")
    roles = getattr(answer, "roles", None)
    if roles is not None:
        roles = [str(role) for role in roles]
        if len(roles) != len(token_ids):
            raise Malformed(f"{len(roles)} roles for {len(token_ids)} tokens; return one per emitted token.")
        unknown = sorted(set(roles) - set(ROLES))
        if unknown:
            raise Malformed(f"role {unknown[0]!r} is not one of {', '.join(ROLES)}.")
    record = getattr(answer, "record", None)
    return Generation(
        token_ids=token_ids,
        finish_reason=answer.finish_reason,
        logprobs=logprobs,
        roles=roles,
        record=None if record is None else admit_record(record),
    )


def _token_ids(values: Any, vocab_size: int) -> list[int]:
    try:
        token_ids = [index(value) for value in values]
    except (TypeError, ValueError) as error:
        raise Malformed(f"token_ids is {values!r:.80}; it must be a sequence of integers.") from error
    foreign = [token_id for token_id in token_ids if not 0 <= token_id < vocab_size]
    if foreign:
        raise Malformed(
            f"token id {foreign[0]} is not in the target's vocabulary of {vocab_size}; "
            "return the emitted ids only, without padding or placeholders."
        )
    return token_ids


def _check_length(request: Request, token_ids: Sequence[int], finish_reason: Any) -> None:
    if finish_reason not in FINISH_REASONS:
        raise Malformed(f'finish_reason is {finish_reason!r}; it must be "stop" or "length".')
    if len(token_ids) > request.max_new_tokens:
        raise Malformed(
            f"{len(token_ids)} tokens emitted where max_new_tokens is {request.max_new_tokens}: "
            "an accepted block must be cut at the limit."
        )
    stops = [index for index, token_id in enumerate(token_ids) if token_id in request.stop_token_ids]
    if stops and stops[0] != len(token_ids) - 1:
        raise Malformed(
            f"{len(token_ids) - 1 - stops[0]} tokens follow the stop token {token_ids[stops[0]]} at output position "
            f"{stops[0]}: a stop token anywhere in an accepted block ends the output."
        )
    if not stops and len(token_ids) < request.max_new_tokens:
        raise Malformed(
            f"{len(token_ids)} tokens emitted where max_new_tokens is {request.max_new_tokens} and no stop token occurred: "
            "the output ended too early."
        )
    if stops and finish_reason != "stop":
        raise Malformed('finish_reason is "length" although the last token is a stop token; it must be "stop".')
    if not stops and finish_reason != "length":
        raise Malformed('finish_reason is "stop" although no stop token was emitted; it must be "length".')


def admit_record(record: Any) -> AcceptanceRecord:
    """Check the identities of an acceptance record; raises `Malformed`."""
    steps, drafted, accepted = (
        int(getattr(record, name)) for name in ("num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens")
    )
    histogram = [int(count) for count in record.acceptance_histogram]
    if min([steps, drafted, accepted, *histogram], default=0) < 0:
        raise Malformed("a count in the acceptance record is negative; counts are numbers of rounds and of tokens.")
    if sum(histogram) != steps:
        raise Malformed(
            f"acceptance_histogram sums to {sum(histogram)} but num_spec_steps is {steps}; they must agree."
        )
    weighted = sum(index * count for index, count in enumerate(histogram))
    if weighted != accepted:
        raise Malformed(
            f"acceptance_histogram stands for {weighted} accepted tokens but num_accepted_draft_tokens is {accepted}; "
            "entry k counts the rounds in which exactly k draft tokens were accepted (the bonus token is not one)."
        )
    if accepted > drafted:
        raise Malformed(f"{accepted} draft tokens accepted of {drafted} drafted; accepted cannot exceed drafted.")
    per_step: dict[str, list[int] | None] = {}
    for name, total in (("drafted_per_step", drafted), ("accepted_per_step", accepted)):
        values = getattr(record, name, None)
        per_step[name] = None if values is None else [int(value) for value in values]
        if values is not None and (len(values) != steps or sum(values) != total):
            raise Malformed(f"{name} has {len(values)} entries summing to {sum(values)}; expected {steps} and {total}.")
    return AcceptanceRecord(
        num_spec_steps=steps,
        num_draft_tokens=drafted,
        num_accepted_draft_tokens=accepted,
        acceptance_histogram=histogram,
        **per_step,
    )
