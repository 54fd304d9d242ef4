"""A tiny pair of real checkpoints: fast enough to be decoded without a cache, different enough that drafts are rejected."""

from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM


def save_tiny_pair(folder: Path) -> tuple[Path, Path]:
    """Write target and draft; returns their directories."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    for name, scale in (("target", 0.3), ("draft", 0.06)):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    noise = scale * torch.randn_like(parameter)
                    parameter.copy_(noise if name == "target" else parameter + noise)
        model.save_pretrained(folder / name)
    return folder / "target", folder / "draft"
