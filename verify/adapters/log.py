"""A log in the place of a decoder: it claims what its lines show, and generates nothing."""

from collections.abc import Iterable, Sequence
from typing import Any

from verify.judge import NotApplicable
from verify.log.line import Counts, Line
from verify.log.reader import Log
from verify.protocol import AcceptanceRecord, Capabilities, Generation, Request, SamplingParams, claims_needed


class LoggedDecoder:
    """What a log says of its engine; `draft_model`: the engine's drafts come from the draft that the suite was given."""

    def __init__(self, log: Log, *, draft_model: bool) -> None:
        self.capabilities = _claims((entry.line for entry in log.entries), draft_model=draft_model)

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Raises `NotApplicable`: there is nothing to run."""
        raise NotApplicable("a log of generations holds no decoder that could be run")


def request_of(line: Line) -> Request:
    """The request of a line."""
    sampling = line.sampling
    settings: dict[str, Any] = sampling.model_dump(exclude={"forbidden_token_ids", "allowed_token_ids"})
    allowed = sampling.allowed_token_ids
    return Request(
        prompt_token_ids=tuple(line.prompt_token_ids),
        max_new_tokens=line.max_new_tokens,
        min_new_tokens=line.min_new_tokens,
        num_draft_tokens=1 if line.num_draft_tokens is None else line.num_draft_tokens,
        sampling=SamplingParams(
            **settings,
            forbidden_token_ids=tuple(sampling.forbidden_token_ids),
            allowed_token_ids=None if allowed is None else tuple(allowed),
        ),
        stop_token_ids=tuple(line.stop_token_ids),
        seed=line.seed,
        logprobs=line.logprobs is not None,
    )


def generation_of(line: Line) -> Generation:
    """The answer of a line; a finish reason that was not logged is the right one."""
    stopped = bool(line.token_ids) and line.token_ids[-1] in line.stop_token_ids
    return Generation(
        token_ids=list(line.token_ids),
        finish_reason=line.finish_reason or ("stop" if stopped else "length"),
        logprobs=line.logprobs,
        roles=line.roles,
        record=_record(line.record),
    )


def _record(counts: Counts | None) -> AcceptanceRecord | None:
    """A record; totals alone are none."""
    if counts is None or counts.acceptance_histogram is None:
        return None
    return AcceptanceRecord(**counts.model_dump())


def _claims(lines: Iterable[Line], *, draft_model: bool) -> Capabilities:
    claimed: dict[str, Any] = {"draft_model": draft_model}
    for line in lines:
        claimed |= {name: True for name in claims_needed(request_of(line)) if name != "logprobs"}
        claimed |= {"seeds": True} if line.seed is not None else {}
        claimed |= {"roles": True} if line.roles is not None else {}
        claimed |= {"record": True} if _record(line.record) is not None else {}
        claimed |= {"logprobs": line.logprobs_of} if line.logprobs is not None else {}
    return Capabilities(**claimed)
