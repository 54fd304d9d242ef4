"""The command line: `dspark generate`, `dspark bench`."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer
from transformers.utils import logging

from dspark.bench import Contest, show, write
from dspark.bench import run as run_contest
from dspark.decoder import SpeculativeDecoder
from dspark.drafters.model import ModelDrafter
from dspark.drafters.ngram import NgramDrafter
from dspark.drafters.protocol import Drafter
from dspark.loading import DTYPES, default_draft_dir, default_target_dir, load_pair
from dspark.record import AcceptanceRecord
from dspark.request import Request, SamplingParams

USAGE_ERROR = 2
BENCH_PROMPTS = ("def read_", "class Token", "    def __init__(self, ", "import os\n", "for name in ")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, or 2 with one line on stderr where the request is wrong."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, OSError) as error:
        print(f"dspark: {error}", file=sys.stderr)
        return USAGE_ERROR


def generate(options: argparse.Namespace) -> int:
    """Decode one prompt to stdout."""
    logging.disable_progress_bar()
    text = _prompt(options)
    pair = load_pair(
        target_dir=options.target,
        draft_dir=options.draft if options.drafter == "model" else None,
        device=_device(options.device),
        dtype=DTYPES[options.dtype],
    )
    if not (options.target / "tokenizer.json").is_file():
        raise ValueError(f"{str(options.target)!r} has no tokenizer.json; text needs one. Save the tokenizer there.")
    tokenizer: Any = AutoTokenizer.from_pretrained(options.target, local_files_only=True)
    stop = options.stop_token_ids
    if stop is None:
        stop = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    request = Request(
        prompt_token_ids=tuple(tokenizer.encode(text)),
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.min_new_tokens,
        num_draft_tokens=options.num_draft_tokens,
        sampling=_sampling(options),
        stop_token_ids=tuple(stop),
        seed=options.seed,
    )
    drafter: Drafter = NgramDrafter() if pair.draft is None else ModelDrafter(pair.draft, greedy=options.greedy_drafts)
    decoder = SpeculativeDecoder(pair.target, drafter)
    if options.stream:
        _stream(decoder, request, tokenizer)
        return 0
    started = time.perf_counter()
    [generation] = decoder.generate([request])
    seconds = time.perf_counter() - started
    print(tokenizer.decode(generation.token_ids, skip_special_tokens=True))
    if options.stats:
        Console(stderr=True).print(_table(generation.record, len(generation.token_ids), seconds))
    return 0


def _stream(decoder: SpeculativeDecoder, request: Request, tokenizer: Any) -> None:
    token_ids: list[int] = []
    shown = text = ""
    for chunk in decoder.stream(request):
        token_ids += chunk
        text = tokenizer.decode(token_ids, skip_special_tokens=True)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # else the last token ends inside a character
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(text[len(shown) :])


def _table(record: AcceptanceRecord, num_tokens: int, seconds: float) -> Table:
    table = Table("measure", "value")
    table.add_row("tokens", str(num_tokens))
    table.add_row("rounds", str(record.num_spec_steps))
    table.add_row("mean_acceptance_length (bonus included)", f"{record.mean_acceptance_length:.2f}")
    table.add_row("draft_acceptance_rate (bonus excluded)", f"{record.draft_acceptance_rate:.1%}")
    table.add_row("tokens/s (prefill included)", f"{num_tokens / seconds:.1f}")
    return table


def _prompt(options: argparse.Namespace) -> str:
    if (options.prompt is None) == (options.file is None):
        raise ValueError("give exactly one of PROMPT and --file; the prompt is what is continued.")
    text: str = options.prompt if options.file is None else options.file.read_text(encoding="utf-8")
    return text


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; it must be a torch device. Use cpu, cuda or cuda:0.") from error


def _sampling(options: argparse.Namespace) -> SamplingParams:
    return SamplingParams(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logit_bias=dict(options.logit_bias),
        forbidden_token_ids=tuple(options.forbidden_token_ids),
        allowed_token_ids=None if options.allowed_token_ids is None else tuple(options.allowed_token_ids),
    )


def _bias(text: str) -> tuple[int, float]:
    token_id, _, bias = text.partition(":")
    return int(token_id), float(bias)


def bench(options: argparse.Namespace) -> int:
    """Time this decoder against plain decoding and transformers on one pair of checkpoints."""
    logging.disable_progress_bar()
    pair = load_pair(
        target_dir=options.target,
        draft_dir=options.draft,
        device=_device(options.device),
        dtype=DTYPES[options.dtype],
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(options.target, local_files_only=True)
    contest = Contest(
        prompts=tuple(tuple(tokenizer.encode(text)) for text in BENCH_PROMPTS),
        max_new_tokens=options.max_new_tokens,
        num_draft_tokens=options.num_draft_tokens,
        num_turns=options.turns,
    )
    measured = run_contest(pair, contest)
    show(measured)
    write(measured, options.out)
    print(f"raw samples: {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dspark", description="A lossless speculative decoder.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_generate(commands.add_parser("generate", help="continue a prompt"))
    _add_bench(commands.add_parser("bench", help="speed-up over plain decoding and over transformers"))
    return parser


def _add_models(command: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    models = command.add_argument_group("models")
    models.add_argument("--target", type=Path, default=default_target_dir(), metavar="DIR")
    models.add_argument("--draft", type=Path, default=default_draft_dir(), metavar="DIR")
    models.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    models.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    return models


def _add_bench(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=bench)
    _add_models(command)
    command.add_argument("--max-new-tokens", type=int, default=64)
    command.add_argument("--num-draft-tokens", type=int, default=5)
    command.add_argument("--turns", type=int, default=10, help="interleaved repetitions of every contestant")
    command.add_argument("--out", type=Path, default=Path("reports/local/bench.json"))


def _add_generate(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=generate)
    command.add_argument("prompt", nargs="?", metavar="PROMPT")
    command.add_argument("--file", type=Path, help="read the prompt from a UTF-8 file")
    models = _add_models(command)
    models.add_argument("--drafter", choices=("model", "ngram"), default="model")
    models.add_argument("--greedy-drafts", action="store_true", help="draft the most probable token, never sample it")
    length = command.add_argument_group("length")
    length.add_argument("--max-new-tokens", type=int, default=128)
    length.add_argument("--min-new-tokens", type=int, default=0)
    length.add_argument("--num-draft-tokens", type=int, default=5)
    length.add_argument("--stop-token-ids", type=int, nargs="*", help="default: the tokenizer's end of text")
    sampling = command.add_argument_group("sampling")
    sampling.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    sampling.add_argument("--top-k", type=int, default=0)
    sampling.add_argument("--top-p", type=float, default=1.0)
    sampling.add_argument("--min-p", type=float, default=0.0)
    sampling.add_argument("--repetition-penalty", type=float, default=1.0)
    sampling.add_argument("--presence-penalty", type=float, default=0.0)
    sampling.add_argument("--frequency-penalty", type=float, default=0.0)
    sampling.add_argument("--logit-bias", type=_bias, nargs="*", default=[], metavar="ID:BIAS")
    sampling.add_argument("--forbidden-token-ids", type=int, nargs="*", default=[])
    sampling.add_argument("--allowed-token-ids", type=int, nargs="*")
    sampling.add_argument("--seed", type=int)
    output = command.add_argument_group("output").add_mutually_exclusive_group()
    output.add_argument("--stats", action="store_true", help="acceptance and speed on stderr")
    output.add_argument("--stream", action="store_true", help="print while decoding")
