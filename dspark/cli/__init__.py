"""The command line: one file per command."""

import argparse
import sys
from collections.abc import Sequence

import torch

from dspark.cli import calibrate, generate, profile, train

USAGE_ERROR = 2
INTERRUPTED = 130
COMMANDS = (generate, train, calibrate, profile)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, 2 with one line on stderr where the request is wrong, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="dspark", description="A lossless speculative decoder.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        print(f"dspark: {_sentence(error)}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("dspark: interrupted", file=sys.stderr)
        return INTERRUPTED


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{str(error.filename)!r} cannot be opened ({error.strerror}). Check the path."
    return " ".join(str(error).split())
