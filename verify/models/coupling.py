"""What a token's law becomes where it is drawn with the random numbers that drew the token before it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def drawn_again(laws: Tensor, output: Sequence[int]) -> dict[str, Tensor]:
    """Laws `[N, V]` of each token given the one before it in `output`, both drawn with the same numbers from `laws` `[N, V]`.

    `uniform_again`: both invert their cumulative law at one uniform. `noise_again`: both are the arg max of probability over one
    exponential noise (or log-probability plus Gumbel noise): the token before it comes again with probability
    1 / sum_k max(p_k, p_i q_k / q_i), as follows from the race of exponentials; the others keep their proportions, which is
    near enough for a bet. The first token has its own law.
    """
    before, after = laws[:-1], laws[1:]
    token = torch.tensor(output[: len(before)], device=laws.device)[:, None]  # [N - 1, 1]
    drawn, again = before.gather(1, token), after.gather(1, token)
    end = before.cumsum(1).gather(1, token)
    ends = after.cumsum(1)
    shared = (torch.minimum(ends, end) - torch.maximum(ends - after, end - drawn)).clamp(min=0)
    race = torch.maximum(before, drawn * after / again).sum(1, keepdim=True)
    repeated = torch.where((drawn > 0) & (again > 0), (1 / race).clamp(max=1), 0.0)
    repeated = torch.where(again < 1, repeated, 1.0)
    others = after.scatter(1, token, 0.0) * torch.where(again < 1, (1 - repeated) / (1 - again), 0.0)
    found = {"uniform_again": shared, "noise_again": others.scatter(1, token, repeated)}
    return {name: torch.cat([laws[:1], _law(each, after, known=drawn > 0)]) for name, each in found.items()}


def _law(masses: Tensor, otherwise: Tensor, *, known: Tensor) -> Tensor:
    total = masses.sum(1, keepdim=True)
    return torch.where(known & (total > 0), masses / total, otherwise)
