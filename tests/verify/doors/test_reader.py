"""Files of generations: what can be read, and what is said of what cannot."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.verify.doors import logs
from verify.log.reader import read_log
from verify.log.truncation import decided
from verify.protocol import SamplingParams

LINE = {"prompt_token_ids": [1], "token_ids": [2], "sampling": {"temperature": 0}, "max_new_tokens": 1}


def test_plain_and_compressed_files_say_the_same(tmp_path: Path) -> None:
    text = (json.dumps(LINE | {"engine": "e 1"}) + "\n") * 3
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    names = ["a.jsonl", "a.jsonl.gz"]
    try:
        import zstandard
    except ImportError:
        pass
    else:
        (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(text.encode()))
        names.append("a.jsonl.zst")
    read = [read_log(tmp_path / name) for name in names]
    assert {log.engine for log in read} == {"e 1"}
    assert all(log == read[0] for log in read)
    assert [entry.number for entry in read[0].entries] == [1, 2, 3]


def test_a_truncated_archive_keeps_what_it_gives(tmp_path: Path) -> None:
    lines = [LINE | {"prompt_token_ids": np.random.default_rng(i).integers(1000, size=400).tolist()} for i in range(60)]
    data = gzip.compress("".join(json.dumps(each) + "\n" for each in lines).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    log = read_log(tmp_path / "a.jsonl.gz")
    assert 0 < len(log.entries) < 60
    assert log.broken[-1][0] >= len(log.entries) + 1
    assert "compressed data" in log.broken[-1][1]


def test_a_log_without_a_name_is_called_after_its_file(tmp_path: Path) -> None:
    assert read_log(logs.write(tmp_path / "my-engine.jsonl", [LINE])).engine == "my-engine"


def test_another_kind_of_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(pytest.UsageError, match=r"must end in \.jsonl, \.jsonl\.gz, \.jsonl\.zst"):
        read_log(logs.write(tmp_path / "log.csv", [LINE]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_ids": [-1]}, "token_ids.0: Input should be greater than or equal to 0"),
        ({"prompt_token_ids": []}, "prompt_token_ids: List should have at least 1 item"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature: Input should be greater than"),
        ({"finish_reason": "eos"}, "finish_reason: Input should be 'stop' or 'length'"),
        ({"logprobs": [-1.0]}, 'logprobs without logprobs_of; say "raw" or "processed"'),
        ({"top_k": 3}, "top_k: Extra inputs are not permitted"),
        ({"sampling": {"temperature": 1e-300}}, "1e-300 is neither 0 nor at least 1e-09"),
        ({"sampling": {"temperature": 1, "repetition_penalty": 1e300}}, "less than or equal to 1000000000"),
        ({"sampling": {"temperature": 1, "logit_bias": {"5": math.nan}}}, "less than or equal to 1000000000"),
        ({"sampling": {"temperature": 1, "logit_bias": {"5": math.inf}}}, "less than or equal to 1000000000"),
        ({"sampling": {"temperature": 1, "logit_bias": {"5": -1e300}}}, "neither -Infinity nor at least -1e+09"),
        ({"engine": "two\nlines"}, "a name holds printable characters only"),
        ({"engine": "x" * 5000}, "engine: String should have at most 200 characters"),
    ],
)
def test_each_reason_is_one_sentence(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    ((number, reason),) = read_log(logs.write(tmp_path / "a.jsonl", [LINE | change])).broken
    assert number == 1
    assert words in reason
    assert "\n" not in reason


def test_lines_that_no_parser_survives_are_broken_lines(tmp_path: Path) -> None:
    log = read_log(logs.write(tmp_path / "a.jsonl", ["[" * 100_000 + "\n", LINE]))
    assert [number for number, _ in log.broken] == [1]
    assert "no JSON" in log.broken[0][1]
    assert len(log.entries) == 1


def test_the_suites_own_generations_are_a_log(tmp_path: Path) -> None:
    request = {
        "prompt_token_ids": [1],
        "max_new_tokens": 1,
        "sampling": {"temperature": 0.0, "logit_bias": {"3": 1.0}, "grammar": None},
        "seed": None,
        "logprobs": True,
    }
    generation = {"token_ids": [2], "finish_reason": "length", "logprobs": [-0.5], "roles": ["first"]}
    recorded = {"check": "c", "models": "given-pair", "request": request, "generation": generation}
    log = read_log(logs.write(tmp_path / "a.jsonl", [recorded, recorded | {"models": "table-v3-close-seed1"}]))
    assert (len(log.entries), log.elsewhere, log.broken) == (1, 1, ())
    assert log.entries[0].line.sampling.logit_bias == {3: 1.0}
    assert log.entries[0].line.logprobs is None


@pytest.mark.parametrize(
    ("settings", "edge", "clear"),
    [
        ({"top_k": 2}, [0.5, 0.25, 0.25 - 1e-6], [0.5, 0.3, 0.2]),
        ({"top_p": 0.75}, [0.5, 0.25, 0.25], [0.5, 0.3, 0.2]),
        ({"top_p": 0.6}, [0.5, 0.25, 0.25 - 1e-6], [0.5, 0.3, 0.2]),
        ({"min_p": 0.5}, [0.5, 0.25 + 1e-6, 0.25 - 1e-6], [0.5, 0.3, 0.2]),
    ],
)
def test_positions_at_the_edge_of_a_truncation_are_left_out(
    settings: dict[str, Any], edge: list[float], clear: list[float]
) -> None:
    law = np.array([edge, clear])
    assert decided(law / law.sum(1, keepdims=True), SamplingParams(**settings), slack=1e-4) == [1]
    narrow = decided(np.array([clear, clear]), SamplingParams(**settings), slack=0.0)
    assert narrow == [0, 1]
