"""llama-server: one process a number of drafts, one without speculation as the control, asked over HTTP."""

import atexit
import json
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from verify.engines.llama_cpp.mapping import server_body

SLOTS = 16
START_SECONDS = 120.0
NUM_DRAFTS = 3  # of the process that is started at once: what most requests ask for, and flags are refused before any
# The server's own lookups, whose defaults suit long texts: how long an n-gram they look for, and how many tokens they draft.
LOOKUPS: Mapping[str, Sequence[str]] = {
    "ngram-simple": ("--spec-ngram-simple-size-n {ngram}", "--spec-ngram-simple-size-m {drafts}"),
    "ngram-map-k": ("--spec-ngram-map-k-size-n {ngram}", "--spec-ngram-map-k-size-m {drafts}"),
    "ngram-map-k4v": ("--spec-ngram-map-k4v-size-n {ngram}", "--spec-ngram-map-k4v-size-m {drafts}"),
    "ngram-mod": ("--spec-ngram-mod-n-match {ngram}", "--spec-ngram-mod-n-min 1", "--spec-ngram-mod-n-max {drafts}"),
    "ngram-cache": (),
}
ANSWER_SECONDS = 240.0
LAST_LINES = 3
CAPABILITIES = {
    "greedy": True,
    "sampled": True,
    "top_k": True,
    "top_p": True,
    "min_p": True,
    "repetition_penalty": True,
    "logit_bias": True,
    "forbidden_tokens": True,
    "allowed_tokens": True,
    "batch": True,
    "mixed_sampling": True,
    "seeds": True,
    "seeds_per_request": True,
    "record": True,
    "logprobs": "raw",
}


class Server:
    """Speculation with a draft model or one of `LOOKUPS`. Drafts a round are a setting of the process: each number has its own.

    Only the end of text stops it: the server knows stop strings, not stop tokens.
    """

    concurrency = (1, 4, SLOTS)
    same_seed_same_output = True  # one draw of the target's sampler an emitted token, with drafts and without

    def __init__(
        self,
        *,
        program: Path,
        target: Path,
        draft: Path | None,
        version: str,
        spec_type: str,
        ngram: int,
        context: int,
        threads: int,
        vocab_size: int,
        flags: Sequence[str],
        folder: Path,
    ) -> None:
        self._command = [
            str(program),
            "--model",
            str(target),
            "--ctx-size",
            str(SLOTS * context),
            "--parallel",
            str(SLOTS),
        ]
        self._command += ["--threads", str(threads), "--threads-batch", str(threads), "--no-warmup"]
        self._command += ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"]
        self._speculation = ["--spec-type", spec_type]
        drafts = spec_type not in LOOKUPS
        if drafts:
            if draft is None:
                raise ValueError(
                    f"spec_type={spec_type} without a draft; give --draft, or --engine spec_type=ngram-simple"
                )
            self._speculation += ["--spec-draft-model", str(draft), "--spec-draft-threads", str(threads)]
            self._speculation += ["--spec-draft-type-k", "f32", "--spec-draft-type-v", "f32"]
            self._speculation += ["--spec-draft-n-max", "{drafts}"]
        for words in LOOKUPS.get(spec_type, ()):
            self._speculation += words.replace("{ngram}", str(ngram)).split()
        self._flags = list(flags)
        self._vocab_size = vocab_size
        self._folder = folder
        self._processes: dict[int, tuple[subprocess.Popen[bytes], str]] = {}
        atexit.register(self.close)  # a worker whose pipe breaks must not leave servers behind
        self.name = f"llama-server ({version}), {spec_type}"
        self.capabilities: dict[str, Any] = CAPABILITIES | {"draft_model": drafts}
        self._url(NUM_DRAFTS)

    def answer(
        self, requests: Sequence[Mapping[str, Any]], *, speculative: bool, concurrency: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """At most `concurrency` requests at once, each answered as it ends."""
        urls = [self._url(request["num_draft_tokens"] if speculative else 0) for request in requests]
        with ThreadPoolExecutor(concurrency) as pool:
            asked = {
                pool.submit(self._ask, url, request, speculative=speculative): index
                for index, (url, request) in enumerate(zip(urls, requests, strict=True))
            }
            for future in as_completed(asked):
                yield asked[future], future.result()

    def close(self) -> None:
        """End the processes."""
        for process, _ in self._processes.values():
            process.terminate()
        for process, _ in self._processes.values():
            process.wait(10)
        self._processes = {}

    def _ask(self, url: str, request: Mapping[str, Any], *, speculative: bool) -> dict[str, Any]:
        body = server_body(request, vocab_size=self._vocab_size)
        call = Request(f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urlopen(call, timeout=ANSWER_SECONDS) as answered:
                said = json.load(answered)
        except HTTPError as error:
            return {"failure": f"status {error.code}: {error.read().decode(errors='replace')[:300]}"}
        except (URLError, TimeoutError, ConnectionError) as error:
            return {"failure": f"{type(error).__name__}: {error}"}
        return generation(said, speculative=speculative)

    def _url(self, num_draft_tokens: int) -> str:
        if num_draft_tokens not in self._processes:
            self._processes[num_draft_tokens] = self._started(num_draft_tokens)
        return self._processes[num_draft_tokens][1]

    def _started(self, num_draft_tokens: int) -> tuple[subprocess.Popen[bytes], str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [*self._command, "--host", "127.0.0.1", "--port", str(port)]
        if num_draft_tokens:
            command += [word.replace("{drafts}", str(num_draft_tokens)) for word in self._speculation] + self._flags
        with (self._folder / f"server-{num_draft_tokens}.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends and process.poll() is None:
            try:
                with urlopen(f"{url}/health", timeout=5):
                    return process, url
            except (URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        process.kill()
        lines = [line.strip() for line in Path(log.name).read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines
        said = " | ".join(errors[-LAST_LINES:]) or "it wrote no message"
        if self._flags:
            raise ValueError(
                f"--engine flags={' '.join(self._flags)!r}: llama-server does not start with them ({said}); "
                f"give flags that `{self._command[0]} --help` lists"
            )
        raise RuntimeError(f"llama-server did not start: {said}")


def generation(said: Mapping[str, Any], *, speculative: bool) -> dict[str, Any]:
    """The keys of `verify.protocol.Generation` from an answer of POST /completion."""
    answer: dict[str, Any] = {
        "token_ids": said["tokens"],
        "finish_reason": "stop" if said["stop_type"] == "eos" else "length",
    }
    if "completion_probabilities" in said:
        answer["logprobs"] = [entry["logprob"] for entry in said["completion_probabilities"]]
    if speculative:
        timings = said["timings"]
        answer["record"] = {
            "num_spec_steps": 0,  # the server counts them in /metrics only, over all requests
            "num_draft_tokens": timings.get("draft_n", 0),
            "num_accepted_draft_tokens": timings.get("draft_n_accepted", 0),
            "acceptance_histogram": [],
        }
    return answer
