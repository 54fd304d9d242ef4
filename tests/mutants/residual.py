"""Planted bugs of the recovered token (RES)."""

from typing import Any

import torch
from torch import Tensor

from dspark.conformance import make_ngram_decoder
from dspark.sampling import draw
from dspark.verification import Verification, residual, verify_block
from tests.mutants.acceptance import LAW
from tests.mutants.mutant import EXACT, Mutant


def softmax_of_excess(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """softmax(clamp(target - draft)): every token gets mass."""
    return (target_row - draft_row).clamp(min=0).softmax(-1)


def recovered_row(offset: int) -> Any:
    """A rule whose recovered token comes from the residual of another target row."""

    def rule(
        *, draft_probs: Tensor, target_probs: Tensor, draft_lengths: Tensor, final_uniforms: Tensor, **keywords: Any
    ) -> Verification:
        given = {"draft_probs": draft_probs, "target_probs": target_probs, "draft_lengths": draft_lengths}
        found = verify_block(**given, final_uniforms=final_uniforms, **keywords)
        width = draft_probs.shape[1]
        if not width:
            return found
        rows = torch.arange(len(draft_lengths))
        rejected = found.num_accepted.clamp(max=width - 1)
        wrong = (found.num_accepted + offset).clamp(0, width)
        excess = residual(target_probs[rows, wrong].double(), draft_probs[rows, rejected].double())
        recovered = torch.where(found.num_accepted < draft_lengths, draw(excess, final_uniforms), found.final_token_ids)
        return Verification(found.num_accepted, recovered)

    return rule


def target_row(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """The recovered token comes from the target itself."""
    return target_row


def absolute(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """|target - draft|."""
    return torch.where(draft_row.sum(-1, keepdim=True) > 0, (target_row - draft_row).abs(), target_row)


def wrong_sign(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """max(draft - target, 0); the bonus, which subtracts nothing, is right."""
    excess = (draft_row - target_row).clamp(min=0)
    return torch.where(excess.sum(-1, keepdim=True) > 0, excess, target_row)


def best_of_excess(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """The arg max of the residual; the bonus is drawn."""
    excess = residual(target_row, draft_row)
    best = torch.zeros_like(excess).scatter(-1, excess.argmax(-1, keepdim=True), 1.0)
    return torch.where(draft_row.sum(-1, keepdim=True) > 0, best, target_row)


def from_draft(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """The rejection branch draws from the draft's row."""
    return torch.where(draft_row.sum(-1, keepdim=True) > 0, draft_row, target_row)


def res(row: str, source: str, mechanism: str, replacement: Any, *diagnosis: str, **fields: Any) -> Mutant:
    """A bug of the residual."""
    given: dict[str, Any] = {
        "patches": {"dspark.verification.residual": replacement},
        "check": EXACT,
        "properties": LAW,
        **fields,
    }
    return Mutant(id=row, family="RES", source=source, mechanism=mechanism, diagnosis=diagnosis, **given)


MUTANTS = (
    res(
        "RES-1",
        "https://github.com/huggingface/transformers/pull/28508",
        "residual = softmax(clamp(target - draft, 0))",
        softmax_of_excess,
        "residual_softmax",
        "support_violation",
        "uniform_leak",
        properties=(*LAW, "greedy identity"),
    ),
    res(
        "RES-2",
        "https://github.com/huggingface/transformers/pull/28166",
        "the residual is taken from the target row behind the rejected one",
        None,
        patches={"dspark.decoder.verify_block": recovered_row(1)},
        properties=(*LAW, "greedy identity"),
    ),
    res(
        "RES-8",
        "https://github.com/romsto/Speculative-Decoding/blob/main/sampling/speculative_decoding.py",
        "the recovered token is sampled from the target, not from the residual",
        target_row,
        "residual_not_subtracted",
    ),
    res("RES-12a", "derived", "the residual is |target - draft|", absolute, "residual_absolute"),
    res(
        "RES-12b",
        "derived",
        "the residual is max(draft - target, 0)",
        wrong_sign,
        "residual_reversed",
        properties=(*LAW, "greedy identity"),
    ),
    res("RES-12c", "derived", "the recovered token is the arg max of the residual", best_of_excess, "residual_argmax"),
    res(
        "RES-12d",
        "derived",
        "the residual is taken from the target row before the rejected one",
        None,
        "residual_previous_row",
        "previous_row",
        patches={"dspark.decoder.verify_block": recovered_row(-1)},
        properties=(*LAW, "greedy identity"),
    ),
    res(
        "RES-12e",
        "derived",
        "prompt lookup: the recovered token may be the rejected one-hot draft again",
        target_row,
        make=make_ngram_decoder,
        check="test_02_exact_law.py::test_generated",
    ),
    res(
        "RES-12f",
        "derived",
        "the rejection branch draws from the draft's row",
        from_draft,
        "recovered_from_draft",
        properties=(*LAW, "greedy identity"),
    ),
)
