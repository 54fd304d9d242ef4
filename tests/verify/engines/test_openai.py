"""The openai engine against a server that speaks three dialects, decodes speculatively, and misbehaves on demand."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen3Config

from tests.verify.engines.fake_server import END_OF_TEXT, VOCAB_SIZE, Fake, Faults, serving
from verify.checks.engine_streaming import judge_engine_streams
from verify.engines.openai import OpenAIEngine, make_engine
from verify.engines.protocol import EngineError, EngineSettings, Failure, NoControl
from verify.engines.server.client import Client, Unanswered
from verify.engines.server.dialects import Completions, joined
from verify.judge import NotApplicable
from verify.protocol import Generation, Request, SamplingParams
from verify.results import Verdict

DIALECTS = ("vllm", "llama", "generic")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory as far as the engine reads it."""
    folder: Path = tmp_path_factory.mktemp("target")
    Qwen3Config(vocab_size=VOCAB_SIZE, eos_token_id=END_OF_TEXT, bos_token_id=None).save_pretrained(folder)
    byte_level(merges=[("h", "e")]).save(str(folder / "tokenizer.json"))
    return folder


def byte_level(*, merges: list[tuple[str, str]]) -> Tokenizer:
    """A tokenizer of bytes, whose vocabulary does not depend on what it merges."""
    tokens = [*sorted(ByteLevel.alphabet()), "he"]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


@pytest.fixture
def opened(target: Path, tmp_path: Path) -> Iterator[Any]:
    """Opens an engine on a fake, which is served until the test ends."""
    with ExitStack() as stack:

        def open_on(
            fake: Fake, *, baseline: Fake | None = None, model: str | None = None, **options: str
        ) -> OpenAIEngine:
            if fake.dialect != "generic" and fake.tokenizer is None:
                fake.tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
            stack.enter_context(serving(fake))
            if baseline is not None:
                stack.enter_context(serving(baseline))
            return make_engine(
                EngineSettings(
                    target=target,
                    draft=None,
                    folder=tmp_path,
                    base_url=fake.url,
                    baseline_url=None if baseline is None else baseline.url,
                    model=model,
                    options=options,
                )
            )

        yield open_on


def a_request(number: int = 0, *, temperature: float = 1.0, **settings: Any) -> Request:
    """One of many requests."""
    prompt = tuple((7 * number + step) % (VOCAB_SIZE - 2) + 2 for step in range(5))
    asked = {"max_new_tokens": 12, "seed": number, "stop_token_ids": (END_OF_TEXT,)} | settings
    return Request(prompt_token_ids=prompt, sampling=SamplingParams(temperature=temperature), **asked)


def answers(engine: OpenAIEngine, requests: list[Request], **how: Any) -> list[Generation | Failure]:
    """Answers in order."""
    found = dict(engine.answer(requests, **{"speculative": True, "concurrency": 4} | how))
    assert sorted(found) == list(range(len(requests)))
    return [found[index] for index in range(len(requests))]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_is_recognised_and_answers_with_token_ids(opened: Any, dialect: str) -> None:
    """Names, claims, outputs of the right length, one output a seed, several requests in flight."""
    fake = Fake(dialect=dialect)
    engine = opened(fake)
    assert {"vllm": "vLLM 0.32.0", "llama": "llama.cpp b1-fake", "generic": "generic"}[dialect] in engine.name
    assert engine.name.endswith("model fake")
    claims = engine.capabilities
    assert claims.greedy
    assert claims.sampled
    assert claims.seeds
    assert claims.logprobs == "raw"
    assert claims.streaming
    assert claims.record == (dialect != "generic")
    assert claims.top_k == claims.min_p == claims.repetition_penalty == (dialect != "generic")
    assert claims.presence_penalty == (dialect != "llama")
    assert claims.forbidden_tokens == (dialect == "llama")
    assert claims.allowed_tokens == claims.min_new_tokens == claims.stop_tokens == (dialect == "vllm")
    requests = [a_request(number, logprobs=True) for number in range(12)]
    first, second = answers(engine, requests), answers(engine, requests, concurrency=1)
    for mine, again in zip(first, second, strict=True):
        assert isinstance(mine, Generation)
        assert isinstance(again, Generation)
        assert mine.token_ids == again.token_ids
        assert mine.finish_reason == ("stop" if mine.token_ids[-1] == END_OF_TEXT else "length")
        assert mine.logprobs is not None
        assert len(mine.logprobs) == len(mine.token_ids)
        assert (mine.record is not None) == (dialect != "generic") or len(mine.token_ids) == 1
    assert fake.most_in_flight > 1


