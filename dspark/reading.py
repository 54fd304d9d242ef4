"""What one forward gives."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Reading:
    """`logits` `[B, T or fewer kept, V]`, and the tapped hidden states `features` `[B, T, F]`.

    F is the number of tapped layers times the hidden size, in the order asked; None where no layer is tapped.
    """

    logits: Tensor
    features: Tensor | None
