"""Options that several commands share."""

import argparse
from pathlib import Path

import torch

from dspark.loading import DTYPES, default_draft_dir, default_target_dir


def add_models(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--target, --draft, --device and --dtype."""
    models = add_target(command)
    models.add_argument("--draft", type=Path, default=default_draft_dir(), metavar="DIR")
    return models


def add_target(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--target, --device and --dtype."""
    models = command.add_argument_group("models")
    models.add_argument("--target", type=Path, default=default_target_dir(), metavar="DIR")
    models.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    models.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    return models


def device_named(name: str) -> torch.device:
    """The torch device; ValueError (value, rule, remedy) where there is none of that name."""
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; it must be a torch device. Use cpu, cuda or cuda:0.") from error
