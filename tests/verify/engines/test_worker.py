"""The pipe to an engine in another process: answers, and every way in which a worker can fail."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from verify.engines.protocol import EngineError, EngineSettings, Failure, NoControl
from verify.engines.worker import WorkerEngine
from verify.protocol import Capabilities, Generation, Request

STUB = Path(__file__).parent / "workers" / "stub.py"
REQUESTS = [Request(prompt_token_ids=(token_id,), max_new_tokens=2) for token_id in (5, 6, 7)]
Open = Callable[..., WorkerEngine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Open]:
    started: list[WorkerEngine] = []

    def start(do: str = "", *, python: Path | None = None, answer_seconds: float = 30.0) -> WorkerEngine:
        settings = EngineSettings(
            target=tmp_path, draft=None, folder=tmp_path / "engine", options={"do": do}, python=python
        )
        started.append(WorkerEngine(settings, STUB, answer_seconds=answer_seconds))
        return started[-1]

    yield start
    for each in started:
        each.close()


def answers_of(engine: WorkerEngine, *, speculative: bool = True) -> dict[int, Generation | Failure]:
    return dict(engine.answer(REQUESTS, speculative=speculative, concurrency=1))


def test_answers_come_through_whatever_the_engine_prints(start: Open, tmp_path: Path) -> None:
    engine = start()
    assert (engine.name, engine.concurrency, engine.capabilities) == ("stub 1.0", (1,), Capabilities(greedy=True))
    for _ in range(2):
        found = answers_of(engine)
        assert [found[i].token_ids for i in range(3)] == [[5, 5], [6, 6], [7, 7]]  # type: ignore[union-attr]
    assert "what engines print" in (tmp_path / "engine" / "worker.log").read_text()


@pytest.mark.parametrize(
    ("do", "kind", "words"),
    [
        ("die", "died", "exit code 3: .*cudaErrorIllegalAddress"),
        ("raise", "status", "RuntimeError: no free block"),
    ],
)
def test_what_is_still_owed_fails(start: Open, do: str, kind: str, words: str) -> None:
    found = answers_of(engine := start(do))
    assert isinstance(found[0], Generation)
    for index in (1, 2):
        failure = found[index]
        assert isinstance(failure, Failure)
        assert failure.kind == kind
        assert re.search(words, failure.message)
    again = answers_of(engine)
    assert isinstance(again[0], Failure if do == "die" else Generation)


def test_silence_is_a_time_out(start: Open) -> None:
    found = answers_of(start("fall silent", answer_seconds=1.0))
    assert isinstance(found[0], Generation)
    assert [found[i].kind for i in (1, 2)] == ["timeout", "timeout"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("do", "failure"),
    [
        ("fail once", Failure("status", "the request was preempted")),
        ("leave out", Failure("malformed", "the worker gave no answer to this request")),
        ("unknown key", Failure("malformed", "tokens: Unexpected keyword argument")),
    ],
)
def test_one_bad_answer_costs_one_request(start: Open, do: str, failure: Failure) -> None:
    found = answers_of(start(do))
    assert found[1] == failure
    assert isinstance(found[0], Generation)
    assert isinstance(found[2], Generation)


def test_wrong_types_name_the_place(start: Open) -> None:
    failure = answers_of(start("wrong types"))[1]
    assert isinstance(failure, Failure)
    assert failure.message.startswith("token_ids.0: ")


def test_an_answer_too_many_is_refused(start: Open) -> None:
    with pytest.raises(EngineError, match="request 0, which was not asked or is answered already"):
        answers_of(start("answer twice"))


def test_no_control(start: Open) -> None:
    engine = start("no control")
    with pytest.raises(NoControl, match="no plain mode"):
        answers_of(engine, speculative=False)
    assert isinstance(answers_of(engine)[0], Generation)


def test_engines_that_cannot_be_opened(start: Open, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"opened: method 'x' is not valid; use ngram$"):
        start("refuse")
    with pytest.raises(EngineError, match=r"opened: TypeError: 1 validation error method unknown$"):
        start("refuse at length")
    with pytest.raises(EngineError, match="unknown capability 'greedi'; did you mean 'greedy'"):
        start("claims nonsense")
    with pytest.raises(EngineError, match=r"--engine-python '.*nowhere' cannot be started .*environment.sh"):
        start(python=tmp_path / "nowhere")
