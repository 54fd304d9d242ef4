"""Load a target and its draft from checkpoint directories."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import fixtures

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPair:
    """Two models ready on the device; `draft` is None where no draft was asked for."""

    target: PreTrainedModel
    draft: PreTrainedModel | None


def default_target_dir() -> Path:
    """The target that this repository ships."""
    return Path(fixtures.__file__).parent / "target"


def default_draft_dir() -> Path:
    """The draft that this repository ships."""
    return Path(fixtures.__file__).parent / "draft"


def default_drafter_dir(kind: str) -> Path:
    """The drafter of a kind ("dspark", "dflash", "eagle3") that this repository ships."""
    return Path(fixtures.__file__).parent / kind


def load_pair(*, target_dir: Path, draft_dir: Path | None, device: torch.device, dtype: torch.dtype) -> LoadedPair:
    """Load both checkpoints; nothing is downloaded.

    Raises ValueError (value, rule, remedy) where a directory is not a checkpoint or the device is not there.
    Vocabularies of different size are allowed, with a warning: tokens are shared by id.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda'; this machine has no usable CUDA device. Use --device cpu.")
    target = load_model(target_dir, device=device, dtype=dtype)
    draft = None if draft_dir is None else load_model(draft_dir, device=device, dtype=dtype)
    if draft is not None:
        target_size, draft_size = (int(model.config.get_text_config().vocab_size) for model in (target, draft))
        if target_size != draft_size:
            warnings.warn(
                f"the target has {target_size} tokens and the draft {draft_size}; tokens are matched by id, which is "
                "of use only if both share a tokenizer.",
                stacklevel=2,
            )
    return LoadedPair(target=target, draft=draft)


def load_model(directory: Path, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Load one causal LM in evaluation mode; raises ValueError as `load_pair`."""
    if not directory.is_dir():
        raise ValueError(f"{str(directory)!r} is not a directory; a checkpoint directory is needed. Check the path.")
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"{str(directory)!r} has no config.json; it must be what `save_pretrained` writes. "
            "Give the folder that holds it."
        )
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True)
    ready: PreTrainedModel = model.to(device).eval()
    return ready
