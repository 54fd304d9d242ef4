"""The vLLM worker without vLLM: what it asks for, what it reads, and how it keeps the engine busy."""

import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.verify.engines.asked import a_request
from verify.checks.accounting import judge_record
from verify.engines.vllm import engine as worker
from verify.engines.vllm import rejection
from verify.protocol import AcceptanceRecord, Capabilities, Generation, Request
from verify.subject import Observed


def sampling_arguments(**settings: Any) -> dict[str, Any]:
    return worker.sampling_arguments(a_request(**settings), vocab_size=8)


class TestRequests:
    def test_limits_and_stops(self) -> None:
        arguments = sampling_arguments(min_new_tokens=2, stop_token_ids=(6, 7), seed=9)
        assert (arguments["max_tokens"], arguments["min_tokens"], arguments["seed"]) == (5, 2, 9)
        assert (arguments["stop_token_ids"], arguments["ignore_eos"]) == ([6, 7], True)

    def test_greedy_with_processors(self) -> None:
        arguments = sampling_arguments(temperature=0.0, repetition_penalty=1.3, presence_penalty=0.5, top_k=4)
        assert [arguments[name] for name in ("temperature", "repetition_penalty", "presence_penalty", "top_k")] == [
            0,
            1.3,
            0.5,
            4,
        ]

    def test_what_vllm_refuses_is_passed_on(self) -> None:
        arguments = sampling_arguments(min_p=0.1, logit_bias={3: 1.5})
        assert (arguments["min_p"], arguments["logit_bias"]) == (0.1, {3: 1.5})

    def test_forbidden_tokens_leave_the_rest(self) -> None:
        assert sampling_arguments(forbidden_token_ids=(0, 5))["allowed_token_ids"] == [1, 2, 3, 4, 6, 7]
        both = sampling_arguments(forbidden_token_ids=(0, 5), allowed_token_ids=(5, 6))
        assert both["allowed_token_ids"] == [6]
        assert sampling_arguments(allowed_token_ids=(5, 6))["allowed_token_ids"] == [5, 6]
        assert sampling_arguments()["allowed_token_ids"] is None

    def test_logprobs_of_the_emitted_token_only(self) -> None:
        assert sampling_arguments(logprobs=True)["logprobs"] == 0
        assert sampling_arguments()["logprobs"] is None


