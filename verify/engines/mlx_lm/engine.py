"""mlx-lm in process, as a worker: one target, decoded with a draft model and without.

Standard library and this engine's environment only; mlx reads the checkpoints as they are, on Linux on the CPU. No options.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from verify.engines.options import only
from verify.engines.rounds import record_of_rounds

SEEDS = 2**31
WHOLE_TEXT = 10**6  # its penalties look at so many of the last tokens: at all of them
CLAIMED = (
    "greedy",
    "sampled",
    "top_k",
    "repetition_penalty",
    "logit_bias",
    "forbidden_tokens",
    "seeds",
    "mixed_sampling",
    "draft_model",
    "roles",
    "record",
)


def open_engine(
    *, target: str, draft: str | None, options: Mapping[str, str], device: str, dtype: str, folder: str
) -> "Engine":
    """Load both checkpoints; ValueError for what this worker does not have."""
    only(options, (), engine="mlx_lm")
    if device != "cpu" or dtype not in ("float32", "bfloat16"):
        raise ValueError(
            f"device {device!r} with dtype {dtype!r}; this worker runs mlx on the CPU, in float32 or bfloat16"
        )
    if draft is None:
        raise ValueError("no draft; mlx-lm speculates with a draft model only: give --draft DIR")
    return Engine(Path(target), Path(draft), dtype=dtype)


class Engine:
    """One request after the other, each with mlx's global generator seeded for it."""

    def __init__(self, target: Path, draft: Path, *, dtype: str) -> None:
        self._mlx = import_module("mlx.core")
        self._steps = import_module("mlx_lm.generate")
        self._sampling = import_module("mlx_lm.sample_utils")
        load = import_module("mlx_lm.utils").load_model
        self._target, self._draft = (load(path)[0] for path in (target, draft))
        for model in (self._target, self._draft):
            model.set_dtype(getattr(self._mlx, dtype))
        self._seeds = random.SystemRandom()
        self.name = f"mlx-lm {version('mlx-lm')} with mlx {version('mlx')}"
        self.capabilities = {**dict.fromkeys(CLAIMED, True), "logprobs": "raw", "arithmetic": "float32"}
        self.concurrency = [1]
        self.same_seed_same_output = False

    def answer(
        self, requests: Sequence[Mapping[str, Any]], *, speculative: bool, concurrency: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (index, answer) in the order of the requests."""
        for index, request in enumerate(requests):
            try:
                answer = self._answer_one(request, speculative=speculative)
            except RuntimeError as error:  # the models go on with the others
                answer = {"failure": f"{type(error).__name__}: {error}"}
            yield index, answer

    def _answer_one(self, request: Mapping[str, Any], *, speculative: bool) -> dict[str, Any]:
        sampler, processors = settings_of(request)
        prompt = self._mlx.array(list(request["prompt_token_ids"]))
        seed = self._seeds.randrange(SEEDS) if request["seed"] is None else request["seed"] % SEEDS
        self._mlx.random.seed(seed)
        shared = {
            "max_tokens": request["max_new_tokens"],
            "sampler": self._sampling.make_sampler(**sampler),
            "logits_processors": self._sampling.make_logits_processors(**processors),
        }
        if speculative:
            steps = self._steps.speculative_generate_step(
                prompt, self._target, self._draft, num_draft_tokens=request["num_draft_tokens"], **shared
            )
        else:
            plain = self._steps.generate_step(prompt, self._target, **shared)
            steps = ((token, logprobs, False) for token, logprobs in plain)
        token_ids, logprobs, drafted = [], [], []
        for token, law, from_draft in islice(steps, request["max_new_tokens"]):
            token_ids.append(int(token))
            drafted.append(bool(from_draft))
            if request["logprobs"]:
                logprobs.append(float(law[int(token)]))
            if token_ids[-1] in request["stop_token_ids"]:
                break
        steps.close()
        stopped = token_ids[-1] in request["stop_token_ids"]
        answer: dict[str, Any] = {"token_ids": token_ids, "finish_reason": "stop" if stopped else "length"}
        if request["logprobs"]:
            answer["logprobs"] = logprobs
        if speculative:
            answer |= rounds_of(drafted, request)
        return answer


def settings_of(request: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request as arguments of `make_sampler` and `make_logits_processors`; NotImplementedError where there are none.

    mlx-lm truncates by `top_p` and `min_p` before the temperature, and its presence and frequency penalties count the prompt:
    other settings than those of the protocol, so they are not claimed.
    """
    sampling = request["sampling"]
    off = {"top_p": 1.0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "allowed_token_ids": None}
    for name, value in off.items():
        if sampling[name] != value:
            raise NotImplementedError(f"mlx-lm has no {name} in the meaning of the protocol")
    if request["min_new_tokens"]:
        raise NotImplementedError("mlx-lm has no minimum length")
    bias = {int(token): value for token, value in sampling["logit_bias"].items()}
    bias |= dict.fromkeys(sampling["forbidden_token_ids"], -float("inf"))
    penalty = sampling["repetition_penalty"]
    return (
        {"temp": sampling["temperature"], "top_k": sampling["top_k"]},
        {
            "logit_bias": bias or None,
            "repetition_penalty": None if penalty == 1 else penalty,
            "repetition_context_size": WHOLE_TEXT,
        },
    )


def rounds_of(drafted: Sequence[bool], request: Mapping[str, Any]) -> dict[str, Any]:
    """Roles and record: a round ends with a token that was not drafted, or with the output."""
    roles = ["accepted" if each else "" for each in drafted]
    accepted_per_step: list[int] = []
    drafted_per_step: list[int] = []
    emitted = accepted = 0
    for place, from_draft in enumerate(drafted):
        accepted += from_draft
        if from_draft and place + 1 < len(drafted):
            continue
        num_drafts = min(request["max_new_tokens"] - emitted, request["num_draft_tokens"])
        drafted_per_step.append(num_drafts)
        accepted_per_step.append(accepted)
        if not from_draft:
            roles[place] = "bonus" if accepted == num_drafts else "recovered"
        emitted, accepted = place + 1, 0
    return {"roles": roles, "record": record_of_rounds(drafted=drafted_per_step, accepted=accepted_per_step)}
