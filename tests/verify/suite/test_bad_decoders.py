"""Decoders that break the contract: one clear message, the right verdict and exit code, and a report."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.verify.running import run_suite
from verify.models.pairs import Relation, TableSpec, table_pair

ROOT = Path(__file__).parents[3]
LENGTHS = "verify/suite/test_05_stopping.py::test_every_length[same]"


def judge(tmp_path: Path, decoder: str, *checks: str, more: tuple[str, ...] = ()) -> tuple[int, dict[str, Any], str]:
    """Run some checks in a process of their own; exit code, results and what was printed."""
    arguments = [
        *checks,
        "--decoder",
        f"tests.verify.suite.decoders:{decoder}",
        "--profile",
        "smoke",
        "--allow-partial",
    ]
    return run_suite(tmp_path, *arguments, *more, timeout=300)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (
            "Raises",
            "generate raised RuntimeError on a request that needs only claimed features: out of coffee (decoders.py:",
        ),
        ("TooFew", "the output ended too early"),
        ("TooMany", "2 tokens emitted where max_new_tokens is 1"),
        ("Foreign", "token id 64 is not in the target's vocabulary of 64"),
        ("OneAnswerShort", "generate returned 0 generations for 1 requests"),
        ("NotASequence", "it must return a sequence with one Generation per request"),
        ("unknown_claim", "unknown capability 'topk'; did you mean 'top_k'?"),
        ("cannot_be_built", "make_decoder raised OSError"),
        ("rounds_the_target", "make_decoder changed the weights of the target that it was given"),
        ("claims_nothing", "claims neither greedy nor sampled; claim one"),
        ("no_claims", "make_decoder returned object, whose `capabilities` are invalid"),
    ],
)
def test_broken_contract_fails(tmp_path: Path, decoder: str, message: str) -> None:
    exit_code, results, printed = judge(tmp_path, decoder, LENGTHS)
    assert exit_code == 1, printed
    (check,) = results["checks"]
    assert check["verdict"] == "fail"
    assert check["evidence"] == "contract"
    assert message in check["reason"]
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("decoder", "check", "message"),
    [
        (
            "claims_logprobs",
            "test_11_logprobs.py::test_tables[plain]",
            "logprobs were requested and are claimed, but absent",
        ),
        ("claims_record", "test_10_acceptance.py::test_record[0.0]", "record is claimed but absent"),
        ("claims_streaming", "test_14_streaming.py::test_stream[greedy]", "stream raised AttributeError"),
        ("IgnoresTopK", "test_13_unclaimed.py::test_raises[top_k]", "top_k is not claimed, yet a request"),
    ],
)
def test_claims_are_held_to(tmp_path: Path, decoder: str, check: str, message: str) -> None:
    exit_code, results, printed = judge(tmp_path, decoder, f"verify/suite/{check}")
    assert exit_code == 1, printed
    assert message in results["checks"][0]["reason"]


def test_nothing_claimed_is_not_a_pass(tmp_path: Path) -> None:
    exit_code, results, printed = judge(tmp_path, "claims_record", "verify/suite/test_14_streaming.py")
    assert exit_code == 11, printed
    assert results["verdict"] == "incomplete"
    assert {check["verdict"] for check in results["checks"]} == {"not_applicable"}


def test_a_pair_that_does_not_fit_is_a_usage_error(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name, vocab_size in (("target", 16), ("draft", 12)):
        spec = TableSpec(vocab_size=vocab_size, relation=Relation.CLOSE)
        pair = table_pair(spec, device=torch.device("cpu"), dtype=torch.float32, folder=models)
        pair.target.save_pretrained(models / name)
    given = ("--target", str(models / "target"), "--draft", str(models / "draft"))
    exit_code, _, printed = judge(tmp_path, "Broken", LENGTHS, more=given)
    assert exit_code == 4, printed
    assert "the target has 16 tokens and the draft 12" in printed
    (models / "empty").mkdir()
    exit_code, _, printed = judge(tmp_path, "Broken", LENGTHS, more=("--target", str(models / "empty")))
    assert exit_code == 4, printed
    assert "has no config.json" in printed


def test_a_target_with_nan_logits_is_a_usage_error(tmp_path: Path) -> None:
    spec = TableSpec(vocab_size=16, relation=Relation.CLOSE)
    pair = table_pair(spec, device=torch.device("cpu"), dtype=torch.float32, folder=tmp_path)
    next(iter(pair.target.parameters())).fill_(float("nan"))
    pair.target.save_pretrained(tmp_path / "target")
    exit_code, _, printed = judge(tmp_path, "Broken", LENGTHS, more=("--target", str(tmp_path / "target")))
    assert exit_code == 4, printed
    assert "gives NaN or infinite logits" in printed
