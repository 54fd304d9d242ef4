"""Matrix products with fixed weights."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Linear: TypeAlias = Callable[[Tensor], Tensor]
"""`[..., in]` to `[..., out]`, without a bias."""

EXPECTED_ROWS = 64  # what the layout of packed weights is chosen for; at 1 to 8 rows, this one is the fastest
FEWEST_ROWS = 4  # oneDNN takes longer over one to three: they are multiplied as four
SMALLEST_PACKED = 100_000  # weights; below that the call of the packed product costs more than it saves


def joint_linear(weights: Sequence[Tensor]) -> Linear:
    """The outputs of linear layers `[out_i, in]` on the same input, side by side.

    On a CPU the weights are copied, the larger ones into the layout of oneDNN: a product with a few rows (a block of drafts)
    then takes about half the time, and the weights are in memory twice. Elsewhere the model's own are used, one product each,
    because a joint copy would take its place in the device's memory beside them.
    """
    first = weights[0]
    if first.device.type != "cpu":
        if len(weights) == 1:
            return lambda states: functional.linear(states, first)
        return lambda states: torch.cat([functional.linear(states, each) for each in weights], -1)
    joint = torch.cat(list(weights)) if len(weights) > 1 else first
    if joint.numel() < SMALLEST_PACKED or not _packs(first.dtype):
        return lambda states: functional.linear(states, joint)
    kernel: Any = torch.ops.mkldnn._linear_pointwise.default
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(joint, EXPECTED_ROWS)

    def multiply(states: Tensor) -> Tensor:
        product: Tensor
        num_rows = states.shape[:-1].numel()
        if 0 < num_rows < FEWEST_ROWS:
            rows = functional.pad(states.reshape(num_rows, -1), (0, 0, 0, FEWEST_ROWS - num_rows))
            product = kernel(rows, packed, None, "none", [], "")[:num_rows]
            return product.view(*states.shape[:-1], -1)
        product = kernel(states, packed, None, "none", [], "")
        return product

    return multiply


def _packs(dtype: torch.dtype) -> bool:
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
