"""The serving engine: queueing, preemption and reuse of prefixes change no output; planted bugs do."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from dspark import prefixes
from dspark.cache import BatchContext
from dspark.decoder import SpeculativeDecoder
from dspark.drafters.factory import random_drafter
from dspark.drafters.model import ModelDrafter
from dspark.drafters.ngram import NgramDrafter
from dspark.drafters.protocol import Drafter
from dspark.request import Request, SamplingParams
from dspark.scheduler.protocol import ScheduleSession
from dspark.serving import Engine, Limits
from tests.mutants.serving import one_token_too_many, shared_with_everybody, stream_starts_anew, whole_pages
from verify.models.observer import observed
from verify.models.pairs import Relation, TableSpec, table_pair
from verify.protocol import ModelPair

SPEC = TableSpec(vocab_size=16, relation=Relation.CLOSE, seed=12, num_rows=2048, sharpness=1.5)
TIGHT = Limits(max_rows=3, max_tokens=16, max_prefixes=4)


@pytest.fixture
def pair(tmp_path: Path) -> ModelPair:
    return table_pair(SPEC, device=torch.device("cpu"), dtype=torch.float64, folder=tmp_path)


def requests() -> list[Request]:
    """Two rounds of requests of which some begin alike; sampled and greedy, with stops."""
    beginnings = ((1, 2, 3, 4, 5, 6), (1, 2, 3, 4), (7,), (1, 2, 3, 9, 9), (8, 8, 8))
    return [
        Request(
            prompt_token_ids=beginnings[index % 5],
            max_new_tokens=5 + 3 * (index % 4),
            seed=index,
            stop_token_ids=(0,) if index % 3 == 0 else (),
            sampling=SamplingParams(temperature=float(index % 2), presence_penalty=0.5 * (index % 2)),
        )
        for index in range(10)
    ]


def wrong(pair: ModelPair, engine: Engine) -> list[int]:
    """The requests whose answers differ from those of the plain decoder."""
    alone = SpeculativeDecoder(pair.target, ModelDrafter(pair.draft))
    answers = engine.generate(requests())
    # Some go on from the whole of an earlier answer, or from where another one would have.
    longer = [
        replace(each, prompt_token_ids=(*each.prompt_token_ids, *answer.token_ids, index % 16))
        for index, (each, answer) in enumerate(zip(requests(), answers, strict=True))
    ]
    asked = [*requests()[::-1], *longer]
    answers = [*answers, *engine.generate(asked)]
    expected = [alone.generate([each])[0] for each in (*requests(), *asked)]
    return [index for index, each in enumerate(answers) if each != expected[index]]


def test_outputs_are_those_of_the_plain_decoder(pair: ModelPair) -> None:
    engine = Engine(pair.target, ModelDrafter(pair.draft), limits=TIGHT)
    assert not wrong(pair, engine)
    assert engine.counters.num_preemptions > 2
    assert engine.counters.num_reused_tokens > 20
    assert not engine.running
    assert not engine.waiting
    assert not engine.finished
    assert len(engine.prefixes.entries) == 4


def test_prefixes_are_not_read_again(pair: ModelPair) -> None:
    engine = Engine(pair.target, limits=TIGHT)
    first = Request(prompt_token_ids=(1, 2, 3, 4, 5, 6), max_new_tokens=4, sampling=SamplingParams(temperature=0.0))
    (answer,) = engine.generate([first])
    longer = Request(prompt_token_ids=(*first.prompt_token_ids, *answer.token_ids[:2], 0), max_new_tokens=1, seed=0)
    with observed(pair.target) as trace:
        engine.generate([longer])
    assert [(call.start, call.num_positions) for call in trace.calls] == [(8, 1)]
    assert engine.counters.num_reused_tokens == 8


@pytest.mark.parametrize(
    ("owner", "name", "bug"),
    [
        (BatchContext, "copy", shared_with_everybody),
        (prefixes, "common_length", one_token_too_many),
        (prefixes, "common_length", whole_pages),
        (Engine, "_begin", stream_starts_anew),
    ],
)
def test_planted_bugs_are_seen(
    pair: ModelPair, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, bug: Callable[..., Any]
) -> None:
    monkeypatch.setattr(owner, name, bug)
    assert wrong(pair, Engine(pair.target, ModelDrafter(pair.draft), limits=TIGHT))


def test_streams_cancel_and_mix(pair: ModelPair) -> None:
    engine = Engine(pair.target, ModelDrafter(pair.draft), limits=TIGHT)
    asked = requests()
    tickets = [engine.submit(each) for each in asked[:3]]
    streamed = [token for chunk in engine.stream(asked[3]) for token in chunk]
    closed = engine.stream(asked[4])
    next(closed)
    closed.close()  # type: ignore[attr-defined]
    while not all(ticket in engine.finished for ticket in tickets):
        engine.step()
    alone = SpeculativeDecoder(pair.target, ModelDrafter(pair.draft))
    expected = [list(alone.generate([each])[0].token_ids) for each in asked[:4]]
    assert [list(engine.finished[ticket].token_ids) for ticket in tickets] == expected[:3]
    assert streamed == expected[3]
    assert not engine.running
    assert set(engine.finished) == set(tickets)


def test_streams_side_by_side_miss_nothing(pair: ModelPair) -> None:
    engine = Engine(pair.target, ModelDrafter(pair.draft), limits=TIGHT)
    asked = requests()
    alone = SpeculativeDecoder(pair.target, ModelDrafter(pair.draft))
    expected = [list(alone.generate([each])[0].token_ids) for each in asked]
    streams = dict(enumerate(map(engine.stream, asked[:4])))
    outputs: dict[int, list[int]] = {index: [] for index in streams}
    while streams:
        for index in list(streams):
            chunk = next(streams[index], None)
            outputs[index] += chunk or []
            if chunk is None:
                del streams[index]
    assert list(outputs.values()) == expected[:4]
    open_stream = engine.stream(asked[7])
    output = next(open_stream)
    engine.generate(asked[8:])  # runs the rounds of the stream too
    assert output + [token for chunk in open_stream for token in chunk] == expected[7]


def test_a_stream_that_never_began_leaves_nothing(pair: ModelPair) -> None:
    engine = Engine(pair.target)
    closed = engine.stream(requests()[0])
    closed.close()  # type: ignore[attr-defined]
    assert not engine.waiting


def test_an_invalid_request_leaves_nothing(pair: ModelPair) -> None:
    engine = Engine(pair.target)
    with pytest.raises(ValueError, match="prompt_token_ids is empty"):
        engine.generate([requests()[0], Request(prompt_token_ids=(), max_new_tokens=1)])
    assert not engine.waiting
    with pytest.raises(ValueError, match="max_rows is 0"):
        Limits(max_rows=0)


def test_windows_are_preempted_and_read_again(tiny: Callable[..., PreTrainedModel]) -> None:
    """A sliding window has forgotten what a rewind would need; a draft model with one reads its text again."""
    greedy = SamplingParams(temperature=0.0, repetition_penalty=1.3)
    asked = [Request(prompt_token_ids=(1, 2, 3, 4, 5, 6), max_new_tokens=12, sampling=greedy) for _ in range(4)]
    for target, draft, reuses in ((tiny("mistral"), tiny("llama"), False), (tiny("llama"), tiny("mistral"), True)):
        engine = Engine(target, ModelDrafter(draft), limits=TIGHT)
        plain = SpeculativeDecoder(target).generate(asked[:1])[0]
        assert [each.token_ids for each in engine.generate(asked)] == [plain.token_ids] * 4
        assert engine.counters.num_preemptions > 0
        assert (engine.counters.num_reused_tokens > 0) == reuses


@pytest.mark.parametrize("kind", ["model", "ngram", "dspark", "dflash", "eagle3"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_drafter_reuses_beginnings(tiny: Callable[..., PreTrainedModel], kind: Any, temperature: float) -> None:
    target = tiny("qwen3")
    drafter: Drafter = (
        ModelDrafter(tiny("llama", seed=1))
        if kind == "model"
        else NgramDrafter()
        if kind == "ngram"
        else random_drafter(target, kind=kind, dtype=torch.float64)
    )
    engine, alone = Engine(target, drafter, limits=Limits(max_rows=3)), SpeculativeDecoder(target, drafter)
    sampling = SamplingParams(temperature=temperature, repetition_penalty=1.3)
    asked = [
        Request(prompt_token_ids=(1, 2, 3, first), max_new_tokens=8 + first, seed=first, sampling=sampling)
        for first in range(5)
    ]
    for turn in range(3):  # a conversation: each prompt is the last one, its answer and a new token
        answers = engine.generate(asked)
        assert answers == [alone.generate([each])[0] for each in asked]
        asked = [
            replace(each, prompt_token_ids=(*each.prompt_token_ids, *answer.token_ids, turn), max_new_tokens=4)
            for each, answer in zip(asked, answers, strict=True)
        ]
    assert engine.counters.num_reused_tokens > 100


def broken_for(model: PreTrainedModel, token_id: int) -> None:
    """Logits are NaN wherever this token is read last."""

    def spoil(module: Any, arguments: Any, keywords: Any, output: Any) -> Any:
        read = keywords["input_ids"][:, -output.logits.shape[1] :]
        output.logits[read == token_id] = torch.nan
        return output

    model.register_forward_hook(spoil, with_kwargs=True)


class Spy(ScheduleSession):
    """A schedule that verifies everything and remembers how many rows it was asked about."""

    def __init__(self) -> None:
        self.num_rows: list[int] = []

    def open(self) -> "Spy":
        return self

    def admit(self, confidences: Sequence[Sequence[float]]) -> tuple[int, ...]:
        self.num_rows.append(len(confidences))
        return tuple(map(len, confidences))


def test_running_requests_share_rounds_and_schedule(pair: ModelPair) -> None:
    spy = Spy()
    engine = Engine(pair.target, ModelDrafter(pair.draft), limits=Limits(max_rows=3), scheduler=spy)
    asked = [Request(prompt_token_ids=(1, 2, index), max_new_tokens=9, seed=index) for index in range(6)]
    with observed(pair.target) as trace:
        first = engine.submit(asked[0])
        engine.step()
        tickets = [first, *map(engine.submit, asked[1:])]
        num_rounds = engine.counters.num_rounds
        emitted = {ticket: [] for ticket in tickets}  # type: dict[int, list[int]]
        while engine.waiting or engine.running:
            running = {job.ticket for job in engine.running}
            for ticket, tokens in engine.step().items():
                emitted[ticket] += tokens
            assert len(engine.running) <= 3
            assert running or engine.running
    alone = SpeculativeDecoder(pair.target, ModelDrafter(pair.draft)).generate(asked)
    answers = [engine.finished[ticket] for ticket in tickets]
    assert [each.token_ids for each in answers] == [each.token_ids for each in alone]
    assert [tuple(emitted[ticket]) for ticket in tickets[1:]] == [each.token_ids for each in alone[1:]]
    assert num_rounds == 1
    assert spy.num_rows[0] == 1
    assert max(spy.num_rows) == 3
    num_rows = sum(len(each.record.drafted_per_step) for each in answers)
    assert engine.counters.num_rounds < 0.5 * num_rows
    assert len(trace.calls) >= engine.counters.num_rounds


class Refuses:
    """A grammar with a defect that shows behind some tokens."""

    initial_state = 0

    def __init__(self, after: int) -> None:
        self.after = after

    def allowed(self, state: int) -> Sequence[int]:
        if state == self.after:
            raise KeyError("this grammar is broken")
        return range(16)

    def next_state(self, state: int, token_id: int) -> int:
        return state + 1

    def is_final(self, state: int) -> bool:
        return False


def test_a_request_whose_round_raises_fails_alone(pair: ModelPair) -> None:
    """The others go on with the random numbers that they would have drawn."""
    engine = Engine(pair.target, ModelDrafter(pair.draft), limits=Limits(max_rows=4))
    asked = [Request(prompt_token_ids=(1, 2, index), max_new_tokens=12, seed=index) for index in range(3)]
    bad = replace(asked[0], sampling=SamplingParams(grammar=Refuses(after=5)))
    tickets = [engine.submit(each) for each in (asked[0], bad, *asked[1:])]
    while engine.waiting or engine.running:
        engine.step()
    assert set(engine.failed) == {tickets[1]}
    assert "the grammar raised KeyError(" in str(engine.failed[tickets[1]])
    alone = SpeculativeDecoder(pair.target, ModelDrafter(pair.draft)).generate(asked)
    assert [engine.finished[ticket] for ticket in (tickets[0], *tickets[2:])] == alone


def test_prompts_of_unlike_lengths_are_read_one_by_one(pair: ModelPair) -> None:
    asked = [Request(prompt_token_ids=(1,) * length, max_new_tokens=1, seed=0) for length in (3, 4, 5, 40)]
    for requests_together, num_reads in ((asked[:3], 1), (asked, 4)):
        engine = Engine(pair.target, limits=Limits(max_rows=4))
        with observed(pair.target) as trace:
            engine.generate(requests_together)
        assert len(trace.calls) == num_reads + 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize("broken_off", range(1, 7))
def test_a_round_that_is_broken_off_is_not_half_kept(
    tiny: Callable[..., PreTrainedModel], broken_off: int, drafts: bool, temperature: float
) -> None:
    model = tiny("gpt2")
    sampling = SamplingParams(temperature=temperature, repetition_penalty=1.3)
    asked = [
        Request(prompt_token_ids=(first, 2, 3), max_new_tokens=8, sampling=sampling, seed=first) for first in (4, 5)
    ]
    engine = Engine(model, ModelDrafter(tiny("gpt2", seed=1)) if drafts else None)
    expected = [answer.token_ids for answer in engine.generate(asked)]
    engine.prefixes.entries.clear()
    forwards = 0

    def interrupt(*_: Any) -> None:
        nonlocal forwards
        forwards += 1
        if forwards == broken_off:
            raise KeyboardInterrupt

    model.base_model.h[1].register_forward_pre_hook(interrupt)  # type: ignore[union-attr,index]
    tickets = [engine.submit(each) for each in asked]
    interrupts = 0
    while engine.waiting or engine.running:
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 1
    assert [engine.finished[ticket].token_ids for ticket in tickets] == expected


def test_a_request_that_cannot_go_on_fails_alone(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny("gpt2")
    greedy = SamplingParams(temperature=0.0)
    asked = [Request(prompt_token_ids=(first, 2, 3), max_new_tokens=8, sampling=greedy) for first in (4, 5)]
    expected = Engine(model, limits=TIGHT).generate(asked)
    unused = next(each for each in range(23) if all(each not in (*answer.token_ids, 2, 3, 4, 5) for answer in expected))
    broken_for(model, unused)
    engine = Engine(model, limits=TIGHT)
    bad = replace(asked[0], prompt_token_ids=(1, unused))
    tickets = [engine.submit(each) for each in (asked[0], bad, asked[1])]
    while engine.waiting or engine.running:
        engine.step()
    assert set(engine.failed) == {tickets[1]}
    assert "NaN" in str(engine.failed[tickets[1]])
    assert [engine.finished[ticket] for ticket in (tickets[0], tickets[2])] == expected
    with pytest.raises(ValueError, match="NaN"):
        engine.generate([asked[0], bad])
    with pytest.raises(ValueError, match="NaN"):
        list(engine.stream(bad))
    assert not engine.running
    assert engine.generate(asked) == expected
