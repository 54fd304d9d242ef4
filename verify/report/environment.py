"""Where and with what a run took place."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("dspark-verify", "torch", "transformers", "numpy", "scipy", "pytest")


def describe_environment(*, device: str) -> dict[str, str]:
    """Start time (UTC), interpreter, machine, device and the versions of the packages a verdict depends on."""
    found = {
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if device == "cuda":
        import torch  # here: a run on the CPU needs no import to describe itself

        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
    return found


def describe_commit(folder: Path) -> str:
    """The git commit checked out in `folder`, with `-dirty` when files differ from it; empty outside a repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
