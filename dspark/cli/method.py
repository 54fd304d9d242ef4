"""Options that choose a drafter and a schedule."""

import argparse
from pathlib import Path

from dspark.checkpoints import read_config
from dspark.drafters.factory import load_drafter
from dspark.drafters.model import ModelDrafter
from dspark.drafters.ngram import NgramDrafter
from dspark.drafters.protocol import Drafter
from dspark.loading import LoadedPair, default_drafter_dir
from dspark.scheduler.algorithm import PrefixScheduler
from dspark.scheduler.lagged import LaggedScheduler
from dspark.scheduler.protocol import Scheduler
from dspark.scheduler.round_profile import RoundProfile, load_profile
from dspark.scheduler.skipping import SkippingScheduler
from dspark.scheduler.threshold import StaticThreshold

# Drafters that are read from a checkpoint, with the architecture that its configuration names.
TRAINED = {"dspark": "Qwen3DSparkModel", "dflash": "Qwen3DFlashModel", "eagle3": "Qwen3Eagle3Model"}
PROFILED = ("prefix", "lagged")


def add_method(command: argparse.ArgumentParser) -> None:
    """--drafter, --drafter-dir, --greedy-drafts, --scheduler, --profile and --threshold."""
    method = command.add_argument_group("method")
    method.add_argument(
        "--drafter", choices=("model", "ngram", *TRAINED), default="model", help="what makes the drafts"
    )
    method.add_argument(
        "--drafter-dir",
        type=Path,
        metavar="DIR",
        help=f"checkpoint for {', '.join(TRAINED)} (default: the one shipped for the embedded target)",
    )
    method.add_argument("--greedy-drafts", action="store_true", help="draft the most probable token, never sample it")
    method.add_argument(
        "--scheduler", choices=("none", *PROFILED, "threshold"), default="none", help="how many drafts are verified"
    )
    method.add_argument("--profile", type=Path, metavar="FILE", help="for prefix and lagged; made by `dspark profile`")
    method.add_argument("--threshold", type=float, default=0.5, help="least confidence, for threshold")


def drafter_of(options: argparse.Namespace, pair: LoadedPair) -> Drafter:
    """The drafter asked for; ValueError where a checkpoint does not fit the target, or is of another kind."""
    if options.drafter in TRAINED:
        directory = options.drafter_dir or default_drafter_dir(options.drafter)
        found, wanted = read_config(directory)[0], TRAINED[options.drafter]
        if found != wanted:
            raise ValueError(
                f"{str(directory)!r} is a {found}; --drafter {options.drafter} needs a {wanted}. Change one."
            )
        target = pair.target
        return load_drafter(
            directory,
            target=target,
            device=target.device,
            dtype=target.dtype,
            greedy=options.greedy_drafts,
            calibrated=options.scheduler != "none",  # nobody else looks at confidences
            temperature=options.temperature,
        )
    if options.drafter_dir is not None:
        raise ValueError(
            f"--drafter-dir is given and --drafter is {options.drafter}; a checkpoint is for {', '.join(TRAINED)}. Name one."
        )
    return NgramDrafter() if pair.draft is None else ModelDrafter(pair.draft, greedy=options.greedy_drafts)


def scheduler_of(options: argparse.Namespace) -> Scheduler | None:
    """The schedule asked for; ValueError where it needs a profile and none is given, or the reverse."""
    if options.profile is not None and options.scheduler not in PROFILED:
        raise ValueError(
            f"--profile is given and --scheduler is {options.scheduler}; it is for {' and '.join(PROFILED)}. Name one."
        )
    if options.scheduler == "none":
        return None
    if options.scheduler == "threshold":
        return StaticThreshold(options.threshold)
    if options.profile is None:
        raise ValueError(f"--scheduler {options.scheduler} needs --profile FILE. Make one with `dspark profile`.")
    profile = load_profile(options.profile)
    scheduler = PrefixScheduler(profile) if options.scheduler == "prefix" else LaggedScheduler(profile)
    return SkippingScheduler(scheduler, profile) if isinstance(profile, RoundProfile) else scheduler
