"""What is found out about a server before it is judged: its model, its dialect, its tokenizer, and what it can be asked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from verify.engines.protocol import EngineError
from verify.engines.server.client import Client, Unanswered
from verify.engines.server.dialects import Completions, Dialect, LlamaCpp, NoTokenIds, Piece, joined
from verify.protocol import Generation, Request, SamplingParams

PROBE_TOKENS = 8
TEXTS = ("The quick brown fox; it's 3.14 o'clock.", "def f(x):\n    return x**2  # naïve\n", "\tÄ € 漢字 🙂\r\n\n  end")
# What a server may refuse, as the smallest change of a request that needs it.
SETTINGS: Mapping[str, SamplingParams] = {
    "top_k": SamplingParams(top_k=4),
    "top_p": SamplingParams(top_p=0.9),
    "min_p": SamplingParams(min_p=0.05),
    "repetition_penalty": SamplingParams(repetition_penalty=1.1),
    "presence_penalty": SamplingParams(presence_penalty=0.5),
    "frequency_penalty": SamplingParams(frequency_penalty=0.5),
    "logit_bias": SamplingParams(logit_bias={5: 1.0}),
    "forbidden_tokens": SamplingParams(forbidden_token_ids=(5,)),
    "allowed_tokens": SamplingParams(allowed_token_ids=(5, 6, 7, 8)),
}


@dataclass(slots=True, kw_only=True)
class Server:
    """An open server. `claims` are what it did not refuse.

    `switch`: a request can ask for decoding without speculation. `max_outputs`: the largest `n` of a request. `notes` are what
    could not be checked.
    """

    client: Client
    dialect: Dialect
    kind: str
    model: str
    switch: bool = False
    max_outputs: int = 1
    claims: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Place, kind and model."""
        return f"server at {self.client.place} ({self.kind}), model {self.model}"

    def ask(self, request: Request, *, n: int = 1, stream: bool = False, plain: bool = False) -> list[Generation]:
        """The `n` outputs of a request; raises `Unanswered`."""
        return joined(self.parts(request, n=n, stream=stream, plain=plain), request, n=n)

    def parts(self, request: Request, *, n: int = 1, stream: bool = False, plain: bool = False) -> list[Piece]:
        """The pieces of an answer, all of them; raises `Unanswered`."""
        reason = self.dialect.refuses(request)
        if reason:
            raise Unanswered("refused", reason)
        body = self.dialect.body(request, n=n, stream=stream, plain=plain)
        try:
            if not stream:
                return self.dialect.pieces(self.client.post(self.dialect.path, body))
            events = self.client.events(self.dialect.path, body)
            return [piece for event in events for piece in self.dialect.pieces(event)]
        except NoTokenIds:
            raise Unanswered("malformed", "the answer has text and no token ids") from None

    def tokenize(self, text: str) -> tuple[int, ...] | None:
        """The server's own token ids of a text, without special tokens; None where it does not tell."""
        vllm = {"model": self.model, "prompt": text, "add_special_tokens": False}
        body = vllm | {"content": text, "add_special": False}
        try:
            return tuple(int(token_id) for token_id in self.client.post("/tokenize", body)["tokens"])
        except (Unanswered, LookupError, TypeError, ValueError):
            return None


def open_server(
    client: Client,
    *,
    option: str,
    model: str | None,
    target: Path | None,
    max_outputs: int,
    raw: bool,
    without: Sequence[str] = (),
) -> Server:
    """Find out what a server is; raises `EngineError`. `option` is the option that named it, for messages.

    `target` is the checkpoint directory whose end of text and tokenizer should be the server's; without it neither is known.
    `raw`: log-probabilities are of the model's own logits. `without`: claims that are not made, and not asked for.
    """
    try:
        server = _identified(client, option=option, model=model, end_of_text=end_of_text(target))
        _compare_tokenizers(server, target)
        first = Request(
            prompt_token_ids=_prompt(target), max_new_tokens=PROBE_TOKENS, stop_token_ids=end_of_text(target), seed=1
        )
        _check_ids(server, first)
    except Unanswered as error:
        remedy = "is it an OpenAI-compatible server?" if error.status else "start the server, or correct the address"
        raise EngineError(f"{option} {client.place}: {error}; {remedy}") from error
    _find_claims(server, first, max_outputs=max_outputs, raw=raw, without=without)
    return server