class TestOptions:
    def test_draft_model(self) -> None:
        config = worker.speculative_config("draft", {"k": "5", "drafts": "probabilistic"})
        assert config == {
            "method": "draft_model",
            "num_speculative_tokens": 5,
            "model": "draft",
            "draft_sample_method": "probabilistic",
        }

    def test_ngram_needs_no_draft_and_takes_more_settings(self) -> None:
        config = worker.speculative_config(None, {"method": "ngram", "speculative": '{"prompt_lookup_max": 2}'})
        assert "model" not in config
        assert (config["prompt_lookup_min"], config["prompt_lookup_max"]) == (2, 2)

    def test_what_cannot_be_says_so(self) -> None:
        with pytest.raises(ValueError, match="drafts='warm' must be one of greedy, probabilistic"):
            worker.speculative_config("draft", {"drafts": "warm"})
        with pytest.raises(ValueError, match="method=draft_model without a draft; give --draft DIR"):
            worker.speculative_config(None, {})
        with pytest.raises(ValueError, match="logprobs='all' must be one of raw, processed"):
            worker.capabilities({"logprobs": "all"})
        with pytest.raises(ValueError, match=r"device 'cuda'.*give --device cpu"):
            worker.open_engine(target="t", draft="d", options={}, device="cuda", dtype="float32", folder="f")

    def test_vllm_starts_with_one_thread_in_every_pool(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Numba's pool is OpenMP's: of two threads, each operator waits for the other wherever a core is taken."""
        environment: dict[str, str] = {}
        monkeypatch.setattr(os, "environ", environment)
        monkeypatch.setattr(sys, "path", list(sys.path))

        def started(name: str) -> None:
            raise RuntimeError(name)

        monkeypatch.setattr(worker, "import_module", started)
        with pytest.raises(RuntimeError, match="vllm"):
            worker.open_engine(
                target="t", draft=None, options={"method": "ngram"}, device="cpu", dtype="float32", folder="f"
            )
        assert (environment["OMP_NUM_THREADS"], environment["NUMBA_NUM_THREADS"]) == ("1", "1")

    def test_other_options_reach_vllm(self) -> None:
        arguments = worker.llm_arguments({"method": "ngram", "k": "4", "enable_prefix_caching": "false"})
        assert arguments["enable_prefix_caching"] is False
        assert {"method", "k"} & arguments.keys() == set()

    @pytest.mark.parametrize(
        ("options", "draft_model", "standard"),
        [({}, True, False), ({"drafts": "probabilistic"}, True, True), ({"method": "ngram"}, False, False)],
    )
    def test_claims(self, options: dict[str, str], draft_model: bool, standard: bool) -> None:
        claims = Capabilities.of(worker.capabilities(options))
        assert (claims.draft_model, claims.standard_acceptance, claims.min_p, claims.logit_bias) == (
            draft_model,
            standard,
            False,
            False,
        )

    def test_names(self) -> None:
        assert worker.engine_name({}, "1.0") == "vLLM 1.0 CPU build, draft_model, greedy drafts"
        assert worker.engine_name({"method": "ngram"}, "1.0") == "vLLM 1.0 CPU build, ngram"


@pytest.mark.parametrize(
    ("num_tokens", "accepted"),
    [(10, [0, 3, 0, 2]), (9, [0, 3, 0, 2]), (8, [0, 3, 0, 1]), (7, [0, 3, 0, 0])],
    ids=["whole", "without its last token", "one draft cut", "two drafts cut"],
)
def test_record_counts_what_was_emitted(num_tokens: int, accepted: list[int]) -> None:
    metrics = SimpleNamespace(
        num_spec_tokens=3, num_draft_tokens=11, per_step_drafted=[3, 3, 3, 2], per_step_accepted=[0, 3, 0, 2]
    )
    record = worker.record_of(**vars(metrics), num_tokens=num_tokens)
    assert record["accepted_per_step"] == accepted
    assert record["acceptance_histogram"] == [accepted.count(count) for count in range(4)]
    assert record["num_accepted_draft_tokens"] == sum(accepted)
    assert (record["num_spec_steps"], record["num_draft_tokens"]) == (4, 11)
    assert len(record["accepted_per_step"]) + sum(accepted) + 1 >= num_tokens


@pytest.mark.parametrize(("num_tokens", "verdict"), [(5, "fail"), (6, "pass"), (8, "pass"), (9, "fail")])
def test_the_first_token_may_belong_to_no_round(num_tokens: int, verdict: str) -> None:
    metrics = SimpleNamespace(
        num_spec_tokens=3, num_draft_tokens=9, per_step_drafted=[3, 3, 3], per_step_accepted=[1, 3, 0]
    )
    record = AcceptanceRecord(**worker.record_of(**vars(metrics), num_tokens=8))
    generation = Generation(token_ids=[1] * num_tokens, finish_reason="length", record=record)
    request = Request(prompt_token_ids=(3, 4), max_new_tokens=num_tokens)
    assert judge_record([Observed(request, generation, None)]).verdict.value == verdict


@pytest.mark.parametrize(("num_tokens", "verdict"), [(29, "fail"), (30, "pass"), (32, "pass"), (33, "fail")])
def test_steps_without_drafts_are_rounds_that_emit_one_token(num_tokens: int, verdict: str) -> None:
    """As with ngram, where vLLM counts the seven steps that found something to draft."""
    accepted = [3, 3, 0, 3, 3, 2, 3]
    metrics = SimpleNamespace(
        num_spec_tokens=3, num_draft_tokens=21, per_step_drafted=[3] * 7, per_step_accepted=accepted
    )
    record = AcceptanceRecord(**worker.record_of(**vars(metrics), num_tokens=32))
    assert (record.num_spec_steps, record.acceptance_histogram) == (14, [8, 0, 1, 5])
    generation = Generation(token_ids=[1] * num_tokens, finish_reason="length", record=record)
    request = Request(prompt_token_ids=(3, 4), max_new_tokens=num_tokens)
    assert judge_record([Observed(request, generation, None)]).verdict.value == verdict


def test_logprobs_are_those_of_the_emitted_tokens() -> None:
    rows = [{5: SimpleNamespace(logprob=-0.5), 1: SimpleNamespace(logprob=-0.1)}, {2: SimpleNamespace(logprob=-0.25)}]
    output = SimpleNamespace(token_ids=[5, 2], finish_reason="stop", logprobs=rows, spec_decode_metrics=None)
    assert worker.answer_of(output) == {"token_ids": [5, 2], "finish_reason": "stop", "logprobs": [-0.5, -0.25]}


class FakeVllm:
    """Ends the oldest request at every step but the one that breaks; refuses a prompt of one token."""

    def __init__(self, breaks_at: int = -1) -> None:
        self.running: list[str] = []
        self.most = 0
        self.breaks_at = breaks_at
        self.steps = 0

    def add_request(self, name: str, prompt: dict[str, Any], params: Any) -> None:
        if len(prompt["prompt_token_ids"]) == 1:
            raise RuntimeError("the prompt is too short")
        self.running.append(name)
        self.most = max(self.most, len(self.running))

    def step(self) -> Iterator[Any]:
        self.steps += 1
        if self.steps == self.breaks_at + 1:
            raise OSError("lost")
        output = SimpleNamespace(token_ids=[1], finish_reason="length", logprobs=None, spec_decode_metrics=None)
        return iter([SimpleNamespace(finished=True, request_id=self.running.pop(0), outputs=[output])])

    def abort_request(self, names: list[str]) -> None:
        self.running = [name for name in self.running if name not in names]


def an_engine(fake: FakeVllm, started: list[bool]) -> worker.Engine:
    def start(speculative: bool) -> FakeVllm:
        started.append(speculative)
        return fake

    return worker.Engine(start=start, sampling_params=dict, final_only=None, vocab_size=8, options={}, version="1.0")


class TestAnswers:
    @pytest.mark.parametrize("concurrency", [1, 4])
    def test_no_more_at_once_than_asked(self, concurrency: int) -> None:
        fake = FakeVllm()
        answers = an_engine(fake, []).answer([a_request()] * 9, speculative=True, concurrency=concurrency)
        assert sorted(index for index, _ in answers) == list(range(9))
        assert fake.most == concurrency

    def test_a_refused_request_fails_alone(self) -> None:
        requests = [a_request(), a_request(prompt_token_ids=(3,)), a_request()]
        answers = dict(an_engine(FakeVllm(), []).answer(requests, speculative=True, concurrency=2))
        assert answers[1] == {"failure": "RuntimeError: the prompt is too short"}
        assert answers[0] == answers[2] == {"token_ids": [1], "finish_reason": "length"}

    def test_each_engine_is_started_once_and_the_plain_one_first(self) -> None:
        started: list[bool] = []
        engine = an_engine(FakeVllm(), started)
        for speculative in (True, False, True):
            list(engine.answer([a_request()], speculative=speculative, concurrency=1))
        assert started == [False, True]

    def test_a_step_that_breaks_loses_what_it_held(self) -> None:
        fake = FakeVllm(breaks_at=1)
        answers = dict(an_engine(fake, []).answer([a_request()] * 5, speculative=True, concurrency=2))
        assert [index for index, answer in answers.items() if answer == {"failure": "OSError: lost"}] == [1, 2]
        assert sorted(answers) == [0, 1, 2, 3, 4]
        assert fake.running == []


def test_drafted_places_of_ragged_rows() -> None:
    rows, places = rejection._drafted(torch.tensor([2, 0, 3]), 3)
    assert rows.tolist() == [0, 0, 2, 2, 2]
    assert places.tolist() == [0, 1, 0, 1, 2]


def test_the_interpreter_patches_only_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    builtin = object()
    core = SimpleNamespace(load=builtin, is_builtin=lambda member: member is builtin)
    language = SimpleNamespace(load=builtin, core=core)
    patched: list[Any] = []
    interpreter = SimpleNamespace(_patch_lang=patched.append)
    modules = {"triton.runtime.interpreter": interpreter, "triton.language": language}
    monkeypatch.setattr(rejection, "_import", modules.__getitem__)
    rejection._patch_language_once()
    kernel = SimpleNamespace(__globals__={"tl": language})
    library = SimpleNamespace(__globals__={"core": core})
    interpreter._patch_lang(kernel)
    language.load = None  # as the patch leaves it until the kernel ends
    interpreter._patch_lang(kernel)
    interpreter._patch_lang(library)
    core.load = None
    interpreter._patch_lang(library)
    assert patched == [kernel, library]
