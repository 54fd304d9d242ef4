"""A request in the words of llama.cpp, with everything switched off that its samplers do by default and ours do not.

Standard library only: the worker reads it, and so does `verify.engines.server`.
"""

from collections.abc import Mapping
from typing import Any

PENALTY_WINDOW = 2**20  # so many last tokens are penalised: all of prompt and output
SEEDS = 2**31  # the server reads a signed 32-bit number, and -1 as "any"
OFF: Mapping[str, Any] = {
    "typical_p": 1.0,
    "top_n_sigma": -1.0,
    "xtc_probability": 0.0,
    "dynatemp_range": 0.0,
    "dry_multiplier": 0.0,
    "mirostat": 0,
    "adaptive_target": -1.0,
    "ignore_eos": False,
    "min_keep": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
SAMPLERS = (
    "penalties",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
)  # the suite's order; by default the temperature is last


def server_body(request: Mapping[str, Any], *, vocab_size: int) -> dict[str, Any]:
    """The body of POST /completion.

    The server's penalties are over prompt and output: the suite's repetition penalty, but not its presence and frequency
    penalties, which are over the output only.
    """
    sampling = request["sampling"]
    return {
        **OFF,
        "prompt": list(request["prompt_token_ids"]),
        "n_predict": request["max_new_tokens"],
        "seed": -1 if request["seed"] is None else request["seed"] % SEEDS,
        "samplers": list(SAMPLERS),
        "temperature": sampling["temperature"],
        "top_k": sampling["top_k"],
        "top_p": sampling["top_p"],
        "min_p": sampling["min_p"],
        "repeat_penalty": sampling["repetition_penalty"],
        "repeat_last_n": PENALTY_WINDOW,
        "logit_bias": [[token, value] for token, value in biases(sampling, vocab_size=vocab_size).items()],
        "n_probs": int(request["logprobs"]),
        "return_tokens": True,
    }


def biases(sampling: Mapping[str, Any], *, vocab_size: int) -> dict[int, float | bool]:
    """What is added to logits: the bias, and False (never) for tokens that may not come."""
    banned = set(sampling["forbidden_token_ids"])
    if sampling["allowed_token_ids"] is not None:
        banned |= set(range(vocab_size)) - set(sampling["allowed_token_ids"])
    given = {int(token): float(value) for token, value in sampling["logit_bias"].items()}
    return given | dict.fromkeys(sorted(banned), False)


def generate_arguments(sampling: Mapping[str, Any]) -> dict[str, float]:
    """Keywords of `Llama.generate`, whose order is fixed: penalties, top-k, top-p, min-p, temperature.

    Where a top-p or min-p follows, the caller divides the logits by the temperature first (`divides`): dividing the penalties
    too and sampling at temperature 1 is then the suite's order. The bindings' penalties are over the output only: the suite's
    presence and frequency penalties, but not its repetition penalty.
    """
    temperature = sampling["temperature"] if divides(sampling) else 1.0
    return {
        "temp": 1.0 if divides(sampling) else sampling["temperature"],
        "top_k": sampling["top_k"],
        "top_p": sampling["top_p"],
        "min_p": sampling["min_p"],
        "typical_p": 1.0,
        "repeat_penalty": 1.0,
        "presence_penalty": sampling["presence_penalty"] / temperature,
        "frequency_penalty": sampling["frequency_penalty"] / temperature,
    }


def divides(sampling: Mapping[str, Any]) -> bool:
    """Whether the temperature must come before the engine's filters."""
    return sampling["temperature"] not in (0, 1) and (sampling["top_p"] < 1 or sampling["min_p"] > 0)
