"""How far two correct computations of the same target rows differ: measured, never assumed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from verify.models.compat import forward_logits, new_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseFloor:
    """Largest differences seen between the plain forward and other correct forms, over all positions and tokens.

    `max_logit_difference` is of one logit, `max_logprob_difference` of one log-probability at temperature 1,
    `max_logit_gap_change` of the distance between the top logit and another, `max_total_variation` between two laws of one row
    at temperature 1. `forms` names what was compared with the plain forward (one row, no cache). A maximum over samples is no
    bound on what was not sampled: more positions, firmer floor.
    """

    max_logit_difference: float
    max_logprob_difference: float
    max_logit_gap_change: float
    max_total_variation: float
    num_positions: int
    forms: tuple[str, ...]

    def logprob_tolerance(self, *, temperature: float = 1.0) -> float:
        """Largest change of a log-probability at `temperature`, in nats: the tolerance of the betting test.

        Log-probabilities within e of each other are logits within e after a common shift; divided by the temperature,
        a logit moves by at most e/T and the normaliser by at most e/T. Processors that only add, subtract and mask
        keep this; a repetition penalty r > 1 multiplies it by at most r.
        """
        return 2 * self.max_logprob_difference / temperature

    def moved_tokens(self, num_tokens: int, *, vocab_size: int) -> float:
        """How many of `num_tokens` drawn with the same random numbers rounding may change, on average and at temperature 1.

        Three draws a token (draft, coin, last token) from the noisiest law seen. A draw moves where its number falls between two
        positions of an edge of the cumulative law; rounding that is independent from token to token moves all of its edges
        together by some sqrt(V) times the total variation.
        """
        return 3 * num_tokens * min(1.0, math.sqrt(vocab_size) * self.max_total_variation)


def measure_noise_floor(
    target: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    *,
    chunk_sizes: Sequence[int] = (1, 2, 3, 5),
    num_duplicates: int = 4,
    num_padding: int = 3,
) -> NoiseFloor:
    """Compare the target with itself: cached chunks of several sizes, duplicated rows, and a left-padded batch.

    Runs where the model is, in its own dtype; differences are taken in float64. The forms are those in which a correct
    decoder may compute the same row: cached blocks of any length, among other rows, behind padding. ValueError without
    positions, and where a form gives a NaN.
    """
    texts = [text for text in sequences if len(text)]
    if not texts:
        raise ValueError(
            "no sequences with a token; the floor is measured on real rows; pass a few outputs of the target"
        )
    widest = torch.zeros(4, dtype=torch.float64)
    names: dict[str, None] = {}
    for text in texts:
        token_ids = torch.tensor([list(text)], device=target.device)  # [1, T]
        plain = forward_logits(target, token_ids)[0]  # [T, V]
        forms = _forms(
            target, token_ids, chunk_sizes=chunk_sizes, num_duplicates=num_duplicates, num_padding=num_padding
        )
        for name, logits in forms:
            names.setdefault(name)
            seen = _differences(plain, logits)
            if seen.isnan().any():
                raise ValueError(
                    f"form {name!r} gives NaN; a target must be finite in every form; check its dtype and masks"
                )
            widest = torch.maximum(widest, seen)
    logit, logprob, gap, distance = widest.tolist()
    return NoiseFloor(
        max_logit_difference=logit,
        max_logprob_difference=logprob,
        max_logit_gap_change=gap,
        max_total_variation=distance,
        num_positions=sum(len(text) for text in texts),
        forms=tuple(names),
    )


def _forms(
    target: PreTrainedModel, token_ids: Tensor, *, chunk_sizes: Sequence[int], num_duplicates: int, num_padding: int
) -> Iterator[tuple[str, Tensor]]:
    """Other correct ways to the rows of one text: (name, [T, V])."""
    for size in chunk_sizes:
        cache = new_cache(target)
        parts = [forward_logits(target, part, cache=cache) for part in torch.split(token_ids, size, dim=1)]
        yield f"cached chunks of {size}", torch.cat(parts, dim=1)[0]
    duplicated = forward_logits(target, token_ids.repeat(num_duplicates, 1))  # [B, T, V]
    yield f"batch of {num_duplicates}", duplicated[-1]
    # One padded row and one full row of the padded length, as a ragged batch has them.
    length = token_ids.shape[1]
    filler = token_ids[:, :1].expand(1, num_padding)
    padded = torch.cat([filler, token_ids], dim=1).repeat(2, 1)  # [2, P + T]
    mask = torch.ones_like(padded)
    mask[0, :num_padding] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = forward_logits(target, padded, attention_mask=mask, position_ids=positions)
    yield f"left padding of {num_padding}", logits[0, -length:]


def _differences(plain: Tensor, other: Tensor) -> Tensor:
    """Largest change of a logit, of a log-probability and of a gap to the top logit, and distance; float64 [4] on the CPU."""
    ours, theirs = plain.double(), other.double()  # [T, V]
    top = ours.argmax(dim=-1, keepdim=True)
    changes = (
        ours - theirs,
        ours.log_softmax(-1) - theirs.log_softmax(-1),
        (ours.gather(-1, top) - ours) - (theirs.gather(-1, top) - theirs),
    )
    distance = (ours.softmax(-1) - theirs.softmax(-1)).abs().sum(-1).max() / 2
    return torch.stack([*(change.abs().max() for change in changes), distance]).cpu()