def test_every_setting_reaches_the_server(opened: Any) -> None:
    """What a request says is what the server is told, its own defaults switched off."""
    engine = opened(Fake())
    sampling = SamplingParams(
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        min_p=0.02,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.4,
        logit_bias={3: -2.0},
        allowed_token_ids=(3, 4, 5, 6, 7),
    )
    request = replace(a_request(3, stop_token_ids=(4,), min_new_tokens=2), sampling=sampling)
    body = engine.server.dialect.body(request, n=1, stream=False, plain=False)
    assert body == {
        "model": "fake",
        "prompt": list(request.prompt_token_ids),
        "max_tokens": 12,
        "min_tokens": 2,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
        "logit_bias": {"3": -2.0},
        "allowed_token_ids": [3, 4, 5, 6, 7],
        "stop_token_ids": [4],
        "ignore_eos": True,
        "seed": 3,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    (answer,) = answers(engine, [request])
    assert isinstance(answer, Generation)
    assert set(answer.token_ids) <= {3, 4, 5, 6, 7}


@pytest.mark.parametrize("dialect", ["llama", "generic"])
def test_a_server_that_cannot_ignore_its_end_of_text_is_not_asked_to(opened: Any, dialect: str) -> None:
    """Nothing is silently changed: other stop tokens, and an end of text that must not stop, are refused."""
    engine = opened(Fake(dialect=dialect))
    stays, foreign = answers(engine, [a_request(stop_token_ids=()), a_request(stop_token_ids=(END_OF_TEXT, 9))])
    assert isinstance(stays, Failure)
    assert stays.message == "the server stops at its end of text 1; name it in stop_token_ids"
    assert isinstance(foreign, Failure)
    assert foreign.message == "the server has no stop tokens; 9 is not its end of text"
    if dialect == "llama":
        forbidden = SamplingParams(forbidden_token_ids=(END_OF_TEXT,))
        (answer,) = answers(engine, [replace(a_request(stop_token_ids=()), sampling=forbidden)])
        assert isinstance(answer, Generation)
        assert len(answer.token_ids) == 12


def test_equal_neighbours_without_a_seed_are_one_request_for_several_outputs(opened: Any) -> None:
    """`n` outputs are as many answers, of their own randomness; seeds keep requests apart."""
    fake = Fake()
    engine = opened(fake)
    before = fake.num_completions
    outputs = answers(engine, [a_request(seed=None)] * 8)
    assert fake.num_completions - before == 2
    assert len({tuple(each.token_ids) for each in outputs if isinstance(each, Generation)}) == 8
    answers(engine, [a_request(5)] * 3)
    assert fake.num_completions - before == 5


@pytest.mark.parametrize("dialect", DIALECTS)
def test_streams_hold_what_whole_answers_hold(opened: Any, dialect: str) -> None:
    """The same requests streamed, chunk by chunk and as answers; a stream can be closed early."""
    fake = Fake(dialect=dialect)
    engine = opened(fake, stream="yes")
    whole = opened(Fake(dialect=dialect))
    requests = [a_request(number, logprobs=True) for number in range(6)]
    streamed = answers(engine, requests)
    assert fake.streams >= 6
    assert streamed == answers(whole, requests)
    chunks = list(engine.stream(requests[0]))
    assert isinstance(streamed[0], Generation)
    assert [token_id for chunk in chunks for token_id in chunk] == list(streamed[0].token_ids)
    stream = engine.stream(requests[1])
    next(stream)
    stream.close()
    assert answers(engine, requests[1:2]) == streamed[1:2]


def test_streams_are_judged(opened: Any) -> None:
    """They pass where they hold the answers, and fail where an event is lost."""
    fake = Fake()
    engine = opened(fake)
    requests = [a_request(number, temperature=float(number % 2), stop_token_ids=()) for number in range(6)]
    whole = list(zip(requests, answers(engine, requests), strict=True))
    assert judge_engine_streams(engine.stream, whole).verdict is Verdict.PASS
    fake.faults.drops_from_streams = True
    finding = judge_engine_streams(engine.stream, whole)
    assert finding.verdict is Verdict.FAIL
    assert "differs from output position" in finding.reason
    with pytest.raises(NotApplicable):
        judge_engine_streams(engine.stream, [])


def test_a_stream_that_is_cut_is_no_answer(opened: Any) -> None:
    """And one that loses an event is a shorter output, for the judge to see."""
    fake = Fake()
    engine = opened(fake, stream="yes")
    fake.faults.cuts_streams = True
    (cut,) = answers(engine, [a_request()])
    assert cut == Failure("malformed", "the output has no finish_reason: it was cut off")
    fake.faults.cuts_streams, fake.faults.drops_from_streams = False, True
    requests = [a_request(number, stop_token_ids=()) for number in range(4)]
    lengths = [len(each.token_ids) for each in answers(engine, requests) if isinstance(each, Generation)]
    assert min(lengths) < 12


class TestControl:
    """Who answers without speculation."""

    def test_the_baseline_server(self, opened: Any) -> None:
        """It is asked, and what it lacks is no control."""
        baseline = Fake(speculative=False, faults=Faults(refused=("logprobs",)))
        engine = opened(Fake(), baseline=baseline)
        before = baseline.num_completions
        assert all(isinstance(each, Generation) for each in answers(engine, [a_request(1)] * 3, speculative=False))
        assert baseline.num_completions == before + 3
        with pytest.raises(NoControl, match="lacks logprobs"):
            answers(engine, [a_request(1, logprobs=True)], speculative=False)

    def test_a_switch_in_the_request(self, opened: Any) -> None:
        """Where llama.cpp has one."""
        engine = opened(Fake(dialect="llama", switch=True))
        requests = [a_request(number, temperature=0.0) for number in range(4)]
        plain, speculative = answers(engine, requests, speculative=False), answers(engine, requests)
        assert all(isinstance(each, Generation) and each.record is None for each in plain)
        assert any(isinstance(each, Generation) and each.record is not None for each in speculative)
        assert [each.token_ids for each in plain] == [each.token_ids for each in speculative]  # type: ignore[union-attr]

    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_none(self, opened: Any, dialect: str) -> None:
        """Said so, with the remedy."""
        with pytest.raises(NoControl, match="give --baseline-url"):
            answers(opened(Fake(dialect=dialect)), [a_request()], speculative=False)


class TestBadInput:
    """One line that names the value, the rule and the remedy."""

    def test_nothing_listens(self, target: Path, tmp_path: Path) -> None:
        """A wrong port."""
        settings = EngineSettings(target=target, draft=None, folder=tmp_path, base_url="http://127.0.0.1:9")
        with pytest.raises(EngineError, match=r"--base-url 127.0.0.1:9: no connection .*; start the server"):
            make_engine(settings)

    def test_no_url(self, target: Path, tmp_path: Path) -> None:
        """The engine is a server's."""
        with pytest.raises(EngineError, match="needs --base-url"):
            make_engine(EngineSettings(target=target, draft=None, folder=tmp_path))

    def test_a_model_that_the_server_does_not_know(self, opened: Any) -> None:
        """With what it serves."""
        with pytest.raises(EngineError, match=r"--model 'fakes': .* serves fake; did you mean 'fake'\?"):
            opened(Fake(), model="fakes")

    @pytest.mark.parametrize("dialect", ["vllm", "llama"])
    def test_another_tokenizer(self, opened: Any, dialect: str) -> None:
        """The same text has other ids."""
        with pytest.raises(EngineError, match=r"tokenizer of .* differs from the target's.*give the --target"):
            opened(Fake(dialect=dialect, faults=Faults(shifted_tokenizer=1)))

    def test_a_tokenizer_that_cuts_otherwise_is_noted(self, opened: Any) -> None:
        """Ids mean the same, and ids are what is judged; as llama.cpp's pre-tokenizers are not always the checkpoint's."""
        (note, *_) = opened(Fake(tokenizer=byte_level(merges=[]))).notes
        assert "into other tokens of the same vocabulary" in note

    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_text_without_ids(self, opened: Any, dialect: str) -> None:
        """Text is not tokenized again."""
        with pytest.raises(EngineError, match="text and no token ids"):
            opened(Fake(dialect=dialect, faults=Faults(text_only=True)))

    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_a_prompt_that_grows(self, opened: Any, dialect: str) -> None:
        """A token before the prompt makes every answer one to another question."""
        with pytest.raises(EngineError, match="read 7 tokens where 6 were sent"):
            opened(Fake(dialect=dialect, faults=Faults(added_prompt_tokens=1)))

    @pytest.mark.parametrize(
        ("fault", "message"),
        [(Faults(status=500), "500 Internal Server Error: as told"), (Faults(garbage=True), "the answer is no JSON")],
    )
    def test_a_broken_server(self, opened: Any, fault: Faults, message: str) -> None:
        """It is not opened."""
        with pytest.raises(EngineError, match=message):
            opened(Fake(faults=fault))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"time_out": "3"}, "unknown option.* Known: timeout_s"),
            ({"timeout_s": "0"}, "must be a number above 0"),
            ({"stream": "true"}, "must be yes or no"),
            ({"logprobs": "top"}, "must be raw or processed"),
            ({"without": "top_k,top_q"}, "'top_q' is no claim"),
            ({"api_key_file": "nowhere"}, "No such file.*give the file that holds the key"),
        ],
    )
    def test_options(self, opened: Any, options: dict[str, str], message: str) -> None:
        """Known names, values that can be read."""
        with pytest.raises(EngineError, match=message):
            opened(Fake(), **options)

    def test_a_draft_model_is_a_checkpoint_at_hand(self, target: Path, tmp_path: Path) -> None:
        """The target in its place leaks nothing that a bet could see: the sampled law of a correct server was inconclusive."""
        with serving(Fake(tokenizer=Tokenizer.from_file(str(target / "tokenizer.json")))) as fake:
            given = EngineSettings(
                target=target, draft=None, folder=tmp_path, base_url=fake.url, options={"draft_model": "yes"}
            )
            with pytest.raises(EngineError, match=r"draft_model=yes without a draft.*give --draft DIR"):
                make_engine(given)
            assert not make_engine(replace(given, options={})).capabilities.draft_model
            assert make_engine(replace(given, draft=tmp_path)).capabilities.draft_model
            assert make_engine(replace(given, target=None, draft=None)).capabilities.draft_model

    def test_logprobs_that_do_not_come_are_not_claimed(self, opened: Any) -> None:
        """And where they stop coming, the answer is malformed."""
        assert opened(Fake(faults=Faults(no_logprobs=True))).capabilities.logprobs == ""
        fake = Fake()
        engine = opened(fake)
        fake.faults.no_logprobs = True
        (answer,) = answers(engine, [a_request(logprobs=True)])
        assert isinstance(answer, Failure)
        assert answer.kind == "malformed"
        assert "came with 0 log-probabilities" in answer.message

    def test_what_is_refused_is_not_claimed(self, opened: Any) -> None:
        """As vLLM refuses min_p and logit_bias together with speculation."""
        claims = opened(Fake(faults=Faults(refused=("min_p", "logit_bias", "n", "stream")))).capabilities
        assert not claims.min_p
        assert not claims.logit_bias
        assert not claims.streaming
        assert claims.top_k

    def test_a_server_that_a_setting_kills(self, opened: Any) -> None:
        """As top_k kills a speculative vLLM 0.32 for CPUs: told, with the way to judge the rest."""
        with pytest.raises(EngineError, match=r"no more when asked for top_k.*--engine without=top_k"):
            opened(Fake(faults=Faults(killed_by="top_k")))
        claims = opened(Fake(faults=Faults(killed_by="top_k")), without="top_k").capabilities
        assert not claims.top_k
        assert claims.top_p

    @pytest.mark.parametrize("dialect", DIALECTS)
    def test_no_target(self, tmp_path: Path, dialect: str) -> None:
        """Then nothing is known of the end of text and of the tokenizer, and two servers are compared."""
        with serving(Fake(dialect=dialect)) as fake:
            settings = EngineSettings(
                target=None, draft=None, folder=tmp_path, base_url=fake.url, baseline_url=fake.url
            )
            engine = make_engine(settings)
            assert "tokenizers not compared: no tokenizer.json of a target" in engine.notes
            for speculative in (True, False):
                (answer,) = answers(engine, [a_request(stop_token_ids=())], speculative=speculative)
                assert isinstance(answer, Generation)


