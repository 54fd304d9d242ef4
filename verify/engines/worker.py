"""An engine in a process of its own, with its own environment: requests go down a pipe, answers come up."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from verify.engines.protocol import EngineError, EngineSettings, Failure, NoControl
from verify.log.line import first_problem
from verify.protocol import Capabilities, Generation, Request

SERVE = Path(__file__).parent / "serve.py"
OPEN_SECONDS = 600.0
ANSWER_SECONDS = 300.0
TAIL_LINES = 3


class WorkerEngine:
    """Starts `python serve.py engine_file`; its standard error is kept in the settings' folder.

    `answer_seconds` is the longest silence between two answers. A worker that dies or falls silent is not started again: the
    requests that it still owes fail, and so does every later one.
    """

    def __init__(
        self,
        settings: EngineSettings,
        engine_file: Path,
        *,
        open_seconds: float = OPEN_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._errors = settings.folder / "worker.log"
        self._answer_seconds = answer_seconds
        self._lost: Failure | None = None
        settings.folder.mkdir(parents=True, exist_ok=True)
        python = str(settings.python or sys.executable)
        try:
            with self._errors.open("w") as errors:
                self._process = subprocess.Popen(
                    [python, str(SERVE), str(engine_file)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    cwd=settings.folder,
                )
        except OSError as error:
            raise EngineError(
                f"--engine-python {python!r} cannot be started ({error.strerror}); it must be the Python of the engine's "
                f"environment, which `{engine_file.parent.name}/environment.sh VENV` makes"
            ) from error
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._send({"open": _opening(settings)})
        ready = self._receive(open_seconds)
        if isinstance(ready, Failure) or "ready" not in ready:
            self.close()
            said = ready.message if isinstance(ready, Failure) else ready.get("error") or ready.get("unsupported")
            raise EngineError(f"{engine_file.parent.name}: the engine cannot be opened: {said}")
        described = ready["ready"]
        try:
            self.capabilities = Capabilities.of(described["capabilities"])
        except ValueError as error:
            self.close()
            raise EngineError(f"{engine_file.parent.name}: {error}") from error
        self.name: str = described["name"]
        self.concurrency: tuple[int, ...] = tuple(described["concurrency"])
        self.same_seed_same_output: bool = described["same_seed_same_output"]

    def answer(
        self, requests: Sequence[Request], *, speculative: bool, concurrency: int
    ) -> Iterator[tuple[int, Generation | Failure]]:
        """Answers in the order in which the worker gives them; requests that it leaves out fail as malformed."""
        owed = set(range(len(requests)))
        asked = [plain(request) for request in requests]
        if self._lost is None:
            self._send({"answer": {"requests": asked, "speculative": speculative, "concurrency": concurrency}})
        while True:
            message = self._lost or self._receive(self._answer_seconds)
            if isinstance(message, Failure):
                self._lost = message
                yield from ((index, message) for index in sorted(owed))
                return
            if "unsupported" in message:
                raise (NotImplementedError if speculative else NoControl)(message["unsupported"])
            if "index" not in message:
                silent = Failure("malformed", "the worker gave no answer to this request")
                failure = Failure("status", message["error"]) if "error" in message else silent
                yield from ((index, failure) for index in sorted(owed))
                return
            index = message.pop("index")
            if index not in owed:
                raise EngineError(
                    f"{self.name}: an answer to request {index}, which was not asked or is answered already"
                )
            owed.remove(index)
            yield index, read_answer(message)

    def close(self) -> None:
        """End the worker; one that does not is killed."""
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout:
            self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put(None)

    def _send(self, message: dict[str, Any]) -> None:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # the reader finds the end of the pipe, and says why

    def _receive(self, seconds: float) -> dict[str, Any] | Failure:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self._process.kill()
            return Failure("timeout", f"no answer for {seconds:.0f} s; the worker was ended")
        if line is None:
            code = self._process.wait()
            return Failure("died", f"the worker ended with exit code {code}: {self._tail()}")
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            return Failure("malformed", f"the worker wrote no JSON: {line[:80]!r}")
        return message

    def _tail(self) -> str:
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in lines[-TAIL_LINES:]) or "it wrote no message"


def plain(request: Request) -> dict[str, Any]:
    """A request as the JSON that workers get."""
    described = asdict(request)
    described["sampling"].pop("grammar")
    return described


class _Answer(Generation):  # a name of its own: pydantic reads the annotations of the dataclass, unknown keys refused
    __pydantic_config__ = ConfigDict(extra="forbid")


_GENERATION = TypeAdapter(_Answer)


def read_answer(message: dict[str, Any]) -> Generation | Failure:
    """An answer as a worker writes it; what cannot be read is a failure."""
    if "failure" in message:
        return Failure("status", str(message["failure"]))
    try:
        return _GENERATION.validate_python(message)
    except ValidationError as error:
        return Failure("malformed", first_problem(error, whole="answer"))


def _opening(settings: EngineSettings) -> dict[str, Any]:
    return {
        "target": None if settings.target is None else str(settings.target),
        "draft": None if settings.draft is None else str(settings.draft),
        "options": dict(settings.options),
        "device": settings.device,
        "dtype": settings.dtype,
        "folder": str(settings.folder),
    }
