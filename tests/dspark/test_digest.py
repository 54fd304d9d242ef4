"""A digest is the same for the same weights, and changes with anything that a model computes with."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from dspark.digest import digest_of, model_digest

Tiny = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int32])
def test_every_element_row_name_and_shape_counts(dtype: torch.dtype) -> None:
    tensor = (torch.arange(12) % 5).reshape(3, 4).to(dtype)
    known = {digest_of({"w": tensor})}
    assert digest_of({"w": tensor.T.contiguous().T}) in known  # the same elements, laid out otherwise
    changed = tensor.clone()
    changed[1, 2] = 9
    others = [{"w": changed}, {"w": tensor[[1, 0, 2]]}, {"v": tensor}, {"w": tensor.reshape(4, 3)}]
    others += [{"w": tensor, "b": tensor[0]}, {"w": tensor, "b": tensor[0, 0]}]
    known |= {digest_of(other) for other in others}
    assert len(known) == 1 + len(others)
    assert digest_of({"w": tensor}, "otherwise") not in known


def test_a_model_is_its_weights_and_configuration(tiny: Tiny) -> None:
    one = model_digest(tiny("qwen3"))
    assert model_digest(tiny("qwen3")) == one
    others = [
        tiny("qwen3", seed=1),
        tiny("qwen3", rms_norm_eps=1e-3),
        tiny("llama"),
        tiny("qwen3", dtype=torch.float32),
    ]
    assert len({one, *map(model_digest, others)}) == 5
