"""Tiny random models; float64 unless asked otherwise, so that equality means equality."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

VOCAB_SIZE = 23
MAX_POSITIONS = 64
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": 1.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": MAX_POSITIONS,
    "initializer_range": 1.0,
    "bos_token_id": None,
    "eos_token_id": None,
}
MAMBA_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "state_size": 4,
    "num_hidden_layers": 2,
    "initializer_range": 1.0,
    "eos_token_id": None,
}

torch.set_num_threads(1)


def build(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> PreTrainedModel:
    """A random model of a family; `mistral` has a sliding window of 5."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = {
            "llama": lambda: LlamaConfig(**{**SHAPE, **changes}),
            "qwen3": lambda: Qwen3Config(**{**SHAPE, **changes}),
            "mistral": lambda: MistralConfig(**{**SHAPE, "sliding_window": 5, **changes}),
            "gpt2": lambda: GPT2Config(**{**GPT2_SHAPE, **changes}),
            "mamba": lambda: MambaConfig(**{**MAMBA_SHAPE, **changes}),
        }[kind]()
        return AutoModelForCausalLM.from_config(config).to(dtype).eval()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., PreTrainedModel]:
    return build
