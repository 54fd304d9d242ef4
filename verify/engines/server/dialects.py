"""How servers are asked and how they answer: completions as in OpenAI's and vLLM's interface, and llama.cpp's own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from verify.engines.llama_cpp.mapping import server_body
from verify.engines.server.client import Unanswered
from verify.engines.vllm.engine import record_of
from verify.engines.worker import plain as plain_json
from verify.protocol import AcceptanceRecord, Generation, Request

TOKEN_ID = "token_id:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Part of an output: the whole of it, or what one event of a stream brings; `index` is its place among `n` outputs."""

    index: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: str | None = None
    record: AcceptanceRecord | None = None
    num_prompt_tokens: int | None = None


class Dialect(Protocol):
    """Requests and answers of one kind of server; `path` is where it is asked."""

    @property
    def path(self) -> str:
        """Where requests go."""

    def refuses(self, request: Request) -> str:
        """Why a request cannot be put to the server without changing what it means; empty where it can."""

    def body(self, request: Request, *, n: int, stream: bool, plain: bool) -> dict[str, Any]:
        """The request as JSON; `plain` asks for decoding without speculation, where the server can be asked."""

    def pieces(self, message: Any) -> list[Piece]:
        """What an answer or an event holds; raises `Unanswered` where it cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """/v1/completions. `extended`: with vLLM's settings beyond OpenAI's, all sent, so that no default of the server acts."""

    model: str
    extended: bool
    end_of_text: tuple[int, ...] = ()
    path: str = "/v1/completions"

    def refuses(self, request: Request) -> str:
        """Settings that the interface lacks; a stop at the end of text that cannot be switched off."""
        sampling = request.sampling
        if sampling.forbidden_token_ids or sampling.grammar is not None:
            return "the completions interface has no forbidden tokens and no automaton"
        if self.extended:
            return ""
        beyond = (sampling.top_k, sampling.min_p, sampling.repetition_penalty != 1, request.min_new_tokens)
        if any(beyond) or sampling.allowed_token_ids is not None:
            return "OpenAI's completions interface has none of top_k, min_p, repetition_penalty, min_new_tokens, allowed tokens"
        return _only_end_of_text(request, self.end_of_text)

    def body(self, request: Request, *, n: int, stream: bool, plain: bool) -> dict[str, Any]:
        """Fields of vLLM's completions interface."""
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(request.prompt_token_ids),
            "max_tokens": request.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        body |= {"seed": request.seed} if request.seed is not None else {}
        if sampling.logit_bias:
            body["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias.items()}
        if self.extended:
            body |= {
                "top_k": sampling.top_k,
                "min_p": sampling.min_p,
                "repetition_penalty": sampling.repetition_penalty,
                "min_tokens": request.min_new_tokens,
                "stop_token_ids": list(request.stop_token_ids),
                "ignore_eos": not set(self.end_of_text) & set(request.stop_token_ids),
            }
            if sampling.allowed_token_ids is not None:
                body["allowed_token_ids"] = list(sampling.allowed_token_ids)
        if request.logprobs or not self.extended:
            body["logprobs"] = 1
        body |= {"n": n} if n > 1 else {}
        body |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        return body

    def pieces(self, message: Any) -> list[Piece]:
        """Outputs of an answer or an event; the last event of a stream has the counts only."""
        if not isinstance(message, Mapping) or not isinstance(message.get("choices"), Sequence):
            raise Unanswered("malformed", f"the answer has no choices: {str(message)[:80]}")
        usage, metrics = message.get("usage") or {}, message.get("metrics") or {}
        record = _speculative(metrics.get("speculative_decoding"))
        prompt = usage.get("prompt_tokens")
        choices = message["choices"] or ([{}] if usage or record else [])
        return [self._piece(choice, record, prompt) for choice in choices]

    def _piece(self, choice: Any, record: AcceptanceRecord | None, prompt: int | None) -> Piece:
        if not isinstance(choice, Mapping):
            raise Unanswered("malformed", f"a choice is no object: {str(choice)[:80]}")
        logprobs = choice.get("logprobs") or {}
        token_ids = choice.get("token_ids")
        if token_ids is None:
            tokens = logprobs.get("tokens") or []
            if not all(isinstance(token, str) and token.startswith(TOKEN_ID) for token in tokens):
                raise NoTokenIds
            token_ids = [token.removeprefix(TOKEN_ID) for token in tokens]
            if not token_ids and choice.get("text"):
                raise NoTokenIds
        sent = choice.get("prompt_token_ids")
        return Piece(
            index=choice.get("index", 0),
            token_ids=_ids(token_ids),
            logprobs=_numbers(logprobs.get("token_logprobs") or ()),
            finish_reason=_finish(choice.get("finish_reason"), {"stop": "stop", "length": "length"}),
            record=record,
            num_prompt_tokens=prompt if sent is None else len(sent),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCpp:
    """llama.cpp's /completion, which gives token ids. Its presence and frequency penalties count the prompt: not asked."""

    end_of_text: tuple[int, ...] = ()
    path: str = "/completion"

    def refuses(self, request: Request) -> str:
        """There are no stop tokens but the end of text, and ignoring that forbids it."""
        sampling = request.sampling
        if sampling.presence_penalty or sampling.frequency_penalty:
            return "llama.cpp's presence and frequency penalties count the prompt too"
        if request.min_new_tokens or sampling.allowed_token_ids is not None or sampling.grammar is not None:
            return "llama.cpp's /completion has no min_new_tokens, no allowed tokens and no automaton over token ids"
        return _only_end_of_text(request, self.end_of_text)

    def body(self, request: Request, *, n: int, stream: bool, plain: bool) -> dict[str, Any]:
        """As llama.cpp's worker asks it, with what a client may add."""
        body = server_body(plain_json(request), vocab_size=0)  # its size is for allowed tokens, which are refused
        body |= {"n_cmpl": n} if n > 1 else {}
        body |= {"stream": True} if stream else {}
        body |= {"speculative.n_max": 0} if plain else {}
        return body

    def pieces(self, message: Any) -> list[Piece]:
        """Outputs of an answer, a list where there are several, or of an event."""
        return [self._piece(each) for each in (message if isinstance(message, list) else [message])]

    def _piece(self, message: Any) -> Piece:
        if not isinstance(message, Mapping) or "tokens_evaluated" not in message:
            raise Unanswered("malformed", f"the answer is not one of /completion: {str(message)[:80]}")
        token_ids = message.get("tokens") or []
        if not token_ids and message.get("content"):
            raise NoTokenIds
        finish = message.get("stop_type") if message.get("stop") else None
        probabilities = message.get("completion_probabilities") or []
        timings = message.get("timings") or {}
        return Piece(
            index=message.get("index", 0),
            token_ids=_ids(token_ids),
            logprobs=_numbers([each.get("logprob") for each in probabilities]),
            finish_reason=_finish(finish, {"eos": "stop", "limit": "length"}),
            record=_totals(timings) if message.get("stop") else None,
            num_prompt_tokens=message["tokens_evaluated"],
        )


class NoTokenIds(Exception):
    """The answer holds text only."""


def joined(pieces: Iterable[Piece], request: Request, *, n: int) -> list[Generation]:
    """The outputs that pieces make up; raises `Unanswered` where one is missing, is cut off, or lacks logprobs asked for."""
    parts: dict[int, list[Piece]] = {}
    loose: list[Piece] = []
    for piece in pieces:
        holds = piece.token_ids or piece.finish_reason
        (parts.setdefault(piece.index, []) if holds else loose).append(piece)
    if len(parts) != n:
        raise Unanswered("malformed", f"{n} outputs were asked for and {len(parts)} came")
    record = next((piece.record for piece in loose if piece.record is not None), None)
    return [_joined(parts[index], request, record if n == 1 else None) for index in sorted(parts)]


def _joined(pieces: Sequence[Piece], request: Request, record: AcceptanceRecord | None) -> Generation:
    reasons = [piece.finish_reason for piece in pieces if piece.finish_reason is not None]
    if not reasons:
        raise Unanswered("malformed", "the output has no finish_reason: it was cut off")
    token_ids = [token_id for piece in pieces for token_id in piece.token_ids]
    logprobs = [logprob for piece in pieces for logprob in piece.logprobs]
    if request.logprobs and len(logprobs) != len(token_ids):
        raise Unanswered("malformed", f"{len(token_ids)} tokens came with {len(logprobs)} log-probabilities")
    record = next((piece.record for piece in pieces if piece.record is not None), record)
    return Generation(
        token_ids=token_ids,
        finish_reason=reasons[-1],
        logprobs=logprobs if request.logprobs else None,
        record=None if record is None else _emitted(record, len(token_ids)),
    )


def _emitted(record: AcceptanceRecord, num_tokens: int) -> AcceptanceRecord:
    """Counts of what was emitted, from counts of each round of what was accepted: vLLM's, mended as its worker mends them."""
    if record.accepted_per_step is None or record.drafted_per_step is None:
        return record
    counts = record_of(
        num_tokens=num_tokens,
        num_spec_tokens=len(record.acceptance_histogram) - 1,
        num_draft_tokens=record.num_draft_tokens,
        per_step_drafted=record.drafted_per_step,
        per_step_accepted=record.accepted_per_step,
    )
    return AcceptanceRecord(**counts)


def _only_end_of_text(request: Request, end_of_text: Sequence[int]) -> str:
    """Why a server that stops at its end of text and nowhere else cannot answer as asked."""
    foreign = set(request.stop_token_ids) - set(end_of_text)
    if foreign:
        return f"the server has no stop tokens; {min(foreign)} is not its end of text"
    stays = set(end_of_text) - set(request.stop_token_ids) - set(request.sampling.forbidden_token_ids)
    return f"the server stops at its end of text {min(stays)}; name it in stop_token_ids" if stays else ""


def _finish(said: Any, known: Mapping[str, str]) -> str | None:
    if said is None:
        return None
    if said not in known:
        raise Unanswered("status", f"the server ended the output with {said!r}; expected one of {', '.join(known)}")
    return known[said]


def _ids(values: Any) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in values)
    except (TypeError, ValueError):
        raise Unanswered("malformed", f"token ids are no integers: {str(values)[:80]}") from None


def _numbers(values: Any) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values if value is not None)
    except (TypeError, ValueError):
        raise Unanswered("malformed", f"log-probabilities are no numbers: {str(values)[:80]}") from None


def _speculative(said: Any) -> AcceptanceRecord | None:
    """vLLM's per-request metrics."""
    if said is None:
        return None
    try:
        return AcceptanceRecord(
            num_spec_steps=int(said["num_spec_steps"]),
            num_draft_tokens=int(said["num_draft_tokens"]),
            num_accepted_draft_tokens=int(said["num_accepted_draft_tokens"]),
            acceptance_histogram=[int(count) for count in said["acceptance_histogram"]],
            drafted_per_step=said.get("per_step_drafted"),
            accepted_per_step=said.get("per_step_accepted"),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Unanswered("malformed", f"speculative metrics cannot be read: {str(said)[:80]}") from None


def _totals(timings: Mapping[str, Any]) -> AcceptanceRecord | None:
    """llama.cpp's counts, which hold no rounds: taken as those that its tokens need if each emits one more than it accepts."""
    drafted, accepted = timings.get("draft_n"), timings.get("draft_n_accepted")
    if not drafted or accepted is None:
        return None
    return AcceptanceRecord(
        num_spec_steps=max(1, int(timings.get("predicted_n", 0)) - 1 - int(accepted)),
        num_draft_tokens=int(drafted),
        num_accepted_draft_tokens=int(accepted),
        acceptance_histogram=[],
    )
