"""Options that several commands share, and what their values must be."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch

from dspark.loading import DTYPES, default_draft_dir, default_target_dir


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of every option that has one; an option without is told in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or action.default == []
        return action.help if silent else super()._get_help_string(action)


def add_models(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--target, --draft, --device and --dtype."""
    models = add_target(command)
    models.add_argument(
        "--draft", type=Path, default=default_draft_dir(), metavar="DIR", help="checkpoint of the draft model"
    )
    return models


def add_target(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--target, --device and --dtype."""
    models = command.add_argument_group("models")
    models.add_argument(
        "--target", type=Path, default=default_target_dir(), metavar="DIR", help="checkpoint of the target model"
    )
    models.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="a torch device")
    models.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of weights and arithmetic")
    return models


def at_least(smallest: int) -> Callable[[str], int]:
    """The type of an option that takes an integer from `smallest` on."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = smallest - 1
        if number < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {smallest}")
        return number

    return read


def device_named(name: str) -> torch.device:
    """The torch device; ValueError (value, rule, remedy) where there is none of that name."""
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; it must be a torch device. Use cpu, cuda or cuda:0.") from error


def require_place(path: Path, *, folder: bool = False) -> None:
    """Raise ValueError (value, rule, remedy), before the long work, where no file (or folder) can be written at `path`."""
    if path.exists() and path.is_dir() != folder:
        found, wanted = ("a file", "a folder") if folder else ("a folder", "a file")
        raise ValueError(f"{str(path)!r} is {found}; {wanted} is written there. Give another name.")
    nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not (nearest.is_dir() or nearest == path) or not os.access(nearest, os.W_OK):
        raise ValueError(f"{str(path)!r} cannot be written: {str(nearest)!r} does not let it. Give another place.")


def require_new_file(path: Path) -> None:
    """Raise ValueError (value, rule, remedy) where there is a file already, or none can be written at `path`."""
    if path.is_file():
        raise ValueError(f"{str(path)!r} exists; nothing is overwritten. Give another name, or move it away.")
    require_place(path)
