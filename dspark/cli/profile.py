"""`dspark profile`: how fast the target is by the tokens in its forward, or whole rounds are by their rows and drafts."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel
from transformers.utils import logging

from dspark.causal_model import CausalModel
from dspark.cli.options import HelpWithDefaults, add_target, at_least, device_named, require_place
from dspark.drafters.factory import load_drafter
from dspark.loading import DTYPES, load_pair
from dspark.scheduler.measurement import TOKENS_PER_ROW, measure_speed
from dspark.scheduler.profile import SpeedProfile
from dspark.scheduler.round_measurement import measure_rounds
from dspark.scheduler.round_profile import RoundProfile


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    command = commands.add_parser(
        "profile", help="measure the speed profile that schedulers need", formatter_class=HelpWithDefaults
    )
    command.set_defaults(run=run)
    add_target(command)
    command.add_argument(
        "--drafter-dir",
        type=Path,
        metavar="DIR",
        help="time whole rounds with this drafter: schedules then weigh its time too, and leave drafting where it does not pay",
    )
    command.add_argument(
        "--row-counts",
        type=at_least(1),
        nargs="+",
        metavar="N",
        help="rows in a round, with --drafter-dir; if not given, up to 32, and up to 128 on a GPU",
    )
    command.add_argument(
        "--token-counts",
        type=at_least(1),
        nargs="+",
        metavar="N",
        help="tokens in the forward; if not given, up to 128, and up to 1024 on a GPU",
    )
    command.add_argument(
        "--tokens-per-row",
        type=at_least(1),
        metavar="N",
        help="larger counts are rows of so many tokens; if not given, 8",
    )
    command.add_argument(
        "--context-length", type=at_least(0), default=256, metavar="N", help="tokens that every row has read before"
    )
    command.add_argument(
        "--repeats", type=at_least(1), default=30, metavar="N", help="interleaved repetitions of everything"
    )
    command.add_argument(
        "--out", type=Path, default=Path("reports/local/speed-profile.json"), help="the profile's file"
    )


def run(options: argparse.Namespace) -> int:
    """Measure on the device at hand and write the profile."""
    logging.disable_progress_bar()
    require_place(options.out)
    of_rounds, of_forwards = ("--row-counts",), ("--token-counts", "--tokens-per-row")
    for name in of_rounds if options.drafter_dir is None else of_forwards:
        if getattr(options, name.removeprefix("--").replace("-", "_")) is not None:
            raise ValueError(
                f"{name} is given and --drafter-dir is {options.drafter_dir}; without a drafter forwards are timed, with one "
                "rounds. Leave one out."
            )
    pair = load_pair(
        target_dir=options.target,
        draft_dir=None,
        device=device_named(options.device),
        dtype=DTYPES[options.dtype],
    )
    profile = _forwards(pair.target, options) if options.drafter_dir is None else _rounds(pair.target, options)
    Console().print(_table_of_forwards(profile) if isinstance(profile, SpeedProfile) else _table_of_rounds(profile))
    profile.save(options.out)
    print(f"profile: {options.out}")
    return 0


def _forwards(target: PreTrainedModel, options: argparse.Namespace) -> SpeedProfile:
    return measure_speed(
        CausalModel.of(target),
        token_counts=options.token_counts,
        tokens_per_row=options.tokens_per_row or TOKENS_PER_ROW,
        context_length=options.context_length,
        num_repeats=options.repeats,
    )


def _rounds(target: PreTrainedModel, options: argparse.Namespace) -> RoundProfile:
    drafter = load_drafter(
        options.drafter_dir, target=target, device=target.device, dtype=target.dtype, calibrated=False
    )
    longest = drafter.network.block_size
    return measure_rounds(
        target,
        drafter,
        row_counts=options.row_counts,
        draft_counts=(0, 1, longest // 2, longest),
        context_length=options.context_length,
        num_repeats=options.repeats,
    )


def _table_of_rounds(profile: RoundProfile) -> Table:
    table = Table("rows", "plain round, ms", *(f"{count} drafts verified, ms" for count in profile.draft_counts))
    for rows, plain, drafted in zip(profile.row_counts, profile.plain_seconds, profile.drafted_seconds, strict=True):
        table.add_row(str(rows), *(f"{1e3 * each:.2f}" for each in (plain, *drafted)))
    return table


def _table_of_forwards(profile: SpeedProfile) -> Table:
    table = Table("tokens in the forward", "steps/s", "tokens/s", "middle half of the steps, ms")
    quartiles = profile.conditions["seconds_quartiles"]
    for count, speed, (low, high) in zip(profile.token_counts, profile.steps_per_second, quartiles, strict=True):
        table.add_row(str(count), f"{speed:.1f}", f"{speed * count:.0f}", f"{1e3 * low:.2f} to {1e3 * high:.2f}")
    return table
