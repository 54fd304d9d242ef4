"""Shared key heads: the same numbers whichever kernel is used."""

import pytest
import torch

from dspark import grouped_attention as module
from dspark.grouped_attention import grouped_attention


@pytest.mark.parametrize("num_key_heads", [1, 2, 4])
def test_repeated_heads_are_the_shared_ones(num_key_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    queries = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    keys, values = torch.randn(2, 2, num_key_heads, 7, 8, dtype=torch.float64)
    mask = torch.ones(1, 1, 5, 7, dtype=torch.bool).tril(2)
    shared = grouped_attention(queries, keys, values, mask=mask)
    monkeypatch.setattr(module, "shares_no_kernel", lambda _: True)
    torch.testing.assert_close(grouped_attention(queries, keys, values, mask=mask), shared, rtol=0, atol=1e-14)


def test_each_query_head_sees_its_own_key_head() -> None:
    torch.manual_seed(1)
    queries = torch.randn(1, 4, 3, 8, dtype=torch.float64)
    keys, values = torch.randn(2, 1, 2, 3, 8, dtype=torch.float64)
    mixed = grouped_attention(queries, keys, values, causal=True)
    for head in range(4):
        scores = queries[0, head] @ keys[0, head // 2].T / 8**0.5
        law = scores.masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf).softmax(-1)
        torch.testing.assert_close(mixed[0, head], law @ values[0, head // 2])
