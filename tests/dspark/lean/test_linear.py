"""Products with fixed weights: those of the plain layer, at any number of rows, the few that are padded included."""

import pytest
import torch
from torch.nn import functional

from dspark.lean import linear
from dspark.lean.linear import joint_linear


@pytest.mark.parametrize(("dtype", "roundings"), [(torch.float32, 16), (torch.bfloat16, 1), (torch.float64, 16)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (1, 4), (2, 5), (2, 0)])
def test_rows_are_multiplied_as_by_the_plain_layers(shape: tuple[int, int], dtype: torch.dtype, roundings: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, 192, generator=generator).to(dtype) for size in (384, 256)]
    assert sum(each.numel() for each in weights) > linear.SMALLEST_PACKED
    states = torch.randn(*shape, 192, generator=generator).to(dtype)
    found = joint_linear(weights)(states)
    expected = torch.cat([functional.linear(states, each) for each in weights], -1)
    assert found.shape == (*shape, 640)
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    bound = roundings * torch.finfo(dtype).eps * largest  # the root of 192 terms, added in float32
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


def test_few_rows_are_the_same_alone_and_together() -> None:
    """One kernel for one to four rows, so that a row of a small batch is what it is alone, bit for bit."""
    product = joint_linear([torch.randn(640, 192, generator=torch.Generator().manual_seed(1))])
    states = torch.randn(linear.FEWEST_ROWS, 192, generator=torch.Generator().manual_seed(2))
    together = product(states)
    for row in range(len(states)):
        assert torch.equal(product(states[row : row + 1])[0], together[row])
