"""Streaming: the chunks are the output, and closing a stream leaves no trace."""

from collections.abc import Iterable, Sequence
from typing import Any

from verify.judge import ContractViolation
from verify.protocol import Generation, Request
from verify.results import Evidence, Finding, Verdict
from verify.subject import Subject, describe


def collected(stream: Iterable[Sequence[int]], *, max_chunks: int | None = None) -> list[int]:
    """The tokens of a stream, which is closed after `max_chunks` where that is given."""
    token_ids: list[int] = []
    for num_chunks, chunk in enumerate(stream, start=1):
        token_ids.extend(map(int, chunk))
        if num_chunks == max_chunks:
            close = getattr(stream, "close", None)
            if close is not None:
                close()
            break
    return token_ids


class Streamed:
    """A decoder whose answers are its streams."""

    def __init__(self, decoder: Any) -> None:
        self.capabilities = decoder.capabilities
        self._stream = decoder.stream

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Each request streamed to its end."""
        answers = []
        for request in requests:
            token_ids = collected(self._stream(request))
            stopped = bool(token_ids) and token_ids[-1] in request.stop_token_ids
            answers.append(Generation(token_ids=token_ids, finish_reason="stop" if stopped else "length"))
        return answers


def streamed(subject: Subject, request: Request, *, max_chunks: int | None = None) -> list[int]:
    """What `collected` gives of a new stream; a decoder that raises is a contract violation."""
    try:
        return collected(subject.decoder.stream(request), max_chunks=max_chunks)
    except Exception as error:
        raise ContractViolation(
            f"stream raised {type(error).__name__}: {error}", details={"request": describe(request)}
        ) from error


def judge_stream(subject: Subject, requests: Sequence[Request]) -> Finding:
    """Concatenated chunks equal `generate` for the same (greedy or seeded) request."""
    tokens = 0
    for request in requests:
        whole = list(subject.generate([request])[0].token_ids)
        chunks = streamed(subject, request)
        tokens += len(whole)
        if chunks != whole:
            return _fail("the streamed tokens differ from those of generate", request, whole, chunks, tokens)
    return _pass(f"{len(requests)} streams give the output of generate", tokens)


def judge_cancellation(subject: Subject, requests: Sequence[Request]) -> Finding:
    """A stream closed mid-way changes nothing for the next request."""
    tokens = 0
    expected = [list(subject.reference.greedy(request)) for request in requests]
    for index, request in enumerate(requests):
        following = (index + 1) % len(requests)
        streamed(subject, request, max_chunks=1)
        found = list(subject.generate([requests[following]])[0].token_ids)
        tokens += len(found)
        if found != expected[following]:
            return _fail(
                "the request after a cancelled stream has another output",
                requests[following],
                expected[following],
                found,
                tokens,
            )
    return _pass(f"{len(requests)} cancelled streams left the next request untouched", tokens)


def _fail(reason: str, request: Request, expected: list[int], observed: list[int], tokens: int) -> Finding:
    return Finding(
        verdict=Verdict.FAIL,
        evidence=Evidence.CONTRACT,
        reason=f"{reason}: expected {expected[:24]}, got {observed[:24]}",
        observations=tokens,
        diagnosis="chunks are dropped, repeated or not cut at the stop, or state survives a cancelled request (STREAM, KV)",
        details={"request": describe(request), "expected": expected, "observed": observed},
    )


def _pass(reason: str, tokens: int) -> Finding:
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=reason,
        observations=tokens,
        smallest_visible=1.0,
        smallest_visible_unit="wrong token",
    )