def end_of_text(target: Path | None) -> tuple[int, ...]:
    """Tokens at which a server of this checkpoint stops by itself."""
    for name in ("generation_config.json", "config.json"):
        found = _read(target, name).get("eos_token_id")
        if found is not None:
            return (found,) if isinstance(found, int) else tuple(found)
    return ()


def _read(target: Path | None, name: str) -> dict[str, Any]:
    """A file of a checkpoint; empty where there is none."""
    if target is None or not (target / name).is_file():
        return {}
    found: dict[str, Any] = json.loads((target / name).read_text(encoding="utf-8"))
    return found


def _identified(client: Client, *, option: str, model: str | None, end_of_text: tuple[int, ...]) -> Server:
    listed = client.get("/v1/models")
    entries = listed.get("data") if isinstance(listed, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(each, Mapping) and "id" in each for each in entries):
        raise EngineError(
            f"{option} {client.place}: /v1/models lists no models; give the root of an OpenAI-compatible server"
        )
    names = [str(each["id"]) for each in entries]
    if model is None and len(names) != 1:
        raise EngineError(f"{option} {client.place} serves {', '.join(names) or 'no model'}; choose one with --model")
    if model is not None and model not in names:
        nearest = get_close_matches(model, names, n=1, cutoff=0.0)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise EngineError(f"--model {model!r}: {option} {client.place} serves {', '.join(names) or 'no model'}{hint}")
    chosen = model or names[0]
    owner = str(next(each for each in entries if each["id"] == chosen).get("owned_by", ""))
    properties = _optional(client, "/props") if owner in ("", "llamacpp") else {}
    if owner == "llamacpp" or "build_info" in properties:
        build = properties.get("build_info", "")
        kind = f"llama.cpp {build}".strip()
        return Server(client=client, dialect=LlamaCpp(end_of_text=end_of_text), kind=kind, model=Path(chosen).name)
    extended = owner == "vllm"
    version = _optional(client, "/version").get("version", "") if extended else ""
    dialect = Completions(model=chosen, extended=extended, end_of_text=end_of_text)
    return Server(
        client=client, dialect=dialect, kind=f"vLLM {version}".strip() if extended else "generic", model=chosen
    )


def _optional(client: Client, path: str) -> Mapping[str, Any]:
    try:
        found = client.get(path)
    except Unanswered as error:
        if error.status is None:
            raise
        return {}
    return found if isinstance(found, Mapping) else {}


def _compare_tokenizers(server: Server, target: Path | None) -> None:
    """Token ids mean the same on both sides, as far as the server tells; where text is cut is the server's affair."""
    file = None if target is None else target / "tokenizer.json"
    if file is None or not file.is_file():
        server.notes.append("tokenizers not compared: no tokenizer.json of a target")
        return
    ours = Tokenizer.from_file(str(file))
    for text in TEXTS:
        theirs = server.tokenize(text)
        if theirs is None:
            server.notes.append("tokenizers not compared: the server has no /tokenize")
            return
        expected = tuple(ours.encode(text, add_special_tokens=False).ids)
        meant = ours.decode(list(theirs), skip_special_tokens=False)
        if meant != ours.decode(list(expected), skip_special_tokens=False):
            raise EngineError(
                f"the tokenizer of {server.name} differs from the target's: its ids of {text!r} are {meant!r} in the target's "
                f"{file.name}; give the --target that the server runs"
            )
        if theirs != expected:
            server.notes.append(
                f"the server cuts {text!r} into other tokens of the same vocabulary than the target does"
            )


