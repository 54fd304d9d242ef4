"""Servers behind OpenAI's completions interface: requests as a client sends them, several at once, each failure told."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any

from verify.engines.protocol import EngineError, EngineSettings, Failure, NoControl
from verify.engines.server.client import Client, Unanswered
from verify.engines.server.dialects import NoTokenIds
from verify.engines.server.opening import Server, open_server
from verify.protocol import Capabilities, Generation, Request, claims_needed

CONCURRENCY = (1, 4, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`--engine KEY=VALUE` of this engine."""

    timeout_s: float = 120.0
    """Limit for one whole answer."""
    n: int = 4
    """Equal neighbours among the requests, without a seed, are asked as one request for up to so many outputs."""
    stream: bool = False
    """Every answer is streamed."""
    logprobs: str = "raw"
    """Which log-probabilities the server is set to give: raw or processed."""
    same_seed: bool = False
    """The server claims one output for a seed, with speculation and without."""
    draft_model: bool = False
    """Drafts come from the model that --draft names: bets know its laws, and the errors that leak them."""
    without: tuple[str, ...] = ()
    """Claims, with commas, that are not made and not asked for."""
    api_key_file: Path | None = None
    """Holds the key that the server asks for."""


class OpenAIEngine:
    """`server` answers with speculation, `baseline` without; `verify.engines.protocol.Engine`."""

    concurrency: Sequence[int] = CONCURRENCY

    def __init__(self, server: Server, baseline: Server | None, options: Options) -> None:
        self.server = server
        self.baseline = baseline
        self.options = options
        self.name = "openai " + server.name
        self.notes = tuple(server.notes)
        self.same_seed_same_output = options.same_seed
        self.capabilities = Capabilities.of(server.claims | {"draft_model": options.draft_model})

    def answer(
        self, requests: Sequence[Request], *, speculative: bool, concurrency: int
    ) -> Iterator[tuple[int, Generation | Failure]]:
        """Yield (index, answer) as each ends, `concurrency` HTTP requests at once; raises `NoControl`."""
        server, plain = (self.server, False) if speculative else self._plain(requests)
        pool = ThreadPoolExecutor(concurrency)
        try:
            asked: dict[Future[list[Generation | Failure]], list[int]] = {
                pool.submit(self._ask, server, requests[bundle[0]], len(bundle), plain): bundle
                for bundle in self._bundles(requests, server)
            }
            for future in as_completed(asked):
                yield from zip(asked[future], future.result(), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)

    def stream(self, request: Request) -> Generator[list[int], None, None]:
        """The token ids of each event, as they come; raises `Unanswered`. Closing it hangs up."""
        reason = self.server.dialect.refuses(request)
        if reason:
            raise Unanswered("refused", reason)
        body = self.server.dialect.body(request, n=1, stream=True, plain=False)
        for event in self.server.client.events(self.server.dialect.path, body):
            try:
                chunk = [token_id for piece in self.server.dialect.pieces(event) for token_id in piece.token_ids]
            except NoTokenIds:
                raise Unanswered("malformed", "an event has text and no token ids") from None
            if chunk:
                yield chunk

    def close(self) -> None:
        """The servers are not ours to end."""

    def _plain(self, requests: Sequence[Request]) -> tuple[Server, bool]:
        """Who answers without speculation, and whether it has to be told."""
        if self.baseline is None:
            if self.server.switch:
                return self.server, True
            raise NoControl(
                f"{self.server.kind} has no switch for speculation in a request; start the same server without it and give "
                "--baseline-url URL"
            )
        lacking = sorted(
            {
                claim
                for request in requests
                for claim in claims_needed(replace(request, stop_token_ids=()))
                if not self.baseline.claims.get(claim)
            }
        )
        if lacking:
            raise NoControl(
                f"the baseline {self.baseline.name} lacks {', '.join(lacking)}, which the server under test has"
            )
        return self.baseline, False

    def _bundles(self, requests: Sequence[Request], server: Server) -> list[list[int]]:
        """Indices that are asked together."""
        bundles = []
        size = 1 if self.options.stream else server.max_outputs
        for _, run in groupby(
            range(len(requests)), key=lambda index: requests[index] if requests[index].seed is None else index
        ):
            same = list(run)
            bundles += [same[start : start + size] for start in range(0, len(same), size)]
        return bundles

    def _ask(self, server: Server, request: Request, n: int, plain: bool) -> list[Generation | Failure]:
        try:
            return list(server.ask(request, n=n, stream=self.options.stream, plain=plain))
        except Unanswered as error:
            return [error.failure] * n


def make_engine(settings: EngineSettings) -> OpenAIEngine:
    """Open the server at `base_url`, and the baseline where there is one; raises `EngineError`."""
    if settings.base_url is None:
        raise EngineError("the openai engine needs --base-url: the address of a server, such as http://localhost:8000")
    options = read_options(settings.options)
    if options.draft_model and settings.target is not None and settings.draft is None:
        raise EngineError(
            "--engine draft_model=yes without a draft other than the target; give --draft DIR, the checkpoint that the server "
            "drafts with, or leave draft_model out"
        )
    headers = {}
    if options.api_key_file is not None:
        try:
            headers["Authorization"] = f"Bearer {options.api_key_file.read_text(encoding='utf-8').strip()}"
        except OSError as error:
            raise EngineError(
                f"--engine api_key_file={options.api_key_file}: {error.strerror}; give the file that holds the key"
            ) from error

    def opened(option: str, url: str, model: str | None) -> Server:
        return open_server(
            Client(url, timeout_s=options.timeout_s, headers=headers),
            option=option,
            model=model,
            target=settings.target,
            max_outputs=options.n,
            raw=options.logprobs == "raw",
            without=options.without,
        )

    server = opened("--base-url", settings.base_url, settings.model)
    baseline = None
    if settings.baseline_url is not None:
        baseline = opened("--baseline-url", settings.baseline_url, settings.model)
    return OpenAIEngine(server, baseline, options)


def read_options(given: Mapping[str, str]) -> Options:
    """`--engine KEY=VALUE`; raises `EngineError` for what is unknown or cannot be read."""
    known: Mapping[str, Callable[[str], Any]] = {
        "timeout_s": _positive,
        "n": lambda value: int(_positive(value)),
        "stream": _yes,
        "logprobs": _logprobs,
        "same_seed": _yes,
        "draft_model": _yes,
        "without": _claims,
        "api_key_file": Path,
    }
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            nearest = get_close_matches(key, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise EngineError(f"--engine {key}={value}: unknown option{hint} Known: {', '.join(known)}")
        try:
            values[key] = known[key](value)
        except ValueError as error:
            raise EngineError(f"--engine {key}={value}: {error}") from error
    return Options(**values)


def _yes(value: str) -> bool:
    if value not in ("yes", "no"):
        raise ValueError("it must be yes or no")
    return value == "yes"


def _positive(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if number <= 0:
        raise ValueError("it must be a number above 0")
    return number


def _logprobs(value: str) -> str:
    if value not in ("raw", "processed"):
        raise ValueError("it must be raw or processed")
    return value


def _claims(value: str) -> tuple[str, ...]:
    known = [each.name for each in fields(Capabilities)] + ["n"]
    for name in value.split(","):
        if name not in known:
            raise ValueError(f"{name!r} is no claim; name some of {', '.join(known)}")
    return tuple(value.split(","))
