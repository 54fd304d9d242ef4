"""A sample log: the reference decoder on the fixture pair, one line a request."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dspark.conformance import make_decoder
from verify.protocol import Request, SamplingParams

FIXTURES = Path(__file__).parents[3] / "fixtures"


def requests() -> list[Request]:
    """Greedy and sampled requests on short prompts, with a stop token that occurs."""
    generator = torch.Generator().manual_seed(0)
    prompts = [tuple(torch.randint(1024, (4,), generator=generator).tolist()) for _ in range(56)]
    kinds = (SamplingParams(), SamplingParams(temperature=0.8), SamplingParams(top_k=20))
    greedy = [
        Request(prompt_token_ids=prompt, max_new_tokens=24, sampling=SamplingParams(temperature=0), logprobs=True)
        for prompt in prompts[:8]
    ]
    sampled = [
        Request(
            prompt_token_ids=prompt,
            max_new_tokens=24,
            sampling=kinds[index % 3],
            stop_token_ids=(10,) if index % 2 else (),
            seed=index,
            logprobs=True,
        )
        for index, prompt in enumerate(prompts[8:])
    ]
    return [*greedy, *sampled]


def line_of(request: Request, answer: Any, *, engine: str = "dspark 0.1") -> dict[str, Any]:
    """One line of the log."""
    asked = asdict(request)
    del asked["logprobs"]
    asked["sampling"] = {name: value for name, value in asked["sampling"].items() if value is not None}
    record = answer.record
    names = ("num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens", "acceptance_histogram")
    return asked | {
        "engine": engine,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "logprobs": list(answer.logprobs),
        "logprobs_of": "processed",
        "roles": list(answer.roles),
        "record": {name: getattr(record, name) for name in names},
    }


def sample_log() -> list[dict[str, Any]]:
    """The lines of the sample log."""
    target, draft = (
        AutoModelForCausalLM.from_pretrained(FIXTURES / name, dtype=torch.float32).eval()
        for name in ("target", "draft")
    )
    decoder = make_decoder(SimpleNamespace(target=target, draft=draft, dtype=torch.float32))
    asked = requests()
    lines = [line_of(request, answer) for request, answer in zip(asked, decoder.generate(asked), strict=True)]
    return json.loads(json.dumps(lines))  # type: ignore[no-any-return]


def write(path: Path, lines: Sequence[Any]) -> Path:
    """Write lines, given as values or as text."""
    path.write_text("".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in lines))
    return path
