"""Streams of an engine: the chunks are the whole answer, and one that the client leaves costs nobody else anything."""

from collections.abc import Callable, Generator, Sequence

from verify.greedy.controls import first_divergence
from verify.judge import NotApplicable
from verify.protocol import Generation, Request
from verify.results import Evidence, Finding, Verdict
from verify.subject import describe


def judge_engine_streams(
    stream: Callable[[Request], Generator[list[int], None, None]], answers: Sequence[tuple[Request, Generation]]
) -> Finding:
    """Each request, greedy or seeded, streamed: its chunks are the answer that came whole; every second stream is left first.

    `answers` are whole answers of the same engine. An exception of `stream` passes through: a lost stream is no verdict.
    """
    if not answers:
        raise NotApplicable("no greedy or seeded request was answered")
    tokens = 0
    for number, (request, answer) in enumerate(answers):
        if number % 2:
            left = stream(answers[number - 1][0])
            next(left, None)
            left.close()
        chunks = [token_id for chunk in stream(request) for token_id in chunk]
        tokens += len(chunks)
        position = first_divergence(chunks, answer.token_ids)
        if position is not None:
            after = " after a stream that was left" if number % 2 else ""
            return Finding(
                verdict=Verdict.FAIL,
                evidence=Evidence.CONTRACT,
                reason=f"streamed{after}, an answer of {len(answer.token_ids)} tokens has {len(chunks)}, and differs from output "
                f"position {position} on",
                observations=tokens,
                diagnosis="chunks are dropped, repeated or not cut at the stop, or state survives a stream that was left "
                "(STREAM, KV)",
                details={"request": describe(request), "whole": list(answer.token_ids), "streamed": chunks},
            )
    return Finding(
        verdict=Verdict.PASS,
        evidence=Evidence.CONTRACT,
        reason=f"{len(answers)} streams hold what came whole, {len(answers) // 2} of them after one that was left",
        observations=tokens,
        smallest_visible=1.0,
        smallest_visible_unit="wrong token",
    )
