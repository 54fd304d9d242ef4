"""Load a target and its draft from checkpoint directories."""

import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import fixtures
from dspark.checkpoints import ARCHITECTURES

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
    _require_device(device)
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
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # each format has exceptions of its own
        raise ValueError(
            f"{str(directory)!r} cannot be loaded as a causal LM ({_brief(error)}). Check that configuration and weights are "
            "whole and belong together."
        ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{str(directory)!r} lacks {len(missing)} tensors, {missing[0]} among them; a checkpoint has all weights of its "
            "model. Download it whole."
        )
    if drafters := set(model.config.architectures or ()) & set(ARCHITECTURES):
        raise ValueError(
            f"{str(directory)!r} is a {drafters.pop()}, a drafter; a causal LM is needed here. Give it as --drafter-dir."
        )
    ready: PreTrainedModel = model.to(device).eval()
    return ready


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a checkpoint; raises ValueError (value, rule, remedy) where it has none."""
    if not (directory / "tokenizer.json").is_file():
        raise ValueError(f"{str(directory)!r} has no tokenizer.json; text needs one. Save the tokenizer there.")
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # each format has exceptions of its own
        raise ValueError(
            f"the tokenizer in {str(directory)!r} cannot be loaded ({_brief(error)}). Save it again."
        ) from error


def _require_device(device: torch.device) -> None:
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has exceptions of its own
        raise ValueError(
            f"device is {str(device)!r}; this machine cannot compute there ({_brief(error)}). Use --device cpu."
        ) from error


def _brief(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" ...")
