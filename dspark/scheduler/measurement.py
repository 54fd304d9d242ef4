"""Measure the speed profile of a target on its device."""

import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel

from dspark.cache import Context, open_context
from dspark.causal_model import CausalModel
from dspark.scheduler.profile import SpeedProfile

TOKEN_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32, 48, 64, 96, 128)
LARGE_TOKEN_COUNTS = (256, 512, 1024)  # on a GPU, where a forward of 128 tokens is far from a full one
TOKENS_PER_ROW = 8
WARM_UPS = 3


@torch.inference_mode()
def measure_speed(
    target: CausalModel,
    *,
    token_counts: Sequence[int] | None = None,
    tokens_per_row: int = TOKENS_PER_ROW,
    context_length: int = 256,
    num_repeats: int = 30,
) -> SpeedProfile:
    """Time forwards over blocks of every size in turn (A B C A B C ...), and take the median of each.

    `token_counts` are up to 128 if not given, and up to 1024 on a GPU; the contexts of all are in memory together.
    A forward of n tokens has one row of n, or n / `tokens_per_row` rows of `tokens_per_row` where n is larger; each row
    has read `context_length` tokens before. A step is that forward and the roll-back of the cache, until the device is done.
    Raises ValueError where a count does not fill its rows or the target has too few positions.
    """
    if token_counts is None:
        token_counts = TOKEN_COUNTS + (LARGE_TOKEN_COUNTS if target.device.type == "cuda" else ())
    for count in token_counts:
        if count < 1 or (count > tokens_per_row and count % tokens_per_row):
            raise ValueError(
                f"a token count is {count}; it must be 1 to {tokens_per_row} or a multiple of {tokens_per_row}, so that all "
                "rows are equally long. Change it, or tokens_per_row."
            )
    needed = context_length + tokens_per_row
    if target.max_positions is not None and needed > target.max_positions:
        raise ValueError(
            f"context and block are {needed} tokens; the target has {target.max_positions} positions. Shorten the context."
        )
    counts = sorted(set(token_counts))
    steps = [_Step(target, count, tokens_per_row, context_length) for count in counts]
    for step in steps:
        for _ in range(WARM_UPS):
            step()
    turns = track(range(num_repeats), description="turns")
    seconds = [[seconds_of(step, target.device) for step in steps] for _ in turns]
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75], axis=0)
    return SpeedProfile(
        token_counts=tuple(counts),
        steps_per_second=tuple(float(1 / each) for each in median),
        conditions={
            **conditions_of(target.model),
            "context_length": context_length,
            "tokens_per_row": tokens_per_row,
            "num_repeats": num_repeats,
            "seconds_quartiles": [[float(each) for each in pair] for pair in zip(low, high, strict=True)],
        },
    )


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long some work takes until the device is done with it."""
    _synchronise(device)
    started = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - started


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def conditions_of(model: PreTrainedModel) -> dict[str, Any]:
    """What a measured speed depends on: model, machine and versions."""
    device = model.device
    return {
        "model": type(model).__name__,
        "num_parameters": model.num_parameters(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "device_type": device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


class _Step:
    """One forward that can be repeated: the rows have read their context, and forget the block after each step."""

    def __init__(self, target: CausalModel, num_tokens: int, tokens_per_row: int, context_length: int) -> None:
        num_rows = max(1, num_tokens // tokens_per_row)
        self.device = target.device
        self.context: Context = open_context(target, num_rows)
        self.block = self._text(target, num_rows, num_tokens // num_rows)  # [R, n / R]
        if context_length:
            text = self._text(target, num_rows, context_length)  # [R, context_length]
            self.context.extend(text, [context_length] * num_rows, last=True)
            self.context.commit([context_length] * num_rows)
        self.lengths = [context_length] * num_rows

    def __call__(self) -> None:
        self.context.extend(self.block, [self.block.shape[1]] * self.block.shape[0])
        self.context.commit(self.lengths)

    def _text(self, target: CausalModel, num_rows: int, width: int) -> Tensor:
        numbers = torch.arange(num_rows * width, device=self.device).view(num_rows, width)
        return numbers % target.vocab_size
