"""`dspark bench`: speed-up over plain decoding and over transformers."""

import argparse
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import logging

from dspark.bench import Contest, show, write
from dspark.bench import run as run_contest
from dspark.cli.options import add_models, device_named
from dspark.loading import DTYPES, load_pair

PROMPTS = ("def read_", "class Token", "    def __init__(self, ", "import os\n", "for name in ")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    command = commands.add_parser("bench", help="speed-up over plain decoding and over transformers")
    command.set_defaults(run=run)
    add_models(command)
    command.add_argument("--max-new-tokens", type=int, default=64)
    command.add_argument("--num-draft-tokens", type=int, default=5)
    command.add_argument("--turns", type=int, default=10, help="interleaved repetitions of every contestant")
    command.add_argument("--out", type=Path, default=Path("reports/local/bench.json"))


def run(options: argparse.Namespace) -> int:
    """Time this decoder against plain decoding and transformers on one pair of checkpoints."""
    logging.disable_progress_bar()
    pair = load_pair(
        target_dir=options.target,
        draft_dir=options.draft,
        device=device_named(options.device),
        dtype=DTYPES[options.dtype],
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(options.target, local_files_only=True)
    contest = Contest(
        prompts=tuple(tuple(tokenizer.encode(text)) for text in PROMPTS),
        max_new_tokens=options.max_new_tokens,
        num_draft_tokens=options.num_draft_tokens,
        num_turns=options.turns,
    )
    measured = run_contest(pair, contest)
    show(measured)
    write(measured, options.out)
    print(f"raw samples: {options.out}")
    return 0
