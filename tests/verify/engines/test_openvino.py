"""The OpenVINO worker without OpenVINO: what it asks for, what it refuses, what it reads."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.verify.engines.asked import a_request
from verify.engines.openvino import engine as worker
from verify.protocol import Capabilities


def test_a_sampled_request() -> None:
    settings = worker.generation_settings(
        a_request(seed=9, temperature=0.7, top_k=4, min_p=0.1, stop_token_ids=(6, 7), min_new_tokens=2), seed=1
    )
    assert (settings["do_sample"], settings["temperature"], settings["top_k"], settings["min_p"]) == (True, 0.7, 4, 0.1)
    assert (settings["stop_token_ids"], settings["min_new_tokens"], settings["rng_seed"]) == ({6, 7}, 2, 9)


def test_a_request_without_a_seed_gets_a_fresh_one() -> None:
    assert worker.generation_settings(a_request(), seed=41)["rng_seed"] == 41


def test_greedy_takes_no_temperature() -> None:
    settings = worker.generation_settings(a_request(temperature=0.0, presence_penalty=0.5), seed=1)
    assert settings["do_sample"] is False
    assert settings["presence_penalty"] == 0.5
    assert "temperature" not in settings
    assert "rng_seed" not in settings


@pytest.mark.parametrize("settings", [{"logit_bias": {3: 1.0}}, {"allowed_token_ids": (1,)}, {"logprobs": True}])
def test_what_it_lacks_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError, match="OpenVINO GenAI"):
        worker.generation_settings(a_request(**settings), seed=1)


def test_drafting() -> None:
    request = a_request(num_draft_tokens=4)
    assert worker.drafting_settings(request, {}) == {"num_assistant_tokens": 4}
    lookup = worker.drafting_settings(request, {"method": "prompt_lookup", "ngram": "2"})
    assert lookup == {"num_assistant_tokens": 4, "max_ngram_size": 2}


def test_all_arithmetic_is_in_one_precision_unless_asked_otherwise() -> None:
    properties = worker.device_properties({"method": "draft_model"}, device="cpu", dtype="float32")
    assert properties == {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "INFERENCE_NUM_THREADS": 1,
    }
    changed = worker.device_properties({"KV_CACHE_PRECISION": "u8"}, device="cpu", dtype="float32")
    assert changed["KV_CACHE_PRECISION"] == "u8"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: worker.capabilities({"method": "eagle"}), "method='eagle' must be one of draft_model, prompt_lookup"),
        (lambda: worker.device_properties({"threads": "0"}, device="cpu", dtype="float32"), "whole number, 1 or more"),
        (lambda: worker.device_properties({}, device="cuda", dtype="float32"), "--device cpu"),
        (lambda: worker.device_properties({}, device="cpu", dtype="float64"), "--dtype float32"),
    ],
)
def test_wrong_options_say_what_to_give(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_claims_are_claims_of_the_protocol() -> None:
    assert Capabilities.of(worker.capabilities({})).draft_model
    lookup = Capabilities.of(worker.capabilities({"method": "prompt_lookup"}))
    assert not lookup.draft_model
    assert not lookup.record


def test_rounds_follow_from_the_counts() -> None:
    metrics = SimpleNamespace(
        get_num_accepted_tokens=lambda: 13,
        get_num_draft_tokens=lambda: 35,
        main_model_metrics=SimpleNamespace(get_num_generated_tokens=lambda: 24),
    )
    record = worker.record_of(metrics)
    assert (record["num_spec_steps"], record["num_draft_tokens"], record["num_accepted_draft_tokens"]) == (11, 35, 13)


def opened(target: str, device: str, *, scheduler_config: Any, prompt_lookup: bool, **properties: Any) -> str:
    """A pipeline of a plugin that knows no property of ours."""
    if "NONSENSE" in properties:
        raise RuntimeError("Exception from src/core.cpp:117:\nNotFound: Unsupported property NONSENSE by CPU plugin.\n")
    return "pipeline"


def test_properties_are_refused_when_it_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = SimpleNamespace(SchedulerConfig=SimpleNamespace, LLMPipeline=opened)
    monkeypatch.setattr(worker, "import_module", lambda name: library)
    monkeypatch.setattr(worker, "version", lambda name: "0")
    options = {"method": "prompt_lookup"}
    assert worker.Engine(tmp_path, None, options=options, properties={}).name == "OpenVINO GenAI 0, prompt_lookup"
    with pytest.raises(ValueError, match=r"^--engine NONSENSE='1': .* \(NotFound: Unsupported .*\.\); give properties"):
        worker.Engine(tmp_path, None, options=options | {"NONSENSE": "1"}, properties={"NONSENSE": "1"})
