"""`dspark calibrate`: make a drafter's confidences mean what they say."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer
from transformers.utils import logging

from dspark.calibration import Calibration
from dspark.cli.options import add_target, device_named
from dspark.drafters.factory import load_drafter
from dspark.loading import DTYPES, load_pair
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
        "calibrate", help="correct a drafter's confidences on text that it was not trained on"
    )
    command.set_defaults(run=run)
    command.add_argument(
        "drafter", type=Path, metavar="DRAFTER", help="checkpoint directory; calibration.json goes there"
    )
    add_target(command)
    command.add_argument(
        "--text", type=Path, nargs="+", help="text or .jsonl files; default: the fixtures' validation part"
    )
    command.add_argument("--num-prompts", type=int, default=200)
    command.add_argument("--prompt-tokens", type=int, default=48)
    command.add_argument("--max-new-tokens", type=int, default=96)
    command.add_argument("--num-draft-tokens", type=int, default=7)
    command.add_argument("--temperature", type=float, default=1.0)
    command.add_argument("--batch-size", type=int, default=8)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--diagram", type=Path, default=Path("reports/local/reliability.svg"), help=".svg or .png")


def run(options: argparse.Namespace) -> int:
    """Record rounds on half of the prompts to fit on and half to report on; write the calibration and its diagram."""
    logging.disable_progress_bar()
    device, dtype = device_named(options.device), DTYPES[options.dtype]
    target = load_pair(target_dir=options.target, draft_dir=None, device=device, dtype=dtype).target
    drafter = load_drafter(options.drafter, target=target, device=device, dtype=dtype, calibrated=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(options.target, local_files_only=True)
    documents = read_documents(options.text, tokenizer) if options.text else read_part("validation")
    prompts = cut_prompts(
        documents,
        tokenizer,
        prompt_tokens=options.prompt_tokens,
        num_prompts=options.num_prompts,
        seed=options.seed,
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
    calibration = fit_calibration(rounds.where(fitting))
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
