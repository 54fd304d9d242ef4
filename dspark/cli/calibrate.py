"""`dspark calibrate`: make a drafter's confidences mean what they say."""

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from dspark.calibration import FILE, Calibration
from dspark.causal_model import CausalModel
from dspark.checkpoints import weights_sha256
from dspark.cli.options import HelpWithDefaults, add_target, at_least, device_named, require_place
from dspark.drafters.factory import load_drafter
from dspark.loading import DTYPES, load_pair, load_tokenizer
from dspark.reliability import (
    area_under_curve,
    calibration_error,
    conditional_acceptance,
    prefix_survival,
    reliability_diagram,
)
from dspark.request import Request, SamplingParams
from dspark.rounds import RecordedRounds, record_rounds
from dspark.temperature_scaling import calibrated, fit_calibration
from dspark.training.documents import cut_prompts, read_documents
from fixtures.domains import read_part


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    command = commands.add_parser(
        "calibrate",
        help="correct a drafter's confidences on text that it was not trained on",
        formatter_class=HelpWithDefaults,
    )
    command.set_defaults(run=run)
    command.add_argument(
        "drafter", type=Path, metavar="DRAFTER", help="checkpoint directory; calibration.json goes there"
    )
    add_target(command)
    command.add_argument(
        "--text",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="UTF-8 text or .jsonl files (default: the validation part of the embedded target)",
    )
    command.add_argument("--num-prompts", type=at_least(1), default=200, metavar="N", help="prompts at most")
    command.add_argument(
        "--prompt-tokens",
        type=at_least(1),
        default=48,
        metavar="N",
        help="where documents are cut; prompts and messages are not",
    )
    command.add_argument(
        "--max-new-tokens", type=at_least(1), default=96, metavar="N", help="tokens added to each prompt"
    )
    command.add_argument("--num-draft-tokens", type=at_least(1), default=7, metavar="N", help="drafts a round at most")
    command.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    command.add_argument("--batch-size", type=at_least(1), default=8, metavar="N", help="prompts at once")
    command.add_argument("--seed", type=at_least(0), default=0, help="of the choice of prompts, and of their outputs")
    command.add_argument(
        "--diagram", type=Path, default=Path("reports/local/reliability.svg"), metavar="FILE", help=".svg or .png"
    )


def run(options: argparse.Namespace) -> int:
    """Record rounds on half of the prompts to fit on and half to report on; write the calibration and its diagram."""
    logging.disable_progress_bar()
    if options.diagram.suffix not in (".svg", ".png"):
        raise ValueError(f"--diagram is {str(options.diagram)!r}; its name must end in .svg or .png. Rename it.")
    require_place(options.diagram)
    require_place(options.drafter / FILE)
    device, dtype = device_named(options.device), DTYPES[options.dtype]
    target = load_pair(target_dir=options.target, draft_dir=None, device=device, dtype=dtype).target
    drafter = load_drafter(options.drafter, target=target, device=device, dtype=dtype, calibrated=False)
    tokenizer = load_tokenizer(options.target)
    documents = read_documents(options.text, tokenizer) if options.text else read_part("validation")
    prompts = cut_prompts(
        documents,
        tokenizer,
        prompt_tokens=options.prompt_tokens,
        num_prompts=options.num_prompts,
        seed=options.seed,
        longest=CausalModel.of(target).room_beside(options.max_new_tokens),
    )
    requests = [
        Request(
            prompt_token_ids=prompt.token_ids,
            max_new_tokens=options.max_new_tokens,
            num_draft_tokens=options.num_draft_tokens,
            sampling=SamplingParams(temperature=options.temperature),
            seed=options.seed + index,
        )
        for index, prompt in enumerate(prompts)
    ]
    rounds = record_rounds(target, drafter, requests, batch_size=options.batch_size)
    fitting = rounds.request_ids % 2 == 0
    calibration = replace(
        fit_calibration(rounds.where(fitting)),
        sampling_temperature=options.temperature,
        weights_sha256=weights_sha256(options.drafter),
    )
    before = rounds.where(~fitting)
    after = calibrated(before, calibration)
    Console().print(_table(calibration, before, after))
    options.diagram.parent.mkdir(parents=True, exist_ok=True)
    reliability_diagram({"before": before, "after": after}).savefig(options.diagram, dpi=150)
    print(f"calibration: {calibration.save(options.drafter)}\ndiagram: {options.diagram}")
    return 0


def _table(calibration: Calibration, before: RecordedRounds, after: RecordedRounds) -> Table:
    table = Table(
        "position",
        "temperature",
        "rounds",
        "ECE of survival before",
        "after",
        "AUC of conditional acceptance",
        title="on rounds that the calibration was not fitted on",
    )
    for position, temperature in enumerate(calibration.temperatures):
        predictions = prefix_survival(before, position)
        table.add_row(
            str(position + 1),
            f"{temperature:.2f}",
            str(len(predictions.happened)),
            f"{calibration_error(predictions):.1%}",
            f"{calibration_error(prefix_survival(after, position)):.1%}",
            f"{area_under_curve(conditional_acceptance(before, position)):.3f}",
        )
    return table
