"""Attention in which several query heads share a key head, by whichever kernel the device has for it."""

from torch import Tensor
from torch.nn import functional


def grouped_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """`[B, H, N, D]` over keys and values `[B, H_kv, L, D]`, H a multiple of H_kv; returns `[B, H, N, D]`.

    `mask` broadcasts to `[B, H, N, L]` and is True where visible, or is added to the scores. With a mask a GPU has fused
    kernels for equal heads only and would form all scores otherwise, so the keys and values are repeated there.
    """
    if mask is not None and shares_no_kernel(queries):
        keys, values = (each.repeat_interleave(queries.shape[1] // keys.shape[1], 1) for each in (keys, values))
    return functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=keys.shape[1] != queries.shape[1]
    )


def shares_no_kernel(queries: Tensor) -> bool:
    """Whether the device lacks a fused kernel for shared key heads under a mask."""
    return queries.device.type == "cuda"
