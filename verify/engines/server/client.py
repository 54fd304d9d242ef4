"""A client of one HTTP server: JSON out, JSON or events back, every way of failing told apart."""

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any, Final
from urllib.parse import urlsplit

from verify.engines.protocol import Failure, FailureKind

MAX_TRIES = 6
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 8.0
BUSY: Final = (429, 503)
ALIVE_S = 10.0
MAX_TIMEOUTS_IN_A_ROW = 3
CHUNK_BYTES = 1 << 16
MESSAGE_CHARACTERS = 300


class Unanswered(Exception):
    """A request without an answer; `status` is the server's, where it gave one."""

    def __init__(self, kind: FailureKind, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)
        self.status = status


class Client:
    """Talks to the server at `url`, whose path may end in /v1; several threads may use it at once.

    A busy server (429, 503) is asked again, at most `MAX_TRIES` times with growing waits; nothing else is. `timeout_s` is the
    limit for a whole answer. A server that is gone, or lets `MAX_TIMEOUTS_IN_A_ROW` requests time out, is `lost` and asked
    nothing more.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        self.place = parts.netloc.rpartition("@")[2]
        self.timeout_s = timeout_s
        self.lost: Failure | None = None
        self._https = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json", "Connection": "close", **(headers or {})}
        self._sleep = sleep
        self._timeouts = 0
        self._answered = False

    def get(self, path: str, *, timeout_s: float | None = None) -> Any:
        """The JSON at a path; raises `Unanswered`."""
        return self._whole("GET", path, None, timeout_s or self.timeout_s)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer; raises `Unanswered`."""
        return self._whole("POST", path, body, self.timeout_s)

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """The JSON of each server-sent event until the stream ends; raises `Unanswered`. Closing it hangs up."""
        deadline = time.monotonic() + self.timeout_s
        with self._answering("POST", path, body, deadline) as read:
            rest, done = b"", False
            while chunk := read():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    field, _, data = line.strip().partition(b":")
                    if field != b"data":
                        continue
                    if data.strip() == b"[DONE]":
                        done = True
                    elif not done:
                        yield _json(data)
        if rest.strip():
            raise Unanswered("malformed", f"the stream ends in the middle of an event: {rest[:80]!r}")

    def alive(self) -> bool:
        """Whether the server still answers anything."""
        try:
            self._once("GET", "/v1/models", None, time.monotonic() + ALIVE_S)
        except Unanswered as error:
            return error.status is not None
        return True

    def _whole(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        with self._answering(method, path, body, deadline) as read:
            content = b"".join(iter(read, b""))
        return _json(content)

    @contextmanager
    def _answering(
        self, method: str, path: str, body: Mapping[str, Any] | None, deadline: float
    ) -> Iterator[Callable[[], bytes]]:
        """Reads an answer piece by piece, b"" at its end; what goes wrong on the way becomes `Unanswered`."""
        if self.lost is not None:
            raise Unanswered(self.lost.kind, self.lost.message)
        wait = FIRST_WAIT_S
        for attempt in range(1, MAX_TRIES + 1):
            try:
                response, connection = self._open(method, path, body, deadline)
            except Unanswered as error:
                if error.status not in BUSY:
                    raise self._judged(error) from error
                if attempt == MAX_TRIES or time.monotonic() + wait > deadline:
                    raise Unanswered(
                        "status", f"{error.failure.message}; asked {attempt} times", status=error.status
                    ) from error
                self._sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
            else:
                break
        try:
            yield lambda: _read(response, connection, deadline)
            self._timeouts, self._answered = 0, True
        except _TROUBLE as error:
            raise self._judged(self._told(error)) from error
        finally:
            response.close()
            connection.close()

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None, deadline: float) -> bytes:
        response, connection = self._open(method, path, body, deadline)
        try:
            return b"".join(iter(lambda: _read(response, connection, deadline), b""))
        except _TROUBLE as error:
            raise self._told(error) from error
        finally:
            response.close()
            connection.close()

    def _open(
        self, method: str, path: str, body: Mapping[str, Any] | None, deadline: float
    ) -> tuple[HTTPResponse, "_Connection"]:
        connection = _Connection(self._https, self._host, self._port, max(0.01, deadline - time.monotonic()))
        try:
            connection.connect()
        except TimeoutError as error:
            connection.close()
            raise self._told(error) from error
        except OSError as error:
            connection.close()
            raise Unanswered("refused", f"no connection to {self.place}: {error.strerror or error}") from error
        try:
            content = None if body is None else json.dumps(body).encode()
            response = connection.ask(method, self._root + path, content, self._headers)
            if response.status >= 300:
                said = _message(response.read(CHUNK_BYTES))
                kind: FailureKind = "status" if response.status >= 500 or response.status in BUSY else "refused"
                raise Unanswered(kind, f"{response.status} {response.reason}: {said}", status=response.status)
        except _TROUBLE as error:
            connection.close()
            raise self._told(error) from error
        except Unanswered:
            connection.close()
            raise
        return response, connection

    def _told(self, error: Exception) -> Unanswered:
        if isinstance(error, TimeoutError):
            return Unanswered("timeout", f"no complete answer from {self.place} in {self.timeout_s:g} s")
        what = "in the middle of an answer" if isinstance(error, IncompleteRead) else "before an answer was complete"
        return Unanswered("malformed", f"{self.place} closed the connection {what} ({type(error).__name__})")

    def _judged(self, error: Unanswered) -> Unanswered:
        """The failure of a request, or the server's where it is gone."""
        kind, message = error.failure.kind, error.failure.message
        if kind == "timeout":
            self._timeouts += 1
            if self._timeouts >= MAX_TIMEOUTS_IN_A_ROW:
                message = f"{message}, {self._timeouts} times in a row; nothing more is asked"
                self.lost = Failure("died", message)
        elif kind == "malformed" or (kind == "refused" and error.status is None):
            if not self.alive():
                self.lost = Failure("died", f"{message}; the server is gone" if self._answered else message)
        else:
            self._timeouts = 0
        return error if self.lost is None else Unanswered(self.lost.kind, self.lost.message)


class _Connection:
    """One request on one connection; the socket is kept, so that each read gets the time that is left."""

    def __init__(self, https: bool, host: str, port: int | None, timeout_s: float) -> None:
        make = HTTPSConnection if https else HTTPConnection
        self._http = make(host, port, timeout=timeout_s)
        self.socket: socket.socket | None = None

    def connect(self) -> None:
        self._http.connect()
        self.socket = self._http.sock

    def ask(self, method: str, path: str, content: bytes | None, headers: Mapping[str, str]) -> HTTPResponse:
        self._http.request(method, path, body=content, headers=dict(headers))
        return self._http.getresponse()

    def close(self) -> None:
        self._http.close()


_TROUBLE: Final = (HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def _read(response: HTTPResponse, connection: _Connection, deadline: float) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    if connection.socket is not None and connection.socket.fileno() >= 0:
        connection.socket.settimeout(left)
    piece = response.read1(CHUNK_BYTES)
    if not piece and response.length:  # what the header promised and did not come
        raise IncompleteRead(piece, response.length)
    return piece


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise Unanswered("malformed", f"the answer is no JSON: {content[:80]!r}") from None


def _message(content: bytes) -> str:
    """What an error's body says, in one line."""
    text = content.decode(errors="replace")
    try:
        said = json.loads(content)
    except ValueError:
        said = None
    if isinstance(said, dict):
        error = said.get("error", said)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    return " ".join(text.split())[:MESSAGE_CHARACTERS] or "no message"
