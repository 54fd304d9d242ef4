"""The zoo: costs are estimated from above, and generated cases stay affordable and claimed."""

import hypothesis
import pytest

from verify import cases
from verify.cases import Case, estimated_paths, generated_cases
from verify.protocol import Capabilities

ZOO = [
    case
    for name, group in vars(cases).items()
    if name.startswith("EXACT_") and name != "EXACT_PATH_LIMIT"
    for case in group
]


def test_names_are_unique() -> None:
    assert len({case.name for case in ZOO}) == len(ZOO)


def test_the_zoo_has_a_zero_under_draft_mass_and_every_draft_length() -> None:
    assert any(case.spec.zeros for case in ZOO)
    assert {request.num_draft_tokens for case in ZOO for request in case.requests} == {0, 1, 2, 3}
    assert {case.spec.vocab_size for case in ZOO} == {2, 3, 4, 5}


@hypothesis.given(generated_cases(Capabilities(sampled=True, top_k=True), max_paths=500.0, batch=False))
@hypothesis.settings(max_examples=100, deadline=None)
def test_generated_cases_are_affordable_and_claimed(case: Case) -> None:
    assert estimated_paths(case) <= 500
    (request,) = case.requests
    assert not request.stop_token_ids
    assert request.sampling.top_p == 1
    assert all(token_id < case.spec.vocab_size for token_id in request.prompt_token_ids)


def test_generated_cases_reach_plain_decoding_and_requests_that_differ() -> None:
    claims = Capabilities(sampled=True, zero_draft_tokens=True, stop_tokens=True, batch=True)
    cases = generated_cases(claims, max_paths=2500.0, batch=True)
    hypothesis.find(cases, lambda case: all(request.num_draft_tokens == 0 for request in case.requests))
    hypothesis.find(cases, lambda case: len({request.sampling.temperature for request in case.requests}) == 2)
    hypothesis.find(cases, lambda case: len({request.stop_token_ids for request in case.requests}) == 2)


def test_a_third_draft_token_costs_more() -> None:
    by_name = {case.name: case for case in ZOO}
    cheap, dear = by_name["four new tokens"], by_name["three draft tokens"]
    assert estimated_paths(cheap) < estimated_paths(dear)
    assert estimated_paths(cheap) == pytest.approx(3568)
