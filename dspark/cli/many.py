"""Many prompts, served together, into a log that the suite can audit."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import PreTrainedModel

from dspark.drafters.protocol import Drafter
from dspark.record import AcceptanceRecord
from dspark.request import Generation, Request, SamplingParams
from dspark.scheduler.protocol import Scheduler
from dspark.serving import Engine, Limits
from dspark.training.documents import read_documents


def read_requests(path: Path, tokenizer: Any, shared: Request) -> list[Request]:
    """One request for every line (see `read_documents`), the i-th with the seed i further; ValueError where there is none."""
    documents = read_documents([path], tokenizer)
    if not documents:
        raise ValueError(f"{str(path)!r} has no prompt; one is needed. Give a .jsonl file with a prompt a line.")
    return [
        replace(
            shared,
            prompt_token_ids=tuple(tokenizer.encode(document.text, add_special_tokens=not document.is_chat)),
            seed=None if shared.seed is None else shared.seed + index,
        )
        for index, document in enumerate(documents)
    ]


def answer_all(
    target: PreTrainedModel,
    drafter: Drafter,
    scheduler: Scheduler | None,
    requests: Sequence[Request],
    *,
    out: Path,
    tokenizer: Any,
    max_rows: int,
    stats: bool,
) -> int:
    """Answer the requests, at most `max_rows` at once; a line of `out` for each, written when it is done.

    Raises ValueError before any is begun where one cannot be answered; returns 1 where one has failed on its way, which stderr
    then tells, and 0 otherwise. What was answered before a failure or an interruption stays.
    """
    longest = max(len(each.prompt_token_ids) for each in requests) + requests[0].max_new_tokens
    engine = Engine(
        target,
        drafter,
        scheduler=scheduler,
        limits=Limits(max_rows=max_rows, max_tokens=max_rows * longest, max_prefixes=0),
    )
    waiting: dict[int, tuple[int, Request]] = {}
    for number, request in enumerate(requests, 1):
        try:
            waiting[engine.submit(request)] = number, request
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from error
    answered: list[Generation] = []
    console = Console(stderr=True)
    started = time.perf_counter()
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    out.parent.mkdir(parents=True, exist_ok=True)
    with Progress(*columns, console=console) as progress, out.open("w", encoding="utf-8") as log:
        task = progress.add_task("decoding", total=len(requests))
        while waiting:
            engine.step()
            for ticket in [each for each in waiting if each in engine.finished or each in engine.failed]:
                number, request = waiting.pop(ticket)
                if ticket in engine.failed:
                    console.print(f"prompt {number}: {engine.failed.pop(ticket)}", markup=False)
                else:
                    answered.append(engine.finished.pop(ticket))
                    log.write(json.dumps(line_of(request, answered[-1], tokenizer)) + "\n")
                    log.flush()
                progress.advance(task)
    if stats and answered:
        print_stats(answered, time.perf_counter() - started)
    return 0 if len(answered) == len(requests) else 1


def line_of(request: Request, answer: Generation, tokenizer: Any) -> dict[str, Any]:
    """A line of `verify/log/line.schema.json`, which is a contract between the two and imported by neither."""
    settings = [each.name for each in fields(SamplingParams) if each.name != "grammar"]  # which no file can hold
    return {
        "prompt_token_ids": request.prompt_token_ids,
        "token_ids": answer.token_ids,
        "sampling": {name: getattr(request.sampling, name) for name in settings},
        "max_new_tokens": request.max_new_tokens,
        "min_new_tokens": request.min_new_tokens,
        "stop_token_ids": request.stop_token_ids,
        "finish_reason": answer.finish_reason,
        "seed": request.seed,
        "num_draft_tokens": request.num_draft_tokens,
        "engine": f"dspark {version('dspark-verify')}",
        "roles": answer.roles,
        "record": asdict(answer.record),
        "text": tokenizer.decode(answer.token_ids, skip_special_tokens=True),
    }


def print_stats(answers: Sequence[Generation], seconds: float) -> None:
    """Acceptance and speed on stderr, of all answers together."""
    records = [each.record for each in answers]
    together = AcceptanceRecord.of(
        drafted_per_step=[count for each in records for count in each.drafted_per_step],
        accepted_per_step=[count for each in records for count in each.accepted_per_step],
    )
    num_tokens = sum(len(each.token_ids) for each in answers)
    table = Table("measure", "value")
    table.add_row("tokens", str(num_tokens))
    table.add_row("rounds", str(together.num_spec_steps))
    table.add_row("mean_acceptance_length (bonus included)", f"{together.mean_acceptance_length:.2f}")
    table.add_row("draft_acceptance_rate (bonus excluded)", f"{together.draft_acceptance_rate:.1%}")
    table.add_row("tokens/s (prefill included)", f"{num_tokens / seconds:.1f}")
    Console(stderr=True).print(table)
