"""Planted bugs of the token after full acceptance (BON)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dspark.batch import Batch
from dspark.drafters.model import ModelDraftSession
from dspark.drafters.protocol import Proposal
from dspark.sampling import Processors, draw
from dspark.verification import Verification, verify_block
from tests.mutants.acceptance import LAW
from tests.mutants.draft_laws import PROCESSED, SESSION
from tests.mutants.mutant import EXACT, Mutant

law = Processors.law
propose = Batch._propose
draft = ModelDraftSession.propose


def last_row_unprocessed(self: Processors, scores: Tensor) -> Tensor:
    """The row after the last draft is a softmax of the scores: no temperature, no truncation."""
    laws = law(self, scores)
    if scores.shape[1] > 1 and not self._all_greedy:
        laws = torch.cat([laws[:, :-1], scores[:, -1:].softmax(-1)], 1)
    return laws


def bonus_by(choose: Any) -> Any:
    """A rule whose token after full acceptance is chosen by `choose(target_probs, draft_lengths, uniforms)`."""

    def rule(*, target_probs: Tensor, draft_lengths: Tensor, final_uniforms: Tensor, **keywords: Any) -> Verification:
        found = verify_block(
            target_probs=target_probs, draft_lengths=draft_lengths, final_uniforms=final_uniforms, **keywords
        )
        full = (found.num_accepted == draft_lengths) & (draft_lengths > 0)
        chosen = choose(target_probs, draft_lengths, final_uniforms)
        return replace(found, final_token_ids=torch.where(full, chosen, found.final_token_ids))

    return rule


def row_before(target_probs: Tensor, draft_lengths: Tensor, uniforms: Tensor) -> Tensor:
    """Drawn from the row of the last draft."""
    rows = torch.arange(len(draft_lengths))
    return draw(target_probs[rows, (draft_lengths - 1).clamp(min=0)], uniforms)


def best(target_probs: Tensor, draft_lengths: Tensor, uniforms: Tensor) -> Tensor:
    """The arg max of the right row."""
    return target_probs[torch.arange(len(draft_lengths)), draft_lengths].argmax(-1)


def bonus_after_the_last_rejection(
    *, target_probs: Tensor, draft_lengths: Tensor, final_uniforms: Tensor, **keywords: Any
) -> Verification:
    """A rejection of the last draft is taken for full acceptance: its successor comes from the bonus row."""
    found = verify_block(
        target_probs=target_probs, draft_lengths=draft_lengths, final_uniforms=final_uniforms, **keywords
    )
    bonus = draw(target_probs[torch.arange(len(draft_lengths)), draft_lengths], final_uniforms)
    last = (found.num_accepted == draft_lengths - 1) & (draft_lengths > 0)
    return replace(found, final_token_ids=torch.where(last, bonus, found.final_token_ids))


def without_bonus(*, draft_token_ids: Tensor, draft_lengths: Tensor, **keywords: Any) -> Verification:
    """After full acceptance the last draft ends the round: the token that the target has already paid for is dropped."""
    found = verify_block(draft_token_ids=draft_token_ids, draft_lengths=draft_lengths, **keywords)
    if draft_token_ids.shape[1] == 0:
        return found
    full = (found.num_accepted == draft_lengths) & (draft_lengths > 0)
    last = draft_token_ids[torch.arange(len(draft_lengths)), (draft_lengths - 1).clamp(min=0)]
    return Verification(found.num_accepted - full.long(), torch.where(full, last, found.final_token_ids))


def one_draft_more(self: ModelDraftSession, *, num_draft_tokens: Sequence[int], uniforms: Tensor, **rest: Any) -> Any:
    """Draft once more than asked and keep that law for the bonus."""
    more = torch.cat([uniforms, torch.zeros_like(uniforms[:, :1])], 1)
    proposal = draft(self, num_draft_tokens=[want + 1 for want in num_draft_tokens], uniforms=more, **rest)
    lengths = tuple(min(pair) for pair in zip(proposal.draft_lengths, num_draft_tokens, strict=True))
    self.__dict__["laws"] = proposal.draft_probs
    return proposal.shortened(lengths)


def bonus_from_draft(self: Batch, *arguments: Any) -> Proposal:
    """The bonus is drawn from the draft's own next row."""
    proposal = propose(self, *arguments)
    laws = self.session.__dict__.get("laws")
    if laws is not None and laws.shape[1] == proposal.draft_token_ids.shape[1] + 1:
        rows = torch.arange(len(laws))
        self.verify = bonus_by(lambda _, lengths, uniforms: draw(laws[rows, lengths], uniforms))
    return proposal


def bon(row: str, source: str, mechanism: str, patches: dict[str, Any], *diagnosis: str, **fields: Any) -> Mutant:
    """A bug of the bonus token."""
    given: dict[str, Any] = {"check": EXACT, "properties": (*LAW, "greedy identity"), **fields}
    return Mutant(
        id=row, family="BON", source=source, mechanism=mechanism, patches=patches, diagnosis=diagnosis, **given
    )


JAYMODY = "https://github.com/jaymody/speculative-sampling/commit/803de30f9d5956b6933ae883904c4b6a90f946ce"
MUTANTS = (
    bon(
        "BON-1",
        "https://github.com/SafeAILab/EAGLE/commit/bf10ac5adad29a39914fab2812a67769e190142c",
        "the bonus is drawn from softmax(raw logits): no temperature, no truncation",
        {"dspark.sampling.Processors.law": last_row_unprocessed},
        "bonus_unprocessed",
        check="test_02_exact_law.py::test_processors[temperature 0.5]",
        properties=PROCESSED,
    ),
    bon(
        "BON-3",
        JAYMODY,
        "a rejection of the last draft is taken for full acceptance: the bonus row gives its successor",
        {"dspark.decoder.verify_block": bonus_after_the_last_rejection},
    ),
    bon(
        "BON-4",
        "https://github.com/ohdearquant/lattice/pull/509",
        "the bonus is dropped on full acceptance: lossless, but every such round emits one token less",
        {"dspark.decoder.verify_block": without_bonus},
        check="test_10_acceptance.py::test_all_accepted[1.0]",
        properties=("draft = target accepts everything", "acceptance is 1 - TV"),
    ),
    bon(
        "BON-8a",
        "derived",
        "the bonus comes from target row K-1 instead of K",
        {"dspark.decoder.verify_block": bonus_by(row_before)},
        "bonus_previous_row",
        "previous_row",
    ),
    bon(
        "BON-8b",
        "derived",
        "the bonus comes from the draft's row K+1",
        {SESSION: one_draft_more, "dspark.batch.Batch._propose": bonus_from_draft},
        "bonus_from_draft",
    ),
    bon(
        "BON-8c",
        "derived",
        "the bonus is the target's arg max",
        {"dspark.decoder.verify_block": bonus_by(best)},
        "bonus_argmax",
        properties=LAW,
    ),
)
