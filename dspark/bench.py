"""Speed as ratios in one run: speculative against plain decoding and against transformers' assisted generation.

The three run in turn on the same prompts (A B C A B C ...), so that a slow moment of the machine hits all of them. A ratio's
interval is a bootstrap over the turns.
"""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dspark.decoder import SpeculativeDecoder
from dspark.drafters.model import ModelDrafter
from dspark.loading import LoadedPair
from dspark.request import Request, SamplingParams

NUM_BOOTSTRAPS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What is timed: greedy continuations of `prompts`, `max_new_tokens` tokens each, `num_turns` times in turn."""

    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    num_draft_tokens: int
    num_turns: int


def run(pair: LoadedPair, contest: Contest) -> dict[str, Any]:
    """Seconds of every contestant and turn, and the ratios of ours to the others with 95% intervals."""
    if pair.draft is None:
        raise ValueError("no draft model; a comparison of speculative decoding needs one. Give --draft DIR.")
    contestants = _contestants(pair, contest)
    for decode in contestants.values():  # warm up
        decode(contest.prompts[0])
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in track(range(contest.num_turns), description="turns"):
        for name, decode in contestants.items():
            _synchronise(pair)
            started = time.perf_counter()
            for prompt in contest.prompts:
                decode(prompt)
            _synchronise(pair)
            seconds[name].append(time.perf_counter() - started)
    ours = np.array(seconds["dspark speculative"])
    tokens = len(contest.prompts) * contest.max_new_tokens
    ratios = {name: _ratio(np.array(times), ours) for name, times in seconds.items() if name != "dspark speculative"}
    return {
        "seconds": seconds,
        "tokens_per_turn": tokens,
        "speedup_of_dspark_speculative_over": ratios,
        "contest": {
            "prompts": len(contest.prompts),
            "max_new_tokens": contest.max_new_tokens,
            "num_draft_tokens": contest.num_draft_tokens,
            "temperature": 0,
            "batch": 1,
        },
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "device": str(pair.target.device),
            "dtype": str(pair.target.dtype),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _contestants(pair: LoadedPair, contest: Contest) -> dict[str, Callable[[tuple[int, ...]], None]]:
    draft: Any = pair.draft
    target: Any = pair.target
    speculative = SpeculativeDecoder(pair.target, ModelDrafter(draft))
    plain = SpeculativeDecoder(pair.target)
    draft.generation_config.num_assistant_tokens = contest.num_draft_tokens
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0

    def ask(decoder: SpeculativeDecoder) -> Callable[[tuple[int, ...]], None]:
        def decode(prompt: tuple[int, ...]) -> None:
            request = Request(
                prompt_token_ids=prompt,
                max_new_tokens=contest.max_new_tokens,
                num_draft_tokens=contest.num_draft_tokens,
                sampling=SamplingParams(temperature=0.0),
            )
            decoder.generate([request])

        return decode

    def peer(**options: Any) -> Callable[[tuple[int, ...]], None]:
        def decode(prompt: tuple[int, ...]) -> None:
            token_ids = torch.tensor([prompt], device=target.device)
            target.generate(
                token_ids,
                attention_mask=torch.ones_like(token_ids),
                max_new_tokens=contest.max_new_tokens,
                min_new_tokens=contest.max_new_tokens,
                do_sample=False,
                pad_token_id=0,
                **options,
            )

        return decode

    return {
        "dspark speculative": ask(speculative),
        "dspark plain": ask(plain),
        "transformers assisted": peer(assistant_model=draft),
        "transformers plain": peer(),
    }


def _ratio(theirs: np.ndarray[Any, Any], ours: np.ndarray[Any, Any]) -> dict[str, float]:
    """Ratio of total times, with the 95% bootstrap interval over turns."""
    generator = np.random.default_rng(0)
    picks = generator.integers(len(ours), size=(NUM_BOOTSTRAPS, len(ours)))
    samples = theirs[picks].sum(1) / ours[picks].sum(1)
    low, high = np.quantile(samples, [0.025, 0.975])
    return {"ratio": round(theirs.sum() / ours.sum(), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def _synchronise(pair: LoadedPair) -> None:
    if pair.target.device.type == "cuda":
        torch.cuda.synchronize()


def show(measured: dict[str, Any]) -> None:
    """Print the ratios."""
    table = Table("dspark speculative against", "speed-up", "95% interval")
    for name, ratio in measured["speedup_of_dspark_speculative_over"].items():
        table.add_row(name, f"{ratio['ratio']:.2f}x", f"{ratio['low']:.2f} to {ratio['high']:.2f}")
    Console().print(table)


def write(measured: dict[str, Any], path: Path) -> None:
    """Keep the raw samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured, indent=1) + "\n")
