"""`dspark generate`: continue one prompt, or all of a file."""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from dspark.chat import chat_text, stop_token_ids
from dspark.cli.many import answer_all, print_stats, read_requests
from dspark.cli.method import add_method, drafter_of, scheduler_of
from dspark.cli.options import HelpWithDefaults, add_models, at_least, device_named, require_new_file
from dspark.decoder import SpeculativeDecoder
from dspark.loading import DTYPES, load_pair, load_tokenizer
from dspark.request import Request, SamplingParams
from dspark.text_files import is_unicode, read_text


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    command = commands.add_parser("generate", help="continue a prompt", formatter_class=HelpWithDefaults)
    command.set_defaults(run=run)
    command.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text to continue")
    command.add_argument("--chat", action="store_true", help="put the prompt into the tokenizer's chat template")
    command.add_argument("--file", type=Path, help="read the prompt from a UTF-8 file")
    many = command.add_argument_group("many prompts")
    many.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help=".jsonl with prompt, messages or text: continue each, prompt i with seed + i",
    )
    many.add_argument(
        "--out", type=Path, metavar="LOG", help="where their answers go: what `pytest verify/ --generations` reads"
    )
    many.add_argument("--max-rows", type=at_least(1), default=16, metavar="N", help="prompts continued at once")
    add_models(command)
    add_method(command)
    length = command.add_argument_group("length")
    length.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="tokens to add at most")
    length.add_argument("--min-new-tokens", type=int, default=0, metavar="N", help="tokens before a stop is possible")
    length.add_argument("--num-draft-tokens", type=int, default=5, metavar="N", help="drafts a round at most")
    length.add_argument(
        "--stop-token-ids",
        type=int,
        nargs="*",
        metavar="ID",
        help="what ends the text (default: what generation_config.json names, else the tokenizer's end of text)",
    )
    sampling = command.add_argument_group("sampling")
    sampling.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    sampling.add_argument("--top-k", type=int, default=0, help="keep the most probable tokens; 0 keeps all")
    sampling.add_argument("--top-p", type=float, default=1.0, help="keep the fewest tokens of this mass; 1 keeps all")
    sampling.add_argument("--min-p", type=float, default=0.0, help="drop below this share of the largest; 0 keeps all")
    sampling.add_argument("--repetition-penalty", type=float, default=1.0, help="on prompt and output; 1 is none")
    sampling.add_argument("--presence-penalty", type=float, default=0.0, help="on tokens of the output; 0 is none")
    sampling.add_argument("--frequency-penalty", type=float, default=0.0, help="on each use in the output; 0 is none")
    sampling.add_argument(
        "--logit-bias", type=_bias, nargs="*", default=[], metavar="ID:BIAS", help="added to logits (default: none)"
    )
    sampling.add_argument(
        "--forbidden-token-ids", type=int, nargs="*", default=[], metavar="ID", help="never drawn (default: none)"
    )
    sampling.add_argument(
        "--allowed-token-ids", type=int, nargs="*", metavar="ID", help="only these are drawn (default: all)"
    )
    sampling.add_argument("--seed", type=int, help="repeats an output (default: a fresh one)")
    output = command.add_argument_group("output").add_mutually_exclusive_group()
    output.add_argument("--stats", action="store_true", help="acceptance and speed on stderr")
    output.add_argument("--stream", action="store_true", help="print while decoding")


def run(options: argparse.Namespace) -> int:
    """Decode one prompt to stdout, or many into a log."""
    logging.disable_progress_bar()
    text = None if options.prompts else _prompt(options)
    if (options.prompts is None) != (options.out is None) or (options.prompts and (options.prompt or options.file)):
        raise ValueError("--prompts and --out belong together, and replace PROMPT and --file. Give both, or neither.")
    if options.prompts and (options.stream or options.chat):
        raise ValueError(
            "--stream and --chat are for one prompt; in --prompts a line with messages is a chat. Leave them out."
        )
    if options.out:
        require_new_file(options.out)
    pair = load_pair(
        target_dir=options.target,
        draft_dir=options.draft if options.drafter == "model" else None,
        device=device_named(options.device),
        dtype=DTYPES[options.dtype],
    )
    tokenizer = load_tokenizer(options.target)
    stop = options.stop_token_ids
    if stop is None:
        stop = stop_token_ids(pair.target, tokenizer)
    shared = Request(
        prompt_token_ids=(),
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.min_new_tokens,
        num_draft_tokens=options.num_draft_tokens,
        sampling=_sampling(options),
        stop_token_ids=tuple(stop),
        seed=options.seed,
    )
    drafter, scheduler = drafter_of(options, pair), scheduler_of(options)
    if text is None:
        requests = read_requests(options.prompts, tokenizer, shared)
        return answer_all(
            pair.target,
            drafter,
            scheduler,
            requests,
            out=options.out,
            tokenizer=tokenizer,
            max_rows=options.max_rows,
            stats=options.stats,
        )
    if options.chat:
        text = chat_text([{"role": "user", "content": text}], tokenizer)
    token_ids = tuple(tokenizer.encode(text, add_special_tokens=not options.chat))
    request = replace(shared, prompt_token_ids=token_ids)
    decoder = SpeculativeDecoder(pair.target, drafter, scheduler=scheduler)
    if options.stream:
        _stream(decoder, request, tokenizer)
        return 0
    started = time.perf_counter()
    [generation] = decoder.generate([request])
    seconds = time.perf_counter() - started
    print(tokenizer.decode(generation.token_ids, skip_special_tokens=True))
    if options.stats:
        print_stats([generation], seconds)
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


def _prompt(options: argparse.Namespace) -> str:
    if (options.prompt is None) == (options.file is None):
        raise ValueError("give exactly one of PROMPT and --file; the prompt is what is continued.")
    text: str = options.prompt if options.file is None else read_text(options.file)
    if not text:
        raise ValueError("the prompt is empty; there must be something to continue. Give some text.")
    if not is_unicode(text):
        raise ValueError("the prompt holds bytes that are not UTF-8; text is. Convert it first.")
    return text


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
    try:
        return int(token_id), float(bias)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not ID:BIAS, such as 42:-1.5") from error
