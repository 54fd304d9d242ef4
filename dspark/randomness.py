"""One stream of uniforms per request, so that what a request emits does not depend on its batch mates."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dspark.transfer import to_device


@dataclass(frozen=True, slots=True)
class RoundUniforms:
    """The uniforms of one round: `draft` `[B, K]`, `accept` `[B, K]` and `final` `[B]`, float64 in [0, 1).

    Entries past a row's own number of drafts are padding; nothing may depend on them.
    """

    draft: Tensor
    accept: Tensor
    final: Tensor


def uniform_source(seed: int | None) -> torch.Generator:
    """A generator of its own, on the host so that every device sees the same numbers; None: seeded by the system."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def round_uniforms(
    sources: Sequence[torch.Generator], num_draft_tokens: Sequence[int], *, width: int, device: torch.device
) -> RoundUniforms:
    """Draw 2 n + 1 numbers from each row's source, n its own entry of `num_draft_tokens`, whatever `width` the batch needs."""
    most = max(num_draft_tokens)
    rows = []
    for source, own in zip(sources, num_draft_tokens, strict=True):
        numbers = torch.rand(2 * own + 1, generator=source, dtype=torch.float64)
        if own < most:
            padding = numbers[:1].expand(most - own)
            numbers = torch.cat([numbers[: 1 + own], padding, numbers[1 + own :], padding])
        rows.append(numbers)
    table = to_device(torch.stack(rows), device)  # [B, 1 + 2 n], n of the row that has most
    return RoundUniforms(draft=table[:, 1 : 1 + width], accept=table[:, 1 + most : 1 + most + width], final=table[:, 0])
