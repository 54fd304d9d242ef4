"""Draft trees: the exact law for every kind of siblings, greedy identity on real models, and planted bugs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dspark.causal_model import CausalModel
from dspark.decoder import SpeculativeDecoder
from dspark.request import Request, SamplingParams
from dspark.tree import verification
from dspark.tree.context import TreeContext
from dspark.tree.decoder import TreeDecoder
from dspark.tree.drafter import ModelTreeDrafter, Siblings
from dspark.tree.topology import Topology
from tests.dspark.conftest import VOCAB_SIZE
from verify.cases import Case, case
from verify.exact.distance import total_variation
from verify.exact.enumeration import enumerate_outcomes
from verify.models.observer import observed
from verify.models.pairs import Relation, TableSpec, table_pair
from verify.models.reference import Reference
from verify.protocol import ModelPair

CPU = torch.device("cpu")
SPINE = Topology.spine((1, 2, 2, 2))
PLAIN = case("plain", seed=1)
CASES = (
    PLAIN,
    case("zeros under draft mass", zeros=0.4, seed=6),
    case("repetition penalty", repetition_penalty=1.8, seed=15, num_draft_tokens=1, max_new_tokens=2),
)
BUSHY = case("three siblings", num_draft_tokens=1, max_new_tokens=2, relation=Relation.OPPOSED, seed=3)


def distance(one: Case, siblings: Siblings, topology: Topology, folder: Path) -> float:
    pair = table_pair(one.spec, device=CPU, dtype=torch.float64, folder=folder)
    decoder = TreeDecoder(pair.target, ModelTreeDrafter(pair.draft, siblings=siblings), topology)
    found = enumerate_outcomes(lambda: decoder.generate(one.requests)[0].token_ids, max_paths=20_000)
    assert found.complete
    return total_variation(Reference(pair.target).sequence_law(one.requests[0]), found.law)


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
@pytest.mark.parametrize("siblings", ["distinct", "best"])
def test_exact_law(tmp_path: Path, siblings: Siblings, one: Case) -> None:
    assert distance(one, siblings, SPINE, tmp_path) < 1e-12


@pytest.mark.parametrize("siblings", ["independent", "distinct", "best"])
def test_exact_law_of_three_siblings(tmp_path: Path, siblings: Siblings) -> None:
    assert distance(BUSHY, siblings, Topology.of((3,)), tmp_path) < 1e-12


def test_exact_law_of_independent_siblings_over_rounds(tmp_path: Path) -> None:
    one = case("two tokens", vocab_size=2, num_draft_tokens=2, max_new_tokens=3, seed=5)
    assert distance(one, "independent", Topology.spine((2, 2)), tmp_path) < 1e-12


def whole_law_for_every_sibling(left: Tensor, draft: Tensor) -> Tensor:
    """TREE-1: only the rejected token itself is taken from the target."""
    excess = left.clone()
    token = (draft > 0).long().argmax(-1, keepdim=True)
    return excess.scatter(-1, token, (left - draft).clamp(min=0).gather(-1, token))


def target_untouched(left: Tensor, draft: Tensor) -> Tensor:
    """Each sibling is judged against the whole target."""
    return left


@pytest.mark.parametrize("bug", [whole_law_for_every_sibling, target_untouched])
def test_wrong_residuals_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: Any) -> None:
    monkeypatch.setattr(verification, "residual", bug)
    assert distance(BUSHY, "distinct", Topology.of((2,)), tmp_path) > 1e-3


def test_a_law_that_keeps_its_earlier_siblings_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The siblings differ, but all are declared as drawn from the first one's law."""
    draw_siblings: Any = ModelTreeDrafter(table(tmp_path).draft).open().__class__._draw_siblings

    def first_law(self: Any, nodes: Any, scores: Any, branches: Any, uniforms: Any, drafts: Any, laws: Tensor) -> None:
        draw_siblings(self, nodes, scores, branches, uniforms, drafts, laws)
        laws[:, nodes] = laws[:, nodes[:1]]

    monkeypatch.setattr("dspark.tree.drafter.ModelTreeSession._draw_siblings", first_law)
    one = case("two of four", vocab_size=4, num_draft_tokens=1, max_new_tokens=2, relation=Relation.UNRELATED, seed=2)
    assert distance(one, "distinct", Topology.of((2,)), tmp_path) > 1e-3


def table(folder: Path, **settings: Any) -> ModelPair:
    spec = TableSpec(vocab_size=12, relation=Relation.CLOSE, seed=8, num_rows=2048, sharpness=2.0, **settings)
    return table_pair(spec, device=CPU, dtype=torch.float64, folder=folder)


def asked(**settings: Any) -> Request:
    sampling = SamplingParams(**{"temperature": 0.0, **settings})
    return Request(prompt_token_ids=(1, 2, 3), max_new_tokens=30, num_draft_tokens=4, sampling=sampling, logprobs=True)


SHAPES = (SPINE, Topology.of((3, 2, 1)), Topology.of((1, 1, 1)), Topology((-1, -1, 1, 1, 2)))


