"""Targets with a recurrent state: a copy is restored after a rejection; models that cannot go on from one are recomputed."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Lfm2Config, PreTrainedModel

from dspark.cache import open_context
from dspark.causal_model import CausalModel
from dspark.decoder import SpeculativeDecoder
from dspark.drafters.model import ModelDrafter
from dspark.rowwise import RowwiseContext, SnapshotRow
from tests.dspark.conftest import SHAPE
from verify.cases import EXACT_RECURRENT
from verify.exact.distance import total_variation
from verify.exact.enumeration import enumerate_outcomes
from verify.models.pairs import Relation, TableSpec, table_pair
from verify.models.reference import Reference
from verify.protocol import ModelPair, Request, SamplingParams

SPEC = TableSpec(vocab_size=16, relation=Relation.CLOSE, seed=9, num_rows=2048, sharpness=2.0, recurrent=True)


@pytest.fixture
def pair(tmp_path: Path) -> ModelPair:
    return table_pair(SPEC, device=torch.device("cpu"), dtype=torch.float64, folder=tmp_path)


def answers(pair: ModelPair) -> list[bool]:
    """Whether each greedy answer of a batch is the target's own."""
    decoder = SpeculativeDecoder(pair.target, ModelDrafter(pair.draft))
    asked = [
        Request(prompt_token_ids=prompt, max_new_tokens=24, sampling=SamplingParams(temperature=0.0))
        for prompt in ((1,), (2, 3, 4), (5, 6))
    ]
    generations = decoder.generate(asked)
    assert any(0 < each.record.num_accepted_draft_tokens < each.record.num_draft_tokens for each in generations)
    reference = Reference(pair.target)
    return [each.token_ids == reference.greedy(request) for each, request in zip(generations, asked, strict=True)]


def test_greedy_identity(pair: ModelPair) -> None:
    assert isinstance(open_context(CausalModel.of(pair.target), 1), RowwiseContext)
    assert answers(pair) == [True] * 3


def trim_is_a_no_op(self: SnapshotRow, num_removed: int) -> None:
    """SSM-2: rejected drafts stay in the state."""
    if num_removed:
        self.cache.layers[0].crop(-num_removed)  # type: ignore[attr-defined]
    self.snapshot, self.uncommitted = None, self.uncommitted[:, :0]


extend = SnapshotRow.extend


def snapshot_too_late(self: SnapshotRow, token_ids: Tensor, *, last: bool) -> Any:
    """The copy is made after the block was read."""
    reading = extend(self, token_ids, last=last)
    self.snapshot = copy.deepcopy(self.cache)
    return reading


@pytest.mark.parametrize(("name", "bug"), [("commit", trim_is_a_no_op), ("extend", snapshot_too_late)])
def test_planted_bugs_are_seen(
    pair: ModelPair, monkeypatch: pytest.MonkeyPatch, name: str, bug: Callable[..., Any]
) -> None:
    monkeypatch.setattr(SnapshotRow, name, bug)
    assert not all(answers(pair))


@pytest.mark.parametrize("case", EXACT_RECURRENT, ids=lambda case: case.name)
def test_exact_law(tmp_path: Path, case: Any) -> None:
    pair = table_pair(case.spec, device=torch.device("cpu"), dtype=torch.float64, folder=tmp_path)
    decoder = SpeculativeDecoder(pair.target, ModelDrafter(pair.draft))
    found = enumerate_outcomes(lambda: decoder.generate(case.requests)[0].token_ids, max_paths=20_000)
    assert found.complete
    assert total_variation(Reference(pair.target).sequence_law(case.requests[0]), found.law) < 1e-12


def test_a_convolution_that_goes_on_is_restored() -> None:
    config = Lfm2Config(**{**SHAPE, "layer_types": ["conv", "full_attention"]})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).double().eval()
    context = open_context(CausalModel.of(model), 1)
    assert isinstance(context, RowwiseContext)
    assert isinstance(context.rows[0], SnapshotRow)
    text = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.inference_mode():
        whole = model(input_ids=text).logits
        context.extend(text[:, :3], [3])
        context.commit([3])
        context.extend(torch.tensor([[1, 7, 7, 7]]), [4])
        context.commit([4])
        rest = context.extend(text[:, 4:], [4]).logits
    torch.testing.assert_close(rest, whole[:, 4:], rtol=1e-9, atol=1e-9)


def test_a_model_that_starts_anew_is_recomputed(tiny: Callable[..., PreTrainedModel]) -> None:
    with pytest.warns(UserWarning, match="recomputed"):
        model = CausalModel.of(tiny("mamba"))
    assert model.cache_keyword == ""
