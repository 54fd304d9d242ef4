"""A small server that speaks vLLM's, llama.cpp's or the plain OpenAI dialect, decodes speculatively, and misbehaves on demand."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor

from verify.models.law import next_token_laws
from verify.protocol import Request, SamplingParams

VOCAB_SIZE = 32
END_OF_TEXT = 1
NUM_DRAFT_TOKENS = 3
Logits = Callable[[Sequence[int]], Tensor]  # text -> [V]


@dataclass(slots=True, kw_only=True)
class Faults:
    """What goes wrong; nothing by default."""

    busy: int = 0  # so many requests get 429 first
    status: int = 0
    sleep_s: float = 0.0
    dies_after: int | None = None  # completions
    killed_by: str = ""  # a field that is not neutral
    hangs_up: bool = False  # in the middle of every body
    cuts_streams: bool = False
    drops_from_streams: bool = False
    garbage: bool = False
    text_only: bool = False
    added_prompt_tokens: int = 0
    shifted_tokenizer: int = 0
    no_logprobs: bool = False
    refused: tuple[str, ...] = ()  # fields that get 400 where they are not neutral
    mixes_batches: bool = False  # with several requests in flight, drafts are emitted unverified
    finish_reason: str = ""


@dataclass(slots=True, kw_only=True)
class Fake:
    """The model, the dialect, and how often it was asked; `most_in_flight` is what a client's concurrency reached."""

    dialect: str = "vllm"
    speculative: bool = True
    model: str = "fake"
    switch: bool = False  # llama.cpp: a request may set the number of drafts
    counts: bool = True
    logits: Logits | None = None
    tokenizer: Any = None
    faults: Faults = field(default_factory=Faults)
    num_completions: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    streams: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    server: Any = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def serving(fake: Fake) -> Iterator[Fake]:
    """The fake, listening on a free port."""
    handler = type("Handler", (_Handler,), {"fake": fake})
    fake.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    fake.server.daemon_threads = True
    thread = threading.Thread(target=fake.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        thread.join()
        fake.server.server_close()


def table(text: Sequence[int]) -> Tensor:
    """Logits that the last two tokens choose."""
    generator = torch.Generator().manual_seed(1 + text[-1] + VOCAB_SIZE * (text[-2] if len(text) > 1 else 0))
    return torch.randn(VOCAB_SIZE, generator=generator, dtype=torch.float64) * 1.5


def draft_noise(text: Sequence[int], vocab_size: int) -> Tensor:
    """What a draft's logits have added to the target's."""
    generator = torch.Generator().manual_seed(10_000 + text[-1])
    return torch.randn(vocab_size, generator=generator, dtype=torch.float64) * 0.7


def decode(
    request: Request, logits: Logits, *, speculative: bool, verified: bool, generator: torch.Generator
) -> tuple[list[int], list[float], list[tuple[int, int]]]:
    """Token ids, raw log-probabilities and (drafted, accepted) of each round; `verified` False accepts every draft."""
    prompt, output, logprobs, rounds = list(request.prompt_token_ids), [], [], []

    def law(emitted: Sequence[int], *, draft: bool = False) -> Tensor:
        text = [*prompt, *emitted]
        row = logits(text)
        row = row + draft_noise(text, len(row)) if draft else row
        return next_token_laws(row.expand(len(emitted) + 1, -1), request, list(emitted))[-1]

    def draw(probs: Tensor) -> int:
        return int(torch.multinomial(probs, 1, generator=generator))

    def emit(token_id: int) -> bool:
        logprobs.append(float(logits([*prompt, *output]).double().log_softmax(-1)[token_id]))
        output.append(token_id)
        return len(output) == request.max_new_tokens or token_id in request.stop_token_ids

    ended = emit(draw(law([])))
    while not ended:
        drafts: list[int] = []
        for _ in range(NUM_DRAFT_TOKENS if speculative else 0):
            drafts.append(draw(law([*output, *drafts], draft=True)))
        accepted = 0
        for token_id in drafts:
            target_probs, draft_probs = law(output), law(output, draft=True)
            coin = float(torch.rand((), generator=generator, dtype=torch.float64))
            if verified and coin * float(draft_probs[token_id]) >= float(target_probs[token_id]):
                ended = emit(draw((target_probs - draft_probs).clamp(min=0)))
                break
            accepted += 1
            ended = emit(token_id)
            if ended:
                break
        else:
            ended = emit(draw(law(output)))
        rounds.append((len(drafts), accepted))
    return output, logprobs, rounds


class _Handler(BaseHTTPRequestHandler):
    fake: Fake

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name in the standard library)
        """Silence."""

    def handle(self) -> None:
        """A client that hangs up is no error of the server."""
        with suppress(BrokenPipeError, ConnectionResetError):
            super().handle()

    def do_GET(self) -> None:
        """What servers say of themselves."""
        fake = self.fake
        owner = {"vllm": "vllm", "llama": "llamacpp"}.get(fake.dialect, "someone")
        pages: dict[str, Any] = {"/v1/models": {"object": "list", "data": [{"id": fake.model, "owned_by": owner}]}}
        if fake.dialect == "vllm":
            pages["/version"] = {"version": "0.32.0"}
        if fake.dialect == "llama":
            pages["/props"] = {"build_info": "b1-fake", "total_slots": 4}
        if self.path in pages:
            self._send(pages[self.path])
        else:
            self._send({"error": {"message": f"no {self.path}"}}, status=404)

    def do_POST(self) -> None:
        """Tokenization and completions."""
        fake, faults = self.fake, self.fake.faults
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize" and fake.tokenizer is not None:
            ids = fake.tokenizer.encode(body.get("content") or body["prompt"], add_special_tokens=False).ids
            return self._send({"tokens": [token_id + faults.shifted_tokenizer for token_id in ids]})
        if self.path != ("/completion" if fake.dialect == "llama" else "/v1/completions"):
            return self._send({"error": {"message": f"no {self.path}"}}, status=404)
        with fake.lock:
            fake.num_completions += 1
            fake.in_flight += 1
            fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
            busy, faults.busy = faults.busy > 0, max(0, faults.busy - 1)
            dead = faults.dies_after is not None and fake.num_completions > faults.dies_after
            dead = dead or bool(faults.killed_by and body.get(faults.killed_by))
        try:
            if dead:
                fake.server.socket.close()  # nothing listens any more, and this request gets no answer
                return None
            time.sleep(faults.sleep_s)
            if busy or faults.status:
                return self._send({"error": {"message": "as told"}}, status=429 if busy else faults.status)
            refused = [name for name in faults.refused if body.get(name)]
            if refused:
                return self._send({"error": {"message": f"{refused[0]} is not supported"}}, status=400)
            return self._complete(body)
        finally:
            with fake.lock:
                fake.in_flight -= 1

    def _complete(self, body: dict[str, Any]) -> None:
        fake, faults = self.fake, self.fake.faults
        llama = fake.dialect == "llama"
        request = _llama_request(body) if llama else _request(body)
        speculative = fake.speculative and not (fake.switch and body.get("speculative.n_max") == 0)
        generator = torch.Generator()
        generator.manual_seed(request.seed) if request.seed is not None else generator.seed()
        with fake.lock:
            verified = not (faults.mixes_batches and fake.in_flight > 1)
        time.sleep(0.002 if faults.mixes_batches else 0)
        outputs = [
            decode(request, fake.logits or table, speculative=speculative, verified=verified, generator=generator)
            for _ in range(body.get("n", 1) if not llama else body.get("n_cmpl", 1))
        ]
        fake.streams += bool(body.get("stream"))
        if faults.garbage:
            return self._raw(b"<html>a proxy's page</html>")
        make = self._llama if llama else self._completions
        if not body.get("stream"):
            messages = make(body, request, outputs, speculative)
            return self._send(messages[0] if len(messages) == 1 else messages)
        return self._stream(body, request, outputs[0], speculative, make)

    def _completions(
        self, body: Any, request: Request, outputs: Any, speculative: bool, last: bool = True
    ) -> list[Any]:
        faults = self.fake.faults
        choices = []
        for index, (token_ids, logprobs, _) in enumerate(outputs):
            stopped = bool(token_ids) and token_ids[-1] in request.stop_token_ids
            choice: dict[str, Any] = {"index": index, "text": " ".join(map(str, token_ids))}
            choice["finish_reason"] = (faults.finish_reason or ("stop" if stopped else "length")) if last else None
            if body.get("return_token_ids") and not faults.text_only and self.fake.dialect == "vllm":
                choice |= {
                    "token_ids": token_ids,
                    "prompt_token_ids": body["prompt"] + [0] * faults.added_prompt_tokens,
                }
            if body.get("logprobs") is not None and not faults.no_logprobs:
                prefix = "" if faults.text_only else "token_id:"
                tokens = [f"{prefix}{token_id}" for token_id in token_ids]
                choice["logprobs"] = {"tokens": tokens, "token_logprobs": logprobs}
            choices.append(choice)
        message: dict[str, Any] = {"object": "text_completion", "model": body["model"], "choices": choices}
        if last:
            message["usage"] = {"prompt_tokens": len(body["prompt"]) + faults.added_prompt_tokens}
            if self.fake.counts and speculative and self.fake.dialect == "vllm" and len(outputs) == 1:
                message["metrics"] = {"speculative_decoding": _metrics(outputs[0][2])}
        return [message]

    def _llama(self, body: Any, request: Request, outputs: Any, speculative: bool, last: bool = True) -> list[Any]:
        faults = self.fake.faults
        messages = []
        for index, (token_ids, logprobs, rounds) in enumerate(outputs):
            stopped = bool(token_ids) and token_ids[-1] in request.stop_token_ids
            ids = token_ids if body.get("return_tokens") and not faults.text_only else []
            message = {"index": index, "content": " ".join(map(str, token_ids)), "tokens": ids, "stop": last}
            message["tokens_evaluated"] = len(body["prompt"]) + faults.added_prompt_tokens
            if body["n_probs"] and not faults.no_logprobs:
                pairs = zip(token_ids, logprobs, strict=True)
                message["completion_probabilities"] = [{"id": token_id, "logprob": value} for token_id, value in pairs]
            if last:
                message["stop_type"] = "eos" if stopped else "limit"
                message["generation_settings"] = {"speculative.n_max": 0} if self.fake.switch else {}
                message["timings"] = {"predicted_n": len(token_ids)}
                if self.fake.counts and sum(drafted for drafted, _ in rounds):
                    message["timings"] |= {
                        "draft_n": sum(drafted for drafted, _ in rounds),
                        "draft_n_accepted": sum(accepted for _, accepted in rounds),
                    }
            messages.append(message)
        return messages

    def _stream(self, body: Any, request: Request, output: Any, speculative: bool, make: Any) -> None:
        faults = self.fake.faults
        token_ids, logprobs, rounds = output
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        sizes, start = [1, *(accepted + 1 for _, accepted in rounds)], 0
        events = []
        for size in sizes:
            piece = slice(start, start + size)
            start += size
            if token_ids[piece]:
                events.append(make(body, request, [(token_ids[piece], logprobs[piece], rounds)], speculative, False)[0])
        if faults.drops_from_streams and len(events) > 2:
            del events[1]
        events += [] if faults.cuts_streams else make(body, request, [([], [], rounds)], speculative)
        if not faults.cuts_streams:
            self._finish(events[-1], token_ids[-1] in request.stop_token_ids, len(token_ids))
        for event in events:
            self.wfile.write(f": ping\n\ndata: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"" if faults.cuts_streams else b"data: [DONE]\n\n")

    def _finish(self, event: dict[str, Any], stopped: bool, num_tokens: int) -> None:
        if "choices" in event:
            event["choices"][0]["finish_reason"] = "stop" if stopped else "length"
        else:
            event["stop_type"] = "eos" if stopped else "limit"
            event["timings"]["predicted_n"] = num_tokens

    def _send(self, message: Any, *, status: int = 200) -> None:
        self._raw(json.dumps(message).encode(), status=status)

    def _raw(self, content: bytes, *, status: int = 200) -> None:
        completion = self.command == "POST" and self.path != "/tokenize" and status == 200
        hangs_up = self.fake.faults.hangs_up and completion
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if hangs_up else content)


