"""Grammar masks inside a block: the exact law, drafts that violate the grammar, ends, and planted bugs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dspark import grammar
from dspark.decoder import SpeculativeDecoder
from dspark.drafters.model import ModelDrafter
from dspark.drafters.ngram import NgramDrafter
from dspark.drafters.protocol import Drafter
from dspark.grammar import TokenAutomaton, possible_tokens
from dspark.request import DecodingRequest, Request, SamplingParams
from dspark.sampling import Processors
from verify.cases import EXACT_GRAMMARS, Case
from verify.exact.distance import total_variation
from verify.exact.enumeration import enumerate_outcomes
from verify.grammar import first_violation
from verify.models.pairs import Relation, TableSpec, table_pair
from verify.models.reference import Reference
from verify.protocol import ModelPair

CPU = torch.device("cpu")


def distance(pair: ModelPair, case: Case, drafter: Drafter) -> float:
    decoder = SpeculativeDecoder(pair.target, drafter)
    found = enumerate_outcomes(lambda: decoder.generate(case.requests)[0].token_ids, max_paths=20_000)
    assert found.complete
    return total_variation(Reference(pair.target).sequence_law(case.requests[0]), found.law)


def pair_of(case: Case, folder: Path) -> ModelPair:
    return table_pair(case.spec, device=CPU, dtype=torch.float64, folder=folder)


@pytest.mark.parametrize("case", EXACT_GRAMMARS, ids=lambda case: case.name)
def test_exact_law(tmp_path: Path, case: Case) -> None:
    pair = pair_of(case, tmp_path)
    assert distance(pair, case, ModelDrafter(pair.draft)) < 1e-12


def test_drafts_that_violate_the_grammar(tmp_path: Path) -> None:
    """Prompt lookup drafts what stood in the prompt, whatever the grammar says."""
    case = EXACT_GRAMMARS[0]
    assert distance(pair_of(case, tmp_path), case, NgramDrafter()) < 1e-12


def first_state_only(request: DecodingRequest, token_ids: Sequence[int], *, start: int) -> Any:
    """GRAM-3: later rows of the block are not masked."""
    possible = possible_tokens(request, token_ids, start=start)
    return [*possible[:1], *[None] * (len(possible) - 1)]


def one_state_for_the_block(request: DecodingRequest, token_ids: Sequence[int], *, start: int) -> Any:
    """GRAM-2: the state is not moved by the drafts before a row."""
    possible = possible_tokens(request, token_ids, start=start)
    return possible[:1] * len(possible)


@pytest.mark.parametrize("bug", [first_state_only, one_state_for_the_block])
def test_planted_bugs_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: Any) -> None:
    monkeypatch.setattr("dspark.sampling.possible_tokens", bug)
    case = EXACT_GRAMMARS[0]
    pair = pair_of(case, tmp_path)
    assert distance(pair, case, ModelDrafter(pair.draft)) > 1e-2


def test_outputs_of_a_batch_are_paths(tmp_path: Path) -> None:
    """Rows with a grammar beside rows without; a grammar that ends stops its row."""
    spec = TableSpec(vocab_size=12, relation=Relation.CLOSE, seed=4, num_rows=512)
    pair = table_pair(spec, device=CPU, dtype=torch.float64, folder=tmp_path)
    steps = TokenAutomaton({0: {1: 1, 2: 0}, 1: {3: 0, 4: 2}, 2: {}}, final=frozenset({2}))
    asked = [
        Request(
            prompt_token_ids=(seed % 12, 3),
            max_new_tokens=14,
            seed=seed,
            stop_token_ids=(11,),
            sampling=SamplingParams(grammar=steps if seed % 3 else None),
        )
        for seed in range(12)
    ]
    decoder = SpeculativeDecoder(pair.target, ModelDrafter(pair.draft))
    together = decoder.generate(asked)
    assert any(each.finish_reason == "stop" for each in together)
    for request, answer in zip(asked, together, strict=True):
        assert first_violation(request, answer.token_ids) is None  # type: ignore[arg-type]
        assert decoder.generate([request])[0].token_ids == answer.token_ids


def test_a_dead_end_is_an_error(tmp_path: Path) -> None:
    pair = pair_of(EXACT_GRAMMARS[0], tmp_path)
    stuck = Request(
        prompt_token_ids=(1,), max_new_tokens=4, sampling=SamplingParams(grammar=TokenAutomaton({0: {1: 1}, 1: {}}))
    )
    with pytest.raises(ValueError, match="position 1 are NaN or infinite, or leave no token possible"):
        SpeculativeDecoder(pair.target, ModelDrafter(pair.draft)).generate([stuck])


def test_rows_from_the_middle_of_a_block() -> None:
    """`start` skips rows, not drafts; nothing is banned behind a stop token or a violation."""
    automaton = grammar.TokenAutomaton({0: {1: 1}, 1: {2: 0}, 2: {}}, final=frozenset({1}))
    request = Request(
        prompt_token_ids=(0,), max_new_tokens=9, stop_token_ids=(3,), sampling=SamplingParams(grammar=automaton)
    )
    assert possible_tokens(request, [1, 2, 1, 3, 0], start=1) == [[2, 3], [1], [2, 3], None, None]
    assert possible_tokens(request, [2, 1], start=0) == [[1], None, None]
    processors = Processors([request], vocab_size=4, device=CPU, dtype=torch.float64)
    drafts: Tensor = torch.tensor([[2, 1]])
    history = processors.history([[0, 1]])
    whole = processors.probs(torch.zeros(1, 3, 4), history, drafts)
    assert torch.equal(processors.probs(torch.zeros(1, 1, 4), history, drafts, start=2), whole[:, 2:])
    assert (whole > 0).int().tolist() == [[[0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 1, 1]]]