def _prompt(target: Path | None) -> tuple[int, ...]:
    """A few tokens that a vocabulary has, nothing special among them."""
    config = _read(target, "config.json")
    size = int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 64)
    ordinary = [token_id for token_id in range(min(size, 64)) if token_id not in end_of_text(target)]
    return tuple(ordinary[len(ordinary) // 2 :][:6])


def _check_ids(server: Server, request: Request) -> None:
    """The prompt arrives as it was sent, and the answer comes as token ids."""
    body = server.dialect.body(
        replace(request, sampling=SamplingParams(temperature=0.0)), n=1, stream=False, plain=False
    )
    try:
        pieces = server.dialect.pieces(server.client.post(server.dialect.path, body))
    except NoTokenIds:
        raise EngineError(
            f"{server.name} answers with text and no token ids, and a text does not tell which tokens were emitted; use a server "
            "that gives them: vLLM (return_token_ids), llama.cpp (/completion), or log-probabilities of tokens named token_id:N"
        ) from None
    came = next((piece.num_prompt_tokens for piece in pieces if piece.num_prompt_tokens is not None), None)
    sent = len(request.prompt_token_ids)
    if came is None:
        server.notes.append("the server does not say how many prompt tokens it read")
    elif came != sent:
        raise EngineError(
            f"{server.name} read {came} tokens where {sent} were sent: it adds or drops some; switch off its special tokens"
        )
    if not any(piece.token_ids for piece in pieces):
        raise EngineError(
            f"{server.name} emitted no token at all on {list(request.prompt_token_ids)}; is its model loaded?"
        )


def _find_claims(server: Server, request: Request, *, max_outputs: int, raw: bool, without: Sequence[str]) -> None:
    """Ask once for each feature; what is refused, or comes without what was asked for, is not claimed."""

    def answers(claim: str, asked: Request, **how: Any) -> list[Generation]:
        if claim in without:
            return []
        try:
            return server.ask(asked, **how)
        except Unanswered as error:
            if error.failure.kind == "refused" and server.client.lost is None:
                return []
            try:
                server.ask(request)  # an engine may die of it while its server still answers
            except Unanswered:
                raise EngineError(
                    f"{server.name} answered, and no more when asked for {claim}: {error}; leave that out with "
                    f"--engine without={claim}"
                ) from error
            return []

    greedy = replace(request, sampling=SamplingParams(temperature=0.0))
    claims: dict[str, Any] = {"greedy": bool(answers("greedy", greedy)), "sampled": bool(answers("sampled", request))}
    claims |= {"batch": True, "mixed_sampling": claims["greedy"] and claims["sampled"]}
    for name, sampling in SETTINGS.items():
        claims[name] = bool(answers(name, replace(request, sampling=sampling)))
    claims["min_new_tokens"] = bool(answers("min_new_tokens", replace(request, min_new_tokens=2)))
    stopping = replace(request, stop_token_ids=(*request.stop_token_ids, 5))
    claims["stop_tokens"] = bool(answers("stop_tokens", stopping))
    claims["streaming"] = bool(answers("streaming", request, stream=True))
    if answers("logprobs", replace(request, logprobs=True)):
        claims["logprobs"] = "raw" if raw else "processed"
    # Servers that promise seeds are held to it; of others only one that keeps a seed is asked for more.
    kept = [answers("seeds", request), answers("seeds", request)]
    claims["seeds"] = bool(kept[0]) and (server.kind != "generic" or _same(*kept[0], *kept[1]))
    claims["seeds_per_request"] = claims["seeds"]
    long = answers("record", replace(request, max_new_tokens=4 * PROBE_TOKENS))
    claims["record"] = any(each.record is not None for each in long)
    fresh = replace(request, seed=None)
    while max_outputs > 1 and not answers("n", fresh, n=max_outputs):
        max_outputs -= 1
    server.max_outputs = max_outputs
    server.switch = isinstance(server.dialect, LlamaCpp) and _switches(server, request)
    server.claims = claims


def _same(*answers: Generation) -> bool:
    """Two answers to one seeded request, as equal as a claim of seeds needs."""
    return len(answers) == 2 and list(answers[0].token_ids) == list(answers[1].token_ids)


def _switches(server: Server, request: Request) -> bool:
    """Whether llama.cpp lets a request set the number of drafts: its answer then repeats it."""
    message = server.client.post(server.dialect.path, server.dialect.body(request, n=1, stream=False, plain=True))
    settings = message.get("generation_settings") if isinstance(message, Mapping) else None
    return isinstance(settings, Mapping) and settings.get("speculative.n_max") == 0