def _request(body: dict[str, Any]) -> Request:
    stops = tuple(body.get("stop_token_ids") or ())
    return Request(
        prompt_token_ids=tuple(body["prompt"]),
        max_new_tokens=body["max_tokens"],
        min_new_tokens=body.get("min_tokens", 0),
        stop_token_ids=stops + (() if body.get("ignore_eos") else (END_OF_TEXT,)),
        seed=body.get("seed"),
        sampling=SamplingParams(
            temperature=body["temperature"],
            top_k=body.get("top_k", 0),
            top_p=body["top_p"],
            min_p=body.get("min_p", 0.0),
            repetition_penalty=body.get("repetition_penalty", 1.0),
            presence_penalty=body["presence_penalty"],
            frequency_penalty=body["frequency_penalty"],
            logit_bias={int(token_id): bias for token_id, bias in body.get("logit_bias", {}).items()},
            allowed_token_ids=body.get("allowed_token_ids"),
        ),
    )


def _llama_request(body: dict[str, Any]) -> Request:
    bias = {token_id: value for token_id, value in body["logit_bias"] if value is not False}
    return Request(
        prompt_token_ids=tuple(body["prompt"]),
        max_new_tokens=body["n_predict"],
        stop_token_ids=(END_OF_TEXT,),
        seed=None if body["seed"] == -1 else body["seed"],
        sampling=SamplingParams(
            temperature=body["temperature"],
            top_k=body["top_k"],
            top_p=body["top_p"],
            min_p=body["min_p"],
            repetition_penalty=body["repeat_penalty"],
            logit_bias=bias,
            forbidden_token_ids=tuple(token_id for token_id, value in body["logit_bias"] if value is False),
        ),
    )


def _metrics(rounds: Sequence[tuple[int, int]]) -> dict[str, Any]:
    histogram = [sum(1 for _, accepted in rounds if accepted == k) for k in range(NUM_DRAFT_TOKENS + 1)]
    return {
        "num_spec_steps": len(rounds),
        "num_draft_tokens": sum(drafted for drafted, _ in rounds),
        "num_accepted_draft_tokens": sum(accepted for _, accepted in rounds),
        "acceptance_histogram": histogram,
        "per_step_accepted": None,
        "per_step_drafted": None,
    }