@pytest.mark.parametrize("topology", SHAPES, ids=lambda each: "".join(map(str, each.parents)))
@pytest.mark.parametrize("siblings", ["distinct", "best"])
def test_greedy_identity_and_record(tmp_path: Path, siblings: Siblings, topology: Topology) -> None:
    pair = table(tmp_path)
    decoder = TreeDecoder(pair.target, ModelTreeDrafter(pair.draft, siblings=siblings), topology)
    for settings in ({}, {"presence_penalty": 1.5, "repetition_penalty": 1.3}):
        with observed(pair.target) as trace:
            (answer,) = decoder.generate([asked(**settings)])
        assert answer.token_ids == Reference(pair.target).greedy(asked(**settings))  # type: ignore[arg-type]
        record = answer.record
        assert record.num_accepted_draft_tokens + record.num_spec_steps in (30, 31)
        assert 0 < record.num_accepted_draft_tokens < record.num_draft_tokens
        assert len(trace.calls) == 1 + record.num_spec_steps
        roles = iter(answer.roles)
        for drafted, accepted in zip(record.drafted_per_step, record.accepted_per_step, strict=True):
            emitted = [next(roles, "") for _ in range(accepted + 1)]
            assert emitted[:accepted] == ["accepted"] * accepted
            assert emitted[-1] in ("recovered" if accepted < drafted else "bonus", "")


def test_more_siblings_accept_more(tmp_path: Path) -> None:
    pair = table(tmp_path)
    accepted = []
    for width in (1, 2, 4):
        drafter = ModelTreeDrafter(pair.draft, siblings="best")
        decoder = TreeDecoder(pair.target, drafter, Topology.of((width,) * 2))
        answers = decoder.generate([asked() for _ in range(1)])
        accepted.append(sum(each.record.num_accepted_draft_tokens for each in answers))
    assert accepted == sorted(accepted)
    assert accepted[-1] > accepted[0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_real_models(tiny: Callable[..., PreTrainedModel], kind: str, attention: str) -> None:
    target, draft = tiny(kind), tiny(kind, seed=1)
    for model in (target, draft):
        model.set_attn_implementation(attention)
    plain = SpeculativeDecoder(target).generate([asked()])[0]
    for drafter in (ModelTreeDrafter(draft, siblings="best"), ModelTreeDrafter(target, siblings="best")):
        answer = TreeDecoder(target, drafter, Topology.of((3, 2))).generate([asked()])[0]
        assert answer.token_ids == plain.token_ids
        # Eager attention takes its softmax in float32.
        assert answer.logprobs == pytest.approx(plain.logprobs, abs=1e-5 if attention == "eager" else 1e-9)


def test_context_after_a_branch(tiny: Callable[..., PreTrainedModel]) -> None:
    """What is kept of a tree is what plain reading leaves."""
    model = CausalModel.of(tiny("llama"))
    context = TreeContext(model)
    with torch.inference_mode():
        context.append(torch.tensor([[1, 2, 3]]))
        context.branch(torch.tensor([[4, 5, 6, 7]]), [-1, 0, 0, 2])
        context.commit([0, 2, 3])
        after = context.branch(torch.tensor([[8]]), [-1])
        whole = model.model(input_ids=torch.tensor([[1, 2, 3, 4, 6, 7, 8]])).logits[:, -1:]
    torch.testing.assert_close(after, whole, rtol=1e-9, atol=1e-9)
    assert context.length == 6


def test_seeds_streams_and_limits(tmp_path: Path, tiny: Callable[..., PreTrainedModel]) -> None:
    pair = table(tmp_path, max_positions=24)
    decoder = TreeDecoder(pair.target, ModelTreeDrafter(pair.draft, siblings="distinct"), SPINE)
    requests = [
        Request(prompt_token_ids=(seed % 12,), max_new_tokens=23 - seed, seed=seed, stop_token_ids=(7,))
        for seed in range(6)
    ]
    answers = decoder.generate(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert [token for chunk in decoder.stream(request) for token in chunk] == list(answer.token_ids)
    with pytest.raises(ValueError, match="a draft tree needs one"):
        TreeDecoder(tiny("mistral"), ModelTreeDrafter(tiny("llama")), SPINE).generate(
            [Request(prompt_token_ids=(1,), max_new_tokens=2)]
        )


def test_topologies() -> None:
    assert Topology.of((3, 2)).parents == (-1, -1, -1, 0, 0, 1, 1, 2, 2)
    assert Topology.spine((2, 3, 1)).parents == (-1, -1, 0, 0, 0, 2)
    tree = Topology.of((2, 1, 1))
    assert tree.upto(2).parents == (-1, -1, 0, 1)
    assert (tree.depth, tree.height(-1), tree.height(0), tree.path(4)) == (3, 3, 2, [0, 2, 4])
    for wrong in ((0,), (-1, 0, -1)):
        with pytest.raises(ValueError, match="breadth first"):
            Topology(wrong)


def test_vocabulary_size_is_the_targets(tiny: Callable[..., PreTrainedModel]) -> None:
    """A draft with fewer tokens, and one with fewer positions."""
    target = tiny("qwen3")
    plain = SpeculativeDecoder(target).generate([asked()])[0]
    for draft in (tiny("qwen3", seed=2, vocab_size=VOCAB_SIZE - 5), tiny("qwen3", seed=2, max_position_embeddings=16)):
        answer = TreeDecoder(target, ModelTreeDrafter(draft, siblings="best"), Topology.of((2, 2))).generate([asked()])[
            0
        ]
        assert answer.token_ids == plain.token_ids
