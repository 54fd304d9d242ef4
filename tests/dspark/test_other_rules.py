"""Block verification and sample matching: exactly the target's law, ragged, and what they accept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dspark import block_verification
from dspark.block_verification import verify_jointly
from dspark.decoder import SpeculativeDecoder
from dspark.drafters.model import ModelDrafter
from dspark.sample_matching import verify_by_matching
from dspark.verification import Verification, VerificationRule, verify_block
from verify.cases import Case, case
from verify.exact.distance import product_law, total_variation
from verify.exact.enumeration import enumerate_outcomes
from verify.models.pairs import Relation, table_pair
from verify.models.reference import Reference

RULES: dict[str, VerificationRule] = {"jointly": verify_jointly, "by matching": verify_by_matching}
CASES = [
    case("two tokens", vocab_size=2, seed=3),
    case("zeros", vocab_size=2, zeros=0.4, num_draft_tokens=1, max_new_tokens=2, seed=6),
    case("two rows", vocab_size=2, num_draft_tokens=1, max_new_tokens=2, prompts=((1,), (0, 1, 1)), seed=26),
]

# With two tokens every residual is one token, and a wrong one would not show; nor where a first draft is always likelier.
THREE_TOKENS = case("three tokens", relation=Relation.UNRELATED, seed=1)


def distance(one: Case, rule: VerificationRule, tmp_path: Any) -> float:
    pair = table_pair(one.spec, device=torch.device("cpu"), dtype=torch.float64, folder=tmp_path)
    decoder = SpeculativeDecoder(pair.target, ModelDrafter(pair.draft), verify=rule)
    found = enumerate_outcomes(
        lambda: tuple(each.token_ids for each in decoder.generate(one.requests)), max_paths=50_000
    )
    assert found.complete
    reference = Reference(pair.target)
    return total_variation(product_law([reference.sequence_law(each) for each in one.requests]), found.law)


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
@pytest.mark.parametrize("rule", RULES)
def test_exact_law(tmp_path: Any, rule: str, one: Case) -> None:
    assert distance(one, RULES[rule], tmp_path) < 1e-12


def token_residual(**arguments: Any) -> Verification:
    """RES-7: admits prefixes jointly, but draws the recovered token from the token-wise residual."""
    joint = verify_jointly(**arguments)
    if not arguments["draft_probs"].shape[1]:
        return joint
    rows = torch.arange(len(joint.num_accepted))
    place = joint.num_accepted.clamp(max=arguments["draft_probs"].shape[1] - 1)
    recovered = joint.num_accepted < arguments["draft_lengths"]
    draft_row = torch.where(recovered[:, None], arguments["draft_probs"][rows, place], 0.0)
    target_row = arguments["target_probs"][rows, joint.num_accepted]
    law = block_verification.residual(target_row, draft_row)
    return Verification(joint.num_accepted, block_verification.draw(law, arguments["final_uniforms"]))


def token_walk(**arguments: Any) -> Verification:
    """The token rule's accepted prefix, with the residual of block verification."""
    width = arguments["draft_probs"].shape[1]
    accepted = verify_block(**arguments).num_accepted
    coins = torch.where(torch.arange(1, width + 1) <= accepted[:, None], 0.0, 2.0)
    return verify_jointly(**{**arguments, "accept_uniforms": coins})


def test_exact_law_of_joint_residuals(tmp_path: Any) -> None:
    assert distance(THREE_TOKENS, verify_jointly, tmp_path) < 1e-12


@pytest.mark.parametrize("bug", [token_residual, token_walk])
def test_planted_bugs_are_seen(tmp_path: Any, bug: Callable[..., Verification]) -> None:
    assert distance(THREE_TOKENS, bug, tmp_path) > 1e-3


def block(seed: int, width: int, vocab_size: int = 5) -> dict[str, Tensor]:
    """Many rows of random laws with drafts from them and independent coins."""
    generator = torch.Generator().manual_seed(seed)
    rows = 20_000

    def laws(count: int) -> Tensor:
        logits = torch.randn(1, count, vocab_size, generator=generator, dtype=torch.float64)
        return logits.softmax(-1).expand(rows, -1, -1)

    draft_probs = laws(width)
    flat = draft_probs.reshape(-1, vocab_size)
    return {
        "draft_token_ids": torch.multinomial(flat, 1, generator=generator).view(rows, width),
        "draft_probs": draft_probs,
        "target_probs": laws(width + 1),
        "draft_lengths": torch.full((rows,), width),
        "accept_uniforms": torch.rand(rows, width, generator=generator, dtype=torch.float64),
        "final_uniforms": torch.rand(rows, generator=generator, dtype=torch.float64),
    }


@pytest.mark.parametrize("seed", range(4))
def test_acceptance_is_ordered(seed: int) -> None:
    arguments = block(seed, width=4)
    accepted = [rule(**arguments).num_accepted.double() for rule in (verify_jointly, verify_block, verify_by_matching)]
    means = [each.mean() for each in accepted]
    error = max(each.std() for each in accepted) / 20_000**0.5
    assert means[0] > means[1] - 4 * error
    assert means[1] > means[2] + 4 * error


@pytest.mark.parametrize("rule", RULES)
def test_no_drafts_and_ragged_rows(rule: str) -> None:
    arguments = block(0, width=3)
    lengths = torch.arange(20_000) % 4
    result = RULES[rule](**{**arguments, "draft_lengths": lengths})
    assert bool((result.num_accepted <= lengths).all())
    for length in range(4):
        kept = lengths == length
        cut = {name: value[kept] for name, value in {**arguments, "draft_lengths": lengths}.items()}
        for name in ("draft_token_ids", "draft_probs", "accept_uniforms"):
            cut[name] = cut[name][:, :length]
        cut["target_probs"] = cut["target_probs"][:, : length + 1]
        alone = RULES[rule](**cut)
        assert torch.equal(alone.num_accepted, result.num_accepted[kept])
        assert torch.equal(alone.final_token_ids, result.final_token_ids[kept])


def test_a_law_that_is_none_ends_the_block() -> None:
    arguments = block(0, width=3)
    arguments["draft_probs"] = arguments["draft_probs"].clone()
    arguments["draft_probs"][:, 1] = torch.nan
    result = verify_jointly(**arguments)
    assert int(result.num_accepted.max()) == 1
    shorter = verify_jointly(**{**arguments, "draft_lengths": torch.ones(20_000, dtype=torch.long)})
    assert torch.equal(result.num_accepted, shorter.num_accepted)
    assert torch.equal(result.final_token_ids, shorter.final_token_ids)
