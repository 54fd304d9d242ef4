"""`dspark profile`: how fast the target is, by the number of tokens in its forward."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from dspark.causal_model import CausalModel
from dspark.cli.options import HelpWithDefaults, add_target, at_least, device_named, require_place
from dspark.loading import DTYPES, load_pair
from dspark.scheduler.measurement import measure_speed
from dspark.scheduler.profile import SpeedProfile


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    command = commands.add_parser(
        "profile", help="measure the speed profile that schedulers need", formatter_class=HelpWithDefaults
    )
    command.set_defaults(run=run)
    add_target(command)
    command.add_argument(
        "--token-counts",
        type=at_least(1),
        nargs="+",
        metavar="N",
        help="tokens in the forward; if not given, up to 128, and up to 1024 on a GPU",
    )
    command.add_argument(
        "--tokens-per-row", type=at_least(1), default=8, metavar="N", help="larger counts are rows of so many tokens"
    )
    command.add_argument(
        "--context-length", type=at_least(0), default=256, metavar="N", help="tokens that every row has read before"
    )
    command.add_argument(
        "--repeats", type=at_least(1), default=30, metavar="N", help="interleaved repetitions of every count"
    )
    command.add_argument(
        "--out", type=Path, default=Path("reports/local/speed-profile.json"), help="the profile's file"
    )


def run(options: argparse.Namespace) -> int:
    """Measure on the device at hand and write the profile."""
    logging.disable_progress_bar()
    require_place(options.out)
    pair = load_pair(
        target_dir=options.target,
        draft_dir=None,
        device=device_named(options.device),
        dtype=DTYPES[options.dtype],
    )
    profile = measure_speed(
        CausalModel.of(pair.target),
        token_counts=options.token_counts,
        tokens_per_row=options.tokens_per_row,
        context_length=options.context_length,
        num_repeats=options.repeats,
    )
    Console().print(_table(profile))
    profile.save(options.out)
    print(f"profile: {options.out}")
    return 0


def _table(profile: SpeedProfile) -> Table:
    table = Table("tokens in the forward", "steps/s", "tokens/s", "middle half of the steps, ms")
    quartiles = profile.conditions["seconds_quartiles"]
    for count, speed, (low, high) in zip(profile.token_counts, profile.steps_per_second, quartiles, strict=True):
        table.add_row(str(count), f"{speed:.1f}", f"{speed * count:.0f}", f"{1e3 * low:.2f} to {1e3 * high:.2f}")
    return table
