"""The command line: one file per command."""

import argparse
import sys
from collections.abc import Sequence

from dspark.cli import calibrate, generate, profile, train

USAGE_ERROR = 2
COMMANDS = (generate, train, calibrate, profile)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, or 2 with one line on stderr where the request is wrong."""
    parser = argparse.ArgumentParser(prog="dspark", description="A lossless speculative decoder.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, OSError) as error:
        print(f"dspark: {error}", file=sys.stderr)
        return USAGE_ERROR
