"""Planted bugs where draft_probs are not the law that the draft was drawn from (QMIS)."""

from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dspark.drafters.model import ModelDraftSession
from dspark.drafters.protocol import Proposal
from dspark.sampling import History, Processors, draw, one_hot_of_best
from dspark.verification import Verification, verify_block
from tests.mutants.acceptance import LAW, always_sampled
from tests.mutants.mutant import EXACT, Mutant

PROCESSED = ("exact law of processors", "sampled law of processors", "exact law of generated cases")
propose = ModelDraftSession.propose


def draft_best(law: Tensor, uniform: Tensor) -> Tensor:
    """The arg max, while the soft law is still declared as draft_probs."""
    return law.argmax(-1)


def draw_in_bfloat16(law: Tensor, uniform: Tensor) -> Tensor:
    """The draft is drawn from a softmax in bfloat16; draft_probs keep all their digits."""
    return draw(law.bfloat16().double(), uniform)


def raw_softmax(self: Processors, scores: Tensor) -> Tensor:
    """The scorer's default settings: temperature 1, no truncation; greedy rows stay greedy."""
    return one_hot_of_best(scores) if self._all_greedy else scores.softmax(-1)


processed_law = Processors.law


def processed(self: Processors, logits: Tensor, history: History, draft_token_ids: Tensor, *, start: int = 0) -> Tensor:
    """The drafter's laws are filtered as they should be."""
    return processed_law(self, self.scores(logits, history, draft_token_ids, start=start))


def settings_unknown_to_the_draft(self: ModelDraftSession, *, processors: Processors, **keywords: Any) -> Proposal:
    """A greedy request is drafted at temperature 1."""
    warm = [replace(each, sampling=replace(each.sampling, temperature=1.0)) for each in processors.requests]
    drafting = Processors(warm, vocab_size=processors.vocab_size, device=processors.device, dtype=processors.dtype)
    return propose(self, processors=drafting if any(processors._greedy) else processors, **keywords)


def best_where_greedy(self: ModelDraftSession, *, processors: Processors, **keywords: Any) -> Proposal:
    """Greedy rows draft their arg max and declare the soft law."""
    proposal = propose(self, processors=processors, **keywords)
    if not proposal.draft_token_ids.shape[1]:
        return proposal
    greedy = torch.tensor(processors._greedy, device=proposal.draft_token_ids.device)[:, None]
    best = torch.where(greedy, proposal.draft_probs.argmax(-1), proposal.draft_token_ids)
    return replace(proposal, draft_token_ids=best)


def other_laws(*, declared: bool) -> Any:
    """Drafts whose declared law, or the law they are drawn from, forgets the temperature and the truncation."""

    def propose_with(self: ModelDraftSession, **keywords: Any) -> Proposal:
        law = Processors.law
        laws: list[Tensor] = []

        def remembered(each: Processors, scores: Tensor) -> Tensor:
            own = law(each, scores)
            raw = own if each._all_greedy else scores.softmax(-1)
            laws.append(raw if declared else own)
            return own if declared else raw

        with mock.patch.object(Processors, "law", remembered):
            proposal = propose(self, **keywords)
        return replace(proposal, draft_probs=torch.cat(laws, 1)) if laws else proposal

    return propose_with


def one_row_late(*, draft_probs: Tensor, **keywords: Any) -> Verification:
    """Each draft is verified with the draft law of the position before it."""
    late = torch.cat([draft_probs[:, :1], draft_probs[:, :-1]], 1)
    return verify_block(draft_probs=late, **keywords)


def drop_unlikely_drafts(self: ModelDraftSession, **keywords: Any) -> Proposal:
    """A draft that the drafter finds unlikely is drawn once more; draft_probs stay those of one draw."""
    proposal = propose(self, **keywords)
    drafts, laws = proposal.draft_token_ids, proposal.draft_probs
    if not drafts.shape[1]:
        return proposal
    unlikely = laws.gather(-1, drafts.unsqueeze(-1)).squeeze(-1) < 0.2  # [B, K]
    again = laws.argmax(-1)
    return replace(proposal, draft_token_ids=last_only(torch.where(unlikely, again, drafts), drafts))


