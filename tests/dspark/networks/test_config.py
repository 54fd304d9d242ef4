"""The mask of a drafter is an id that no text holds."""

import pytest
from transformers import Qwen3Config

from dspark.networks.config import DrafterConfig, first_unused


def test_the_mask_is_the_first_id_behind_the_tokenizers() -> None:
    assert first_unused(151_936, range(151_669)) == 151_669
    assert first_unused(10, [0, 2, 8]) == 9
    with pytest.raises(ValueError, match=r"uses all 1024 ids .* Name the rarest token with --mask-token-id"):
        first_unused(1024, range(1024))
    with pytest.raises(ValueError, match="uses all 10 ids"):
        first_unused(10, range(12))  # a tokenizer of more


def test_special_tokens_are_no_masks() -> None:
    with pytest.raises(TypeError, match="mask_token_id"):
        DrafterConfig.for_target(Qwen3Config(pad_token_id=3, eos_token_id=[4, 5]))  # type: ignore[call-arg]
    assert DrafterConfig.for_target(Qwen3Config(eos_token_id=4), mask_token_id=7).mask_token_id == 7
