"""Whether two forwards compute the same formula."""

import torch
from torch import Tensor


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether logits of one shape differ by rounding at most: the root of the precision, relative to the largest logit.

    Not a test of rounding; a formula that has changed is a difference of the order of the logits. float32 counts as the best
    precision, because many models keep states in it. Where `theirs` are not finite nothing is compared; False where none is.
    """
    finite = theirs.isfinite()
    if not bool(finite.any()):
        return False
    precision = max(torch.finfo(theirs.dtype).eps, torch.finfo(torch.float32).eps)
    differences = (ours - theirs)[finite].abs()
    return bool(differences.max() <= precision**0.5 * theirs[finite].abs().max())
