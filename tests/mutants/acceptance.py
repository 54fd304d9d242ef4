"""Planted bugs of the acceptance test (ACC)."""

from typing import Any

import torch
from torch import Tensor

from dspark.batch import Batch
from dspark.drafters.protocol import Proposal
from dspark.randomness import RoundUniforms, round_uniforms
from dspark.sampling import Processors
from dspark.verification import Verification, acceptance_ratios, verify_block
from tests.mutants.mutant import EXACT, Mutant

LAW = ("exact law", "exact law of generated cases", "sampled law", "law after an event", "support")
# The verified token is not the drafted one: more is accepted than should be, whatever it is.
OTHER_TOKEN = ("ratio_of_another_token", "acceptance_too_generous", "everything_accepted")
TOO_MUCH = ("acceptance_too_generous", "everything_accepted", "draft_leak", "pulled_to_draft")


def first_draft_unseen(draft_token_ids: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """The first draft is never compared with the target."""
    ratios = acceptance_ratios(draft_token_ids, draft_probs, target_probs)
    ratios[:, :1] = 1.0
    return ratios


def coin_of_zero(*, accept_uniforms: Tensor, **keywords: Any) -> Verification:
    """Every accept coin is 0."""
    return verify_block(accept_uniforms=torch.zeros_like(accept_uniforms), **keywords)


def certain_drafts_accepted(*, draft_probs: Tensor, accept_uniforms: Tensor, **keywords: Any) -> Verification:
    """A draft that its law was sure of is taken for greedy, and accepted without a coin."""
    sure = draft_probs.amax(-1) == 1  # [B, K]
    return verify_block(draft_probs=draft_probs, accept_uniforms=accept_uniforms.masked_fill(sure, 0.0), **keywords)


def trust_everything(draft_token_ids: Tensor, draft_probs: Tensor) -> Tensor:
    """No guard against NaN or infinity in draft_probs."""
    return torch.ones(draft_probs.shape[:2], dtype=torch.bool)


def unguarded_ratios(draft_token_ids: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """target / draft whatever the draft is."""
    index = draft_token_ids.unsqueeze(-1)
    return (target_probs[:, :-1].gather(-1, index) / draft_probs.gather(-1, index)).squeeze(-1)


def reject_only_what_compares(ratios: Tensor, uniforms: Tensor) -> Tensor:
    """Rejected if uniform >= ratio: a comparison with NaN accepts."""
    standing = torch.ones(ratios.shape[0], dtype=torch.long)
    num_accepted = torch.zeros(ratios.shape[0], dtype=torch.long)
    for position in range(ratios.shape[1]):
        standing = standing * (~(uniforms[:, position] >= ratios[:, position])).long()
        num_accepted = num_accepted + standing
    return num_accepted


propose = Batch._propose


def remember_the_first_block(self: Any, *arguments: Any) -> Proposal:
    """The acceptance test looks its tokens up at prompt length + i: from the second block on these are of the first."""
    proposal = propose(self, *arguments)
    first = self.__dict__.setdefault("first_drafts", proposal.draft_token_ids)
    shape = proposal.draft_token_ids.shape
    if len(first) == shape[0] and first.shape[1] >= shape[1]:
        self.verify = lambda **keywords: verify_block(**{**keywords, "draft_token_ids": first[:, : shape[1]]})
    return proposal


def ratio_at_the_best(draft_token_ids: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """The ratio is taken at the target's arg max instead of at the draft."""
    return acceptance_ratios(target_probs[:, :-1].argmax(-1), draft_probs, target_probs)


def always_sampled(self: Processors, scores: Tensor) -> Tensor:
    """A greedy request takes the stochastic branch."""
    return self.sampled_law(scores)


def without_temperature(self: Processors, scores: Tensor) -> Tensor:
    """Truncation and softmax of the scores at temperature 1."""
    return self._truncated(scores).softmax(-1)


processors_init = Processors.__init__


def sentinel_not_replaced(self: Processors, *arguments: Any, **keywords: Any) -> None:
    """In a mixed batch the greedy rows keep their temperature of 0, and are divided by it."""
    processors_init(self, *arguments, **keywords)
    if any(self._greedy) and not all(self._greedy):
        self._temperature = self._column([each.sampling.temperature for each in self.requests], self.dtype)
        self._is_greedy = None


def probabilities_as_logits(*, target_probs: Tensor, **keywords: Any) -> Verification:
    """The rejection step takes the target's probabilities for logits."""
    return verify_block(target_probs=target_probs.softmax(-1), **keywords)


def accept_where_target_is_larger(draft_token_ids: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Accept if and only if target >= draft: no coin."""
    return (acceptance_ratios(draft_token_ids, draft_probs, target_probs) >= 1).double()


def count_all(ratios: Tensor, uniforms: Tensor) -> Tensor:
    """Drafts behind the first rejection count too."""
    return (uniforms < ratios).long().sum(-1)


def one_coin_per_block(*arguments: Any, **keywords: Any) -> RoundUniforms:
    """The first accept coin decides about every position."""
    uniforms = round_uniforms(*arguments, **keywords)
    return RoundUniforms(uniforms.draft, uniforms.accept[:, :1].expand_as(uniforms.accept), uniforms.final)


MUTANTS = (
    Mutant(
        id="ACC-1",
        family="ACC",
        source="https://github.com/ohdearquant/lattice/issues/243",
        mechanism="the first draft of a block is accepted without being compared with its own row",
        patches={"dspark.verification.acceptance_ratios": first_draft_unseen},
        check=EXACT,
        properties=(*LAW, "greedy identity"),
        diagnosis=TOO_MUCH,
    ),
    Mutant(
        id="ACC-2",
        family="ACC",
        source="https://github.com/vllm-project/vllm-ascend/issues/13730",
        mechanism="the accept coin is hard-coded to 0: every draft that the target can emit is accepted",
        patches={"dspark.decoder.verify_block": coin_of_zero},
        check=EXACT,
        properties=LAW,
        diagnosis=TOO_MUCH,
    ),
    Mutant(
        id="ACC-a",
        family="ACC",
        source="derived",
        mechanism="a draft law of one token, as truncation leaves it, is taken for a greedy draft and accepted without a coin",
        patches={"dspark.decoder.verify_block": certain_drafts_accepted},
        check="test_02_exact_law.py::test_more_processors[top_p 0.8, a draft sure of one token]",
        properties=("exact law of processors", "exact law of generated cases", "sampled law of processors"),
        diagnosis=TOO_MUCH,
    ),
    Mutant(
        id="ACC-4",
        family="ACC",
        source="https://github.com/sgl-project/sglang/pull/37134",
        mechanism="a NaN in draft_probs makes the comparison accept unconditionally",
        patches={
            "dspark.verification.trustworthy": trust_everything,
            "dspark.verification.acceptance_ratios": unguarded_ratios,
            "dspark.verification.accepted_prefix": reject_only_what_compares,
        },
        check="test_09_support.py::test_corrupt_draft[nan]",
        properties=("corrupt draft",),
    ),
    Mutant(
        id="ACC-5",
        family="ACC",
        source="https://github.com/romsto/Speculative-Decoding/commit/41668c8d34da99c20932b902cac65d22ae29ff36",
        mechanism="from the second block on the acceptance test uses the tokens of the first",
        patches={"dspark.batch.Batch._propose": remember_the_first_block},
        check=EXACT,
        properties=LAW,
        diagnosis=OTHER_TOKEN,
    ),
    Mutant(
        id="ACC-6",
        family="ACC",
        source="https://github.com/jaymody/speculative-sampling/commit/803de30f9d5956b6933ae883904c4b6a90f946ce",
        mechanism="the ratio is evaluated at the target's arg max instead of at the drafted token",
        patches={"dspark.verification.acceptance_ratios": ratio_at_the_best},
        check=EXACT,
        properties=(*LAW, "greedy identity"),
        diagnosis=OTHER_TOKEN,
    ),
    Mutant(
        id="ACC-8",
        family="ACC",
        source="https://github.com/jundot/omlx/issues/1330",
        mechanism="temperature 0 runs the stochastic branch",
        patches={"dspark.sampling.Processors.law": always_sampled},
        check="test_01_greedy.py::test_without_drafts",
        properties=("greedy identity", "greedy controls"),
    ),
    Mutant(
        id="ACC-10",
        family="ACC",
        source="https://github.com/ohdearquant/lattice/pull/974",
        mechanism="target, draft and bonus laws are computed at temperature 1 whatever the request says",
        patches={"dspark.sampling.Processors.sampled_law": without_temperature},
        check="test_02_exact_law.py::test_processors[temperature 0.5]",
        properties=("exact law of processors", "sampled law of processors"),
        diagnosis=("no_temperature", "unprocessed"),
    ),
    Mutant(
        id="ACC-12",
        family="ACC",
        source="https://github.com/vllm-project/vllm/pull/27077",
        mechanism="the greedy sentinel is not replaced in mixed batches: logits / 0",
        patches={"dspark.sampling.Processors.__init__": sentinel_not_replaced},
        check="test_07_batches.py::test_mixed_sampling",
        properties=("mixed sampling",),
    ),
    Mutant(
        id="ACC-13",
        family="ACC",
        source="https://github.com/vllm-project/vllm-ascend/pull/6685",
        mechanism="target_probs are passed where logits are expected",
        patches={"dspark.decoder.verify_block": probabilities_as_logits},
        check=EXACT,
        properties=(*LAW, "greedy identity", "greedy controls"),
        diagnosis=("probabilities_as_logits",),
    ),
    Mutant(
        id="ACC-14",
        family="ACC",
        source="https://github.com/vllm-project/vllm-project.github.io/pull/80",
        mechanism="accept iff target >= draft, else residual",
        patches={"dspark.verification.acceptance_ratios": accept_where_target_is_larger},
        check=EXACT,
        properties=LAW,
        diagnosis=("accept_without_coin",),
    ),
    Mutant(
        id="ACC-15",
        family="ACC",
        source="https://github.com/vllm-project/vllm/pull/2658",
        mechanism="drafts behind the first rejection count as accepted",
        patches={"dspark.verification.accepted_prefix": count_all},
        check=EXACT,
        properties=(*LAW, "greedy identity"),
        # Where the second draft alone is accepted, the count says one and the first is emitted: on the word of another's ratio.
        diagnosis=(*TOO_MUCH, "ratio_of_another_token"),
    ),
    Mutant(
        id="ACC-16",
        family="ACC",
        source="derived",
        mechanism="the accept coin is drawn once per block and reused for every position",
        patches={"dspark.batch.round_uniforms": one_coin_per_block},
        check=EXACT,
        properties=LAW,
        diagnosis=("coin_of_the_round",),
    ),
)
