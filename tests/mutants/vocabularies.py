"""Planted bugs of token ids and vocabularies (VOCAB)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dspark.drafters.model import ModelDraftSession, to_vocabulary
from dspark.drafters.protocol import Proposal
from dspark.sampling import draw
from dspark.verification import acceptance_ratios
from tests.mutants.acceptance import LAW
from tests.mutants.mutant import EXACT, Mutant

propose = ModelDraftSession.propose


def shifted_vocabulary(logits: Tensor, vocab_size: int) -> Tensor:
    """Draft token ids are off by one against the target's."""
    return to_vocabulary(logits, vocab_size).roll(1, -1)


def laws_in_the_drafts_order(self: ModelDraftSession, **keywords: Any) -> Proposal:
    """Tokens of a smaller vocabulary are mapped to the target's, draft_probs stay in the draft's own order."""
    proposal = propose(self, **keywords)
    smaller = self.model.vocab_size < keywords["processors"].vocab_size
    laws = proposal.draft_probs
    if smaller and laws.shape[1]:
        own = laws[..., : self.model.vocab_size].roll(1, -1)
        laws = torch.cat([own, laws[..., self.model.vocab_size :]], -1)
    return replace(proposal, draft_probs=laws)


wide: list[Tensor] = []


def remember_the_wide_law(logits: Tensor, vocab_size: int) -> Tensor:
    """Keep the draft's law over its own, larger vocabulary."""
    wide[:] = [logits.softmax(-1).squeeze(1)]
    return to_vocabulary(logits, vocab_size)


def draw_wide(law: Tensor, uniform: Tensor) -> Tensor:
    """Draw over the draft's own vocabulary; what the target lacks becomes its last token, and draft_probs do not know."""
    if wide[0].shape[-1] <= law.shape[-1]:
        return draw(law, uniform)
    return draw(wide[0], uniform).clamp(max=law.shape[-1] - 1)


def never_token_zero(draft_token_ids: Tensor, *arguments: Any) -> Tensor:
    """Token id 0 is taken for padding and is never accepted, while its residual is that of a rejection."""
    return torch.where(draft_token_ids == 0, 0.0, acceptance_ratios(draft_token_ids, *arguments))


def one_shard(law: Tensor, uniform: Tensor) -> Tensor:
    """Each rank draws from its own half of the vocabulary and the first rank's token is taken."""
    half = law.clone()
    half[..., (law.shape[-1] + 1) // 2 :] = 0.0
    return draw(torch.where(half.sum(-1, keepdim=True) > 0, half, law), uniform)


def vocab(row: str, source: str, mechanism: str, patches: dict[str, Any], **fields: Any) -> Mutant:
    """A bug of this family."""
    given: dict[str, Any] = {"check": EXACT, "properties": LAW, **fields}
    return Mutant(id=row, family="VOCAB", source=source, mechanism=mechanism, patches=patches, **given)


SESSION = "dspark.drafters.model.ModelDraftSession.propose"
SIZES = ("vocabularies of different size",)
MUTANTS = (
    vocab(
        "VOCAB-1",
        "https://github.com/NVIDIA-NeMo/Automodel/pull/2447",
        "draft ids are mapped to the wrong target ids, draft_probs too: lossless, but acceptance collapses",
        {"dspark.drafters.model.to_vocabulary": shifted_vocabulary},
        check="test_10_acceptance.py::test_all_accepted[1.0]",
        properties=("draft = target accepts everything", "acceptance is 1 - TV"),
    ),
    vocab(
        "VOCAB-3",
        "https://github.com/NVIDIA/TensorRT-LLM/pull/16440",
        "drafts are drawn from one shard of the vocabulary, and verified with the whole law",
        {"dspark.drafters.model.draw": one_shard},
        diagnosis=("draft_from_one_shard",),
    ),
    vocab(
        "QMIS-8",
        "https://github.com/xLLM-AI/xllm/pull/2175",
        "drafts of a smaller vocabulary are mapped to the target's, their draft_probs are not",
        {SESSION: laws_in_the_drafts_order},
        check="test_09_support.py::test_vocabularies[-1]",
        properties=SIZES,
    ),
    vocab(
        "VOCAB-4",
        "https://github.com/SafeAILab/EAGLE/issues/258",
        "a larger draft vocabulary passes unchecked: its extra tokens are read as the target's last one",
        {"dspark.drafters.model.to_vocabulary": remember_the_wide_law, "dspark.drafters.model.draw": draw_wide},
        check="test_09_support.py::test_vocabularies[2]",
        properties=SIZES,
    ),
    vocab(
        "TREE-3",
        "https://github.com/SafeAILab/EAGLE/commit/b09a25631df11d4b376fc5a3106d08b51d4bf7a3",
        "the real token 0 is taken for padding and can never be accepted",
        {"dspark.verification.acceptance_ratios": never_token_zero},
        diagnosis=("draft_token_0_lost",),
        properties=(*LAW, "greedy identity"),
    ),
)
