"""The state of a training run on disk: written whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

NUM_KEPT = 2


def save_state(
    folder: Path, *, step: int, network: nn.Module, optimizer: torch.optim.Optimizer, run: Mapping[str, str]
) -> Path:
    """Write the state after `step` updates, then drop all but the latest two.

    The file appears under its name only when it is complete, so a kill at any moment leaves the earlier ones usable.
    `run` says, part by part, what the run is; a state can only continue the same one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08}.pt"
    unfinished = path.with_suffix(".partial")
    trained = {name: parameter.detach() for name, parameter in network.named_parameters() if parameter.requires_grad}
    with unfinished.open("wb") as file:
        torch.save({"step": step, "run": dict(run), "parameters": trained, "optimizer": optimizer.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    for old in sorted(folder.glob("step-*.pt"))[:-NUM_KEPT]:
        old.unlink()
    return path


def load_latest(folder: Path, *, network: nn.Module, optimizer: torch.optim.Optimizer, run: Mapping[str, str]) -> int:
    """Restore the latest complete state and return its number of updates; 0 where there is none.

    Raises ValueError (value, rule, remedy) where the state is of another run, or broken.
    """
    paths = sorted(folder.glob("step-*.pt"))
    if not paths:
        return 0
    try:
        state: dict[str, Any] = torch.load(paths[-1], map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch have exceptions of their own
        raise ValueError(
            f"{str(paths[-1])!r} is broken ({type(error).__name__}). Delete it; the run goes on from the state before it."
        ) from error
    found = state["run"] if isinstance(state["run"], dict) else {}
    if different := [name for name in run if found.get(name) != run[name]]:
        raise ValueError(
            f"{str(paths[-1])!r} belongs to a run of other {', '.join(different)}; a run continues itself only. Give what it was "
            "begun with, or another --out."
        )
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state["parameters"][name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
