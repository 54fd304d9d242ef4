"""The adapter speaks the suite's protocol without importing it, and keeps its word under every dtype."""

import ast
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import dspark
from dspark import conformance
from dspark.conformance import make_decoder
from tests.dspark.conftest import VOCAB_SIZE
from verify.protocol import Capabilities, ModelPair, Request, SamplingParams, StreamingDecoder

MAKERS = [value for name, value in vars(conformance).items() if name.startswith("make_")]
SCHEDULED = {
    conformance.make_dspark_decoder,
    conformance.make_lagged_decoder,
    conformance.make_scheduled_serving_decoder,
    conformance.make_threshold_decoder,
}

STANDARD = {make_decoder, conformance.make_serving_decoder}
WITH_A_DRAFT_MODEL = {
    *STANDARD,
    conformance.make_block_decoder,
    conformance.make_matching_decoder,
    conformance.make_tree_decoder,
    conformance.make_distinct_tree_decoder,
}


def pair(tiny: Callable[..., PreTrainedModel], dtype: torch.dtype, folder: Path) -> ModelPair:
    return ModelPair(
        name="tiny",
        target=tiny("qwen3", dtype=dtype),
        draft=tiny("qwen3", seed=1, dtype=dtype),
        vocab_size=VOCAB_SIZE,
        device=torch.device("cpu"),
        dtype=dtype,
        folder=folder,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", MAKERS)
def test_protocol(tiny: Callable[..., PreTrainedModel], tmp_path: Path, make: Callable, dtype: torch.dtype) -> None:
    decoder = make(pair(tiny, dtype, tmp_path))
    assert isinstance(decoder, StreamingDecoder)
    claims = Capabilities.of(decoder.capabilities)
    assert claims.arithmetic == ("float64" if dtype == torch.float64 else "float32")
    assert claims.draft_model == (make in WITH_A_DRAFT_MODEL)
    assert claims.standard_acceptance == (make in STANDARD)
    assert claims.scheduled == (make in SCHEDULED)
    requests = [
        Request(prompt_token_ids=(1, 2, 1), max_new_tokens=9, seed=1, logprobs=True),
        Request(prompt_token_ids=(3,), max_new_tokens=5, sampling=SamplingParams(temperature=0.0)),
    ]
    generations = decoder.generate(requests)
    if claims.scheduled and not claims.seeds_per_request:
        generations[0] = decoder.generate(requests[:1])[0]
    if not claims.scheduled and make is not conformance.make_ngram_decoder:  # those may find nothing worth verifying
        assert sum(each.record.num_draft_tokens for each in generations) > 0
    assert [len(each.token_ids) for each in generations] == [9, 5]
    assert [token for chunk in decoder.stream(requests[0]) for token in chunk] == list(generations[0].token_ids) or (
        dtype != torch.float64  # alone and in a batch round differently
    )


def test_no_import_of_the_suite() -> None:
    files = list(Path(dspark.__file__).parent.rglob("*.py"))
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "verify" for name in names), file


def test_every_adapter_is_an_entry_point() -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    ours = {value for value in declared["verify.decoders"].values() if value.startswith("dspark.conformance:")}
    assert ours == {f"dspark.conformance:{make.__name__}" for make in MAKERS}