def last_only(changed: Tensor, drafts: Tensor) -> Tensor:
    """Change the last draft of the block, which no other law depends on."""
    return torch.cat([drafts[:, :-1], changed[:, -1:]], 1)


def qmis(row: str, source: str, mechanism: str, patches: dict[str, Any], **fields: Any) -> Mutant:
    """One bug of this family."""
    given: dict[str, Any] = {"check": EXACT, "properties": LAW, **fields}
    return Mutant(id=row, family="QMIS", source=source, mechanism=mechanism, patches=patches, **given)


SESSION = "dspark.drafters.model.ModelDraftSession.propose"
TEMPERATURE = "test_02_exact_law.py::test_processors[temperature 0.5]"
TRUNCATION = "test_02_exact_law.py::test_processors[top_k 2]"
MUTANTS = (
    qmis(
        "QMIS-4",
        "https://github.com/antirez/ds4/pull/482",
        "drafts are the arg max but are verified with the drafter's softmax",
        {"dspark.drafters.model.draw": draft_best},
        diagnosis=("greedy_draft_as_soft",),
    ),
    qmis(
        "QMIS-5",
        "https://github.com/deepseek-ai/DeepSpec/issues/31",
        "drafts are drawn from a law rounded to bfloat16, and verified with the law itself",
        {"dspark.drafters.model.draw": draw_in_bfloat16},
        diagnosis=("draft_drawn_rounded",),
    ),
    qmis(
        "QMIS-6",
        "https://github.com/vllm-project/vllm/pull/10198",
        "the scorer's target_probs ignore temperature and truncation, the draft's do not",
        {"dspark.sampling.Processors.law": raw_softmax, "dspark.sampling.Processors.probs": processed},
        check=TRUNCATION,
        properties=(*PROCESSED, "support"),
        diagnosis=("unprocessed", "no_truncation", "no_temperature"),
    ),
    qmis(
        "QMIS-9",
        "https://github.com/sgl-project/sglang/pull/37134",
        "greedy requests are drafted at temperature 1: lossless, but acceptance falls",
        {SESSION: settings_unknown_to_the_draft},
        check="test_10_acceptance.py::test_all_accepted[0.0]",
        properties=("draft = target accepts everything",),
    ),
    qmis(
        "QMIS-10",
        "https://github.com/romsto/Speculative-Decoding/blob/main/utils/logits_processor.py",
        "greedy requests draft the arg max, and are verified with soft laws",
        {"dspark.sampling.Processors.law": always_sampled, SESSION: best_where_greedy},
        check="test_01_greedy.py::test_identity_by_draft_length[1]",
        properties=("greedy identity",),
    ),
    qmis(
        "QMIS-a",
        "derived",
        "drafts are drawn before temperature and truncation, and verified with the law after them",
        {SESSION: other_laws(declared=False)},
        check=TEMPERATURE,
        properties=PROCESSED,
        diagnosis=("draft_drawn_unprocessed",),
    ),
    qmis(
        "QMIS-b",
        "derived",
        "drafts are drawn after temperature and truncation, and verified with the law before them",
        {SESSION: other_laws(declared=True)},
        check=TEMPERATURE,
        properties=PROCESSED,
        diagnosis=("draft_verified_unprocessed",),
    ),
    qmis(
        "QMIS-c",
        "derived",
        "each draft is verified with the draft law of the position before it",
        {"dspark.decoder.verify_block": one_row_late},
        diagnosis=("draft_verified_with_previous_row",),
    ),
    qmis(
        "QMIS-d",
        "derived",
        "an unlikely last draft is replaced by the arg max; draft_probs stay those of one draw",
        {SESSION: drop_unlikely_drafts},
        diagnosis=("draft_drawn_sharper", "greedy_draft_as_soft"),
    ),
)
