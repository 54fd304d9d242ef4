"""The ONNX Runtime worker without ONNX Runtime: what it asks for, what it refuses, the folder it makes for a pair."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.verify.engines.asked import a_request
from verify.engines.onnxruntime import conversion
from verify.engines.onnxruntime import engine as worker
from verify.protocol import Capabilities


def settings_of(**settings: Any) -> dict[str, Any]:
    return worker.search_settings(a_request(**settings), vocab_size=1024, seed=41)


def test_a_sampled_request() -> None:
    settings = settings_of(seed=9, temperature=0.7, top_p=0.9)
    assert (settings["do_sample"], settings["temperature"], settings["top_p"]) == (True, 0.7, 0.9)
    assert (settings["max_length"], settings["random_seed"]) == (7, 9)


def test_the_whole_vocabulary_is_a_top_k() -> None:
    assert settings_of()["top_k"] == 1024
    assert settings_of(top_k=4)["top_k"] == 4


def test_a_request_without_a_seed_gets_a_fresh_one() -> None:
    assert settings_of()["random_seed"] == 41


def test_greedy_takes_no_temperature() -> None:
    assert settings_of(temperature=0.0, repetition_penalty=1.2) == {
        "do_sample": False,
        "max_length": 7,
        "repetition_penalty": 1.2,
    }


@pytest.mark.parametrize("settings", [{"min_p": 0.1}, {"forbidden_token_ids": (1,)}, {"logprobs": True}])
def test_what_it_lacks_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError, match="ONNX Runtime GenAI"):
        settings_of(**settings)


def test_drafting() -> None:
    assert worker.speculative_settings(a_request(num_draft_tokens=99), {}) == {"max_draft_tokens": 16}
    options = {"method": "ngram", "ngram": "3", "min_adaptive_k": "1"}
    assert worker.speculative_settings(a_request(), options) == {
        "max_draft_tokens": 3,
        "ngram_size": 3,
        "min_adaptive_k": 1,
    }


def test_claims_are_claims_of_the_protocol() -> None:
    assert Capabilities.of(worker.capabilities({})).draft_model
    assert not Capabilities.of(worker.capabilities({"method": "ngram"})).draft_model


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "mtp"}, "method='mtp' must be one of draft_model, ngram; leave it out for draft_model"),
        ({"method": "ngram", "ngram": "two"}, "ngram='two' must be a whole number, 1 or more; leave it out for 2"),
        ({"min_adaptive_k": "one"}, "min_adaptive_k='one' must be JSON"),
    ],
)
def test_a_wrong_option_says_what_to_give(options: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        worker.open_engine(
            target="target", draft="draft", options=options, device="cpu", dtype="float32", folder=str(tmp_path)
        )


class Library:
    """ONNX Runtime GenAI's parameters, which know one option."""

    class GeneratorParams:
        def __init__(self, model: str) -> None: ...

        def set_speculative_options(self, **options: Any) -> None:
            if unknown := sorted(set(options) - {"min_adaptive_k"}):
                raise RuntimeError(f'Unknown value "{unknown[0]}"')

    Model = str


def test_options_of_the_engine_are_refused_when_it_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"vocab_size": 9}}))
    monkeypatch.setattr(worker, "import_module", lambda name: Library)
    monkeypatch.setattr(worker, "version", lambda name: "0")
    assert worker.Engine(tmp_path, tmp_path, options={"min_adaptive_k": "1"}).name.startswith("ONNX Runtime GenAI 0")
    with pytest.raises(ValueError, match=r"--engine adaptive='1': refused .*Unknown value .adaptive..*give ones of"):
        worker.Engine(tmp_path, tmp_path, options={"adaptive": "1"})


def test_a_pair_is_one_folder_with_one_configuration(tmp_path: Path) -> None:
    for name in ("target", "draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_text(name)
        decoder = {"filename": "model.onnx", "hidden_size": len(name), "session_options": {}}
        (tmp_path / name / "genai_config.json").write_text(json.dumps({"model": {"decoder": decoder}}))
    pair = worker.paired(tmp_path / "target", tmp_path / "draft")
    conversion.set_threads(pair, 2)
    model = json.loads((pair / "genai_config.json").read_text())["model"]
    assert (pair / model["decoder"]["filename"]).read_text() == "target"
    assert (pair / model["draft"]["filename"]).read_text() == "draft"
    assert model["draft"]["hidden_size"] == 5
    assert model["draft"]["session_options"] == model["decoder"]["session_options"] == {"intra_op_num_threads": 2}


def test_the_record_holds_the_engines_counts() -> None:
    stats = {"rounds": 11, "draft_tokens_proposed": 41, "draft_tokens_accepted": 14}
    record = worker.record_of(stats)
    assert (record["num_spec_steps"], record["num_draft_tokens"], record["num_accepted_draft_tokens"]) == (11, 41, 14)
