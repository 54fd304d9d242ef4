"""From answers to evidence: every emitted token with the law it should have followed and the laws of known mistakes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from verify.betting.evidence import MAX_PIECE_ELEMENTS, TokenEvidence
from verify.betting.library import ALTERNATIVES
from verify.models.law import alternative_laws, draft_alternatives, next_token_laws
from verify.models.observer import Round
from verify.subject import Observed, Subject


def score(subject: Subject, answers: Sequence[Observed]) -> Iterator[TokenEvidence]:
    """One batch of evidence per answer, in order.

    Draft laws are given where the decoder claims that `ModelPair.draft` drafts; offsets inside the round where the rounds
    were observed.
    """
    scored = [(each.request, each.generation.token_ids) for each in answers]
    target_rows = subject.reference.logits_of(scored)
    draft_rows: list[Tensor | None] = [None] * len(answers)
    if subject.capabilities.draft_model:
        draft_rows = list(subject.draft_reference.logits_of(scored))
    for each, rows, drafted in zip(answers, target_rows, draft_rows, strict=True):
        token_ids = each.generation.token_ids
        laws = alternative_laws(rows, each.request, token_ids)
        if drafted is not None:
            laws |= draft_alternatives(drafted, each.request, token_ids)
        alternatives = {name: array(law) for name, law in laws.items() if name in ALTERNATIVES}
        yield TokenEvidence(
            target_probs=array(next_token_laws(rows, each.request, token_ids)),
            token_ids=np.array(token_ids, dtype=np.int64),
            draft_probs=None if drafted is None else array(next_token_laws(drafted, each.request, token_ids)),
            alternatives=alternatives,
            draft_offsets=None
            if each.rounds is None
            else offsets(each.rounds, len(token_ids), each.request.num_draft_tokens),
            num_draft_tokens=each.request.num_draft_tokens,
            roles=each.generation.roles,
        )


def joined(pieces: Iterable[TokenEvidence]) -> Iterator[TokenEvidence]:
    """The same tokens in fewer pieces: small neighbours that know the same things become one.

    A bet costs several times less per token on hundreds of tokens than on the dozens of one answer. Pieces that a bet would
    cut again are left alone: rows of a large vocabulary are not copied.
    """
    run: list[TokenEvidence] = []
    num_elements = 0
    for piece in pieces:
        size = piece.num_tokens * piece.vocab_size
        if run and (num_elements + size > MAX_PIECE_ELEMENTS or _knows(run[0]) != _knows(piece)):
            yield _concatenated(run)
            run, num_elements = [], 0
        run.append(piece)
        num_elements += size
    if run:
        yield _concatenated(run)


def _knows(piece: TokenEvidence) -> tuple[object, ...]:
    optional = (piece.draft_probs, piece.draft_offsets, piece.roles)
    return (*(each is None for each in optional), piece.num_draft_tokens, tuple(piece.alternatives))


def _concatenated(run: Sequence[TokenEvidence]) -> TokenEvidence:
    first = run[0]

    def whole(name: str) -> Any:
        return None if getattr(first, name) is None else np.concatenate([getattr(piece, name) for piece in run])

    return TokenEvidence(
        target_probs=whole("target_probs"),
        token_ids=whole("token_ids"),
        draft_probs=whole("draft_probs"),
        alternatives={name: np.concatenate([piece.alternatives[name] for piece in run]) for name in first.alternatives},
        draft_offsets=whole("draft_offsets"),
        num_draft_tokens=first.num_draft_tokens,
        roles=None if first.roles is None else [role for piece in run for role in piece.roles or ()],
    )


def array(law: Tensor) -> npt.NDArray[np.float64]:
    """A law as numpy float64."""
    values: npt.NDArray[np.float64] = law.to("cpu", torch.float64).numpy()
    return values


def offsets(rounds: Sequence[Round], num_tokens: int, num_draft_tokens: int) -> npt.NDArray[np.int64]:
    """Offset of every output token inside its round; a position without a draft has `num_draft_tokens`."""
    found = np.full(num_tokens, -1, dtype=np.int64)
    for each in rounds:
        for offset in range(each.num_emitted):
            position = each.output_offset + offset
            if position < num_tokens:
                found[position] = offset if offset < each.num_draft_tokens else num_draft_tokens
    return found


def starts(rounds: Sequence[Round], num_tokens: int) -> list[int]:
    """For every output token, where its round began."""
    found = [0] * num_tokens
    for each in rounds:
        end = min(each.output_offset + each.num_emitted, num_tokens)
        found[each.output_offset : end] = [each.output_offset] * (end - each.output_offset)
    return found


def rows(evidence: TokenEvidence, positions: Sequence[int]) -> TokenEvidence | None:
    """The evidence at some of its positions, in order; None where there are none."""
    if not positions:
        return None
    chosen = list(positions)
    return replace(
        evidence,
        target_probs=evidence.target_probs[chosen],
        token_ids=evidence.token_ids[chosen],
        draft_probs=None if evidence.draft_probs is None else evidence.draft_probs[chosen],
        alternatives={name: law[chosen] for name, law in evidence.alternatives.items()},
        draft_offsets=None if evidence.draft_offsets is None else evidence.draft_offsets[chosen],
        roles=None if evidence.roles is None else [evidence.roles[position] for position in chosen],
    )