class TestFailures:
    """Requests that get no answer: the right kind, soon, and the others answered."""

    def test_a_busy_server_is_asked_again(self, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """But not for ever."""
        fake = Fake()
        engine = opened(fake)
        waits: list[float] = []
        monkeypatch.setattr(engine.server.client, "_sleep", waits.append)
        fake.faults.busy = 3
        assert all(isinstance(each, Generation) for each in answers(engine, [a_request()], concurrency=1))
        assert waits == [0.25, 0.5, 1.0]
        fake.faults.busy = 10**6
        (answer,) = answers(engine, [a_request()])
        assert answer == Failure("status", "429 Too Many Requests: as told; asked 6 times")

    @pytest.mark.parametrize(("status", "kind"), [(500, "status"), (400, "refused"), (404, "refused")])
    def test_an_error_is_not_asked_again(self, opened: Any, status: int, kind: str) -> None:
        """One request, one failure."""
        fake = Fake()
        engine = opened(fake)
        before, fake.faults.status = fake.num_completions, status
        (answer,) = answers(engine, [a_request()])
        assert isinstance(answer, Failure)
        assert answer.kind == kind
        assert fake.num_completions == before + 1

    def test_a_slow_server_times_out_and_is_given_up(self, opened: Any) -> None:
        """Three time-outs in a row end it: a thousand would take days."""
        fake = Fake()
        engine = opened(fake, timeout_s="0.3")
        fake.faults.sleep_s = 0.6
        started = monotonic()
        found = answers(engine, [a_request(number) for number in range(50)], concurrency=1)
        assert monotonic() - started < 3
        assert [each.kind for each in found if isinstance(each, Failure)] == ["timeout"] * 2 + ["died"] * 48
        assert engine.server.client.lost is not None

    def test_one_slow_answer_is_one_failure(self, opened: Any) -> None:
        """The next one counts anew."""
        fake = Fake()
        engine = opened(fake, timeout_s="0.3")
        fake.faults.sleep_s = 0.6
        assert [type(each) for each in answers(engine, [a_request(1), a_request(2)], concurrency=1)] == [Failure] * 2
        fake.faults.sleep_s = 0.0
        assert isinstance(answers(engine, [a_request(1)])[0], Generation)
        assert engine.server.client.lost is None

    @pytest.mark.parametrize("concurrency", [1, 16])
    def test_a_server_that_dies_in_the_middle(self, opened: Any, concurrency: int) -> None:
        """What was answered is kept; the rest ends at once, as died."""
        fake = Fake()
        engine = opened(fake)
        fake.faults.dies_after = fake.num_completions + 10
        started = monotonic()
        found = answers(engine, [a_request(number) for number in range(200)], concurrency=concurrency)
        assert monotonic() - started < 5
        kept = [each for each in found if isinstance(each, Generation)]
        assert len(kept) == 10
        kinds = {each.kind for each in found if isinstance(each, Failure)}
        assert kinds == {"died"}

    def test_a_connection_that_closes_too_early_is_one_failure(self, opened: Any) -> None:
        """The server lives, and is asked on."""
        fake = Fake()
        engine = opened(fake)
        fake.faults.hangs_up = True
        (answer,) = answers(engine, [a_request()])
        assert isinstance(answer, Failure)
        assert answer.kind == "malformed"
        assert "closed the connection in the middle of an answer" in answer.message
        fake.faults.hangs_up = False
        assert isinstance(answers(engine, [a_request()])[0], Generation)

    def test_an_unknown_end_is_an_error(self, opened: Any) -> None:
        """An aborted output is no output."""
        fake = Fake()
        engine = opened(fake)
        fake.faults.finish_reason = "abort"
        (answer,) = answers(engine, [a_request()])
        assert answer == Failure("status", "the server ended the output with 'abort'; expected one of stop, length")

    def test_garbage(self, opened: Any) -> None:
        """A proxy's page in the place of an answer."""
        fake = Fake()
        engine = opened(fake)
        fake.faults.garbage = True
        (answer,) = answers(engine, [a_request()])
        assert isinstance(answer, Failure)
        assert answer.kind == "malformed"


def test_the_path_of_the_url_may_end_in_v1() -> None:
    """As clients of OpenAI's write it."""
    with serving(Fake()) as fake:
        assert Client(f"{fake.url}/v1/", timeout_s=5).get("/v1/models")["data"][0]["id"] == "fake"
        with pytest.raises(Unanswered, match="404 Not Found: no /elsewhere/v1/models"):
            Client(f"{fake.url}/elsewhere", timeout_s=5).get("/v1/models")


def test_the_fake_follows_its_law_unless_it_mixes_batches(opened: Any) -> None:
    """The second token of many outputs, alone and at once: the fake's own control."""
    laws: dict[int, torch.Tensor] = {}
    for concurrency in (1, 8):
        fake = Fake(faults=Faults(mixes_batches=True))
        engine = opened(fake)
        counts = torch.zeros(VOCAB_SIZE)
        requests = [replace(a_request(), max_new_tokens=2, seed=seed, stop_token_ids=()) for seed in range(200)]
        for answer in answers(engine, requests, concurrency=concurrency):
            assert isinstance(answer, Generation)
            counts[answer.token_ids[1]] += 1
        laws[concurrency] = counts / counts.sum()
    assert float((laws[1] - laws[8]).abs().sum() / 2) > 0.1


def test_drafts_that_a_stop_cut_are_not_counted() -> None:
    """vLLM's server counts a round's accepted drafts, also those past a limit or a stop token; found on a correct server."""
    metrics = {
        "num_spec_steps": 3,
        "num_draft_tokens": 9,
        "num_accepted_draft_tokens": 7,
        "acceptance_histogram": [0, 1, 0, 2],
        "per_step_accepted": [1, 3, 3],
        "per_step_drafted": [3, 3, 3],
    }
    choice = {"index": 0, "token_ids": [5, 6, 7, 8, 9, 10, 11, 12], "finish_reason": "length"}
    dialect = Completions(model="any", extended=True)
    pieces = dialect.pieces({"choices": [choice], "metrics": {"speculative_decoding": metrics}})

    (generation,) = joined(pieces, Request(prompt_token_ids=(1,), max_new_tokens=8), n=1)

    record = generation.record
    assert record is not None
    assert record.accepted_per_step == [1, 3, 1]  # 8 tokens: 1 from prefill, 2 and 4, and 1 of the last round's 4
    assert record.num_accepted_draft_tokens == 5
    assert list(record.acceptance_histogram) == [0, 2, 0, 1]
