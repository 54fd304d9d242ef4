"""What an adapter author may write, and what is answered to a slip."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from verify.models.pairs import Relation, TableSpec, table_pair
from verify.protocol import Capabilities, Decoder, Request, SamplingParams, StreamingDecoder


def test_claims_may_be_a_mapping() -> None:
    assert Capabilities.of({"greedy": True, "logprobs": "raw"}) == Capabilities(greedy=True, logprobs="raw")
    assert not Capabilities().sampled


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"topk": True}, "unknown capability 'topk'; did you mean 'top_k'"),
        ({"arithmetic": "float16"}, "arithmetic is 'float16'; it must be one of 'float64', 'float32'"),
        ({"logprobs": True}, "logprobs is True"),
        (["greedy"], "capabilities is list"),
    ],
)
def test_a_wrong_claim_is_named(claims: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Capabilities.of(claims)  # type: ignore[arg-type]


def test_claims_read_as_words() -> None:
    assert str(Capabilities(greedy=True, logprobs="raw")) == "greedy, logprobs raw, arithmetic float32"


def test_an_unclaimed_request_is_refused() -> None:
    claims = Capabilities(sampled=True, top_k=True)
    asked = Request(prompt_token_ids=(1,), max_new_tokens=1, sampling=SamplingParams(top_k=2))
    claims.refuse_unclaimed(asked)
    with pytest.raises(NotImplementedError, match="not supported: sampled, top_k"):
        Capabilities(greedy=True).refuse_unclaimed(asked)


def test_directories_are_written_on_first_use(tmp_path: Path) -> None:
    spec = TableSpec(vocab_size=8, relation=Relation.CLOSE)
    pair = table_pair(spec, device=torch.device("cpu"), dtype=torch.float64, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    loaded = AutoModelForCausalLM.from_pretrained(pair.target_dir)
    assert torch.equal(loaded.logits_table, pair.target.logits_table)  # type: ignore[arg-type]
    assert pair.draft_dir != pair.target_dir


def test_protocols_are_structural() -> None:
    class Plain:
        capabilities = Capabilities(greedy=True)

        def generate(self, requests: object) -> list[object]:
            return []

    assert isinstance(Plain(), Decoder)
    assert not isinstance(Plain(), StreamingDecoder)
