"""What a caller asks for and what comes back. Any object with the same attributes is accepted in their place."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dspark.record import AcceptanceRecord

SMALLEST_TEMPERATURE = 1e-6


class Grammar(Protocol):
    """Which outputs are possible: an automaton over token ids, in `initial_state` before the first token of the output.

    In a state the tokens `allowed(state)` are possible and, where `is_final(state)`, the request's stop tokens too. A stop
    token ends the output, so no state follows it.
    """

    @property
    def initial_state(self) -> Hashable: ...  # noqa: D102
    def allowed(self, state: Any) -> Sequence[int]: ...  # noqa: D102
    def next_state(self, state: Any, token_id: int) -> Hashable: ...  # noqa: D102
    def is_final(self, state: Any) -> bool: ...  # noqa: D102


class SamplingSettings(Protocol):
    """The attributes of `SamplingParams`, whoever defines them."""

    @property
    def temperature(self) -> float: ...  # noqa: D102
    @property
    def top_k(self) -> int: ...  # noqa: D102
    @property
    def top_p(self) -> float: ...  # noqa: D102
    @property
    def min_p(self) -> float: ...  # noqa: D102
    @property
    def repetition_penalty(self) -> float: ...  # noqa: D102
    @property
    def presence_penalty(self) -> float: ...  # noqa: D102
    @property
    def frequency_penalty(self) -> float: ...  # noqa: D102
    @property
    def logit_bias(self) -> Mapping[int, float]: ...  # noqa: D102
    @property
    def forbidden_token_ids(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def allowed_token_ids(self) -> tuple[int, ...] | None: ...  # noqa: D102
    @property
    def grammar(self) -> Grammar | None: ...  # noqa: D102


class DecodingRequest(Protocol):
    """The attributes of `Request`, whoever defines them."""

    @property
    def prompt_token_ids(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def max_new_tokens(self) -> int: ...  # noqa: D102
    @property
    def min_new_tokens(self) -> int: ...  # noqa: D102
    @property
    def num_draft_tokens(self) -> int: ...  # noqa: D102
    @property
    def sampling(self) -> SamplingSettings: ...  # noqa: D102
    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def seed(self) -> int | None: ...  # noqa: D102
    @property
    def logprobs(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn from the model's logits.

    Processors apply in this order: `logit_bias`; `repetition_penalty` (prompt and output); `presence_penalty` and
    `frequency_penalty` (output only); forbidden and allowed tokens; `grammar` (bans what its state after the output so far
    does not allow); `min_new_tokens` of the request (bans its stop tokens); `temperature`; `top_k` (ties at the k-th place
    stay; 0 = off); `top_p`; `min_p`. `temperature == 0` is greedy: the arg max of the processed logits, lowest id on a tie.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    forbidden_token_ids: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt with its settings; generation ends with the first stop token or after `max_new_tokens` tokens."""

    prompt_token_ids: tuple[int, ...]
    max_new_tokens: int
    min_new_tokens: int = 0
    num_draft_tokens: int = 3
    sampling: SamplingSettings = field(default_factory=SamplingParams)
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    logprobs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The answer to one request.

    `finish_reason` is "stop" or "length". `logprobs` (where asked for) are natural logarithms of the processed target
    law at each emitted token. `roles`: "accepted", "recovered" or "bonus" per token.
    """

    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[float, ...] | None
    roles: tuple[str, ...]
    record: AcceptanceRecord


def validate(request: DecodingRequest, *, vocab_size: int, max_positions: int | None) -> None:
    """Raise ValueError (value, rule, remedy) where a request cannot be answered.

    `vocab_size` is the target's; `max_positions` its context limit, None where it has none.
    """
    num_prompt_tokens = len(request.prompt_token_ids)
    if num_prompt_tokens == 0:
        raise ValueError("prompt_token_ids is empty; it needs at least one token. Prepend a beginning-of-text token.")
    _require_ids("prompt_token_ids", request.prompt_token_ids, vocab_size)
    _require_ids("stop_token_ids", request.stop_token_ids, vocab_size)
    _require_integer("max_new_tokens", request.max_new_tokens, 1, "Ask for at least one token.")
    _require_integer("min_new_tokens", request.min_new_tokens, 0, "Use 0 for no minimum.")
    _require_integer("num_draft_tokens", request.num_draft_tokens, 0, "Use 0 to decode without drafts.")
    if request.min_new_tokens > request.max_new_tokens:
        raise ValueError(
            f"min_new_tokens is {request.min_new_tokens} and max_new_tokens {request.max_new_tokens}; the minimum must "
            "not exceed the maximum. Lower min_new_tokens."
        )
    total = num_prompt_tokens + request.max_new_tokens
    if max_positions is not None and total > max_positions:
        raise ValueError(
            f"prompt ({num_prompt_tokens}) + max_new_tokens ({request.max_new_tokens}) is {total} tokens; the target "
            f"has {max_positions} positions. Shorten the prompt, or lower max_new_tokens by {total - max_positions}."
        )
    if request.seed is not None and not (isinstance(request.seed, int) and 0 <= request.seed < 2**63):
        raise ValueError(f"seed is {request.seed!r}; it must be an integer in [0, 2**63). Use None for a fresh one.")
    _validate_sampling(request.sampling, vocab_size)
    _require_possible_token(request, vocab_size)


def _validate_sampling(sampling: SamplingSettings, vocab_size: int) -> None:
    temperature = sampling.temperature
    if not (temperature == 0 or SMALLEST_TEMPERATURE <= temperature < math.inf):
        raise ValueError(
            f"temperature is {temperature!r}; it must be 0 or in [{SMALLEST_TEMPERATURE:g}, inf). Use 0 for greedy."
        )
    _require_integer("top_k", sampling.top_k, 0, "Use 0 to keep every token.")
    if not 0 < sampling.top_p <= 1:
        raise ValueError(f"top_p is {sampling.top_p!r}; it must be in (0, 1]. Use 1 to keep every token.")
    if not 0 <= sampling.min_p <= 1:
        raise ValueError(f"min_p is {sampling.min_p!r}; it must be in [0, 1]. Use 0 to keep every token.")
    if not 0 < sampling.repetition_penalty < math.inf:
        raise ValueError(
            f"repetition_penalty is {sampling.repetition_penalty!r}; it must be positive and finite. "
            "Use 1 for no penalty."
        )
    for name, value in (
        ("presence_penalty", sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty),
    ):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}; it must be finite. Use 0 for no penalty.")
    _require_ids("logit_bias", tuple(sampling.logit_bias), vocab_size)
    for token_id, bias in sampling.logit_bias.items():
        if math.isnan(bias) or bias == math.inf:
            raise ValueError(
                f"logit_bias[{token_id}] is {bias!r}; it must be finite, or -inf to ban the token. "
                "Use a large finite bias."
            )
    _require_ids("forbidden_token_ids", sampling.forbidden_token_ids, vocab_size)
    _require_ids("allowed_token_ids", sampling.allowed_token_ids or (), vocab_size)


def _require_possible_token(request: DecodingRequest, vocab_size: int) -> None:
    sampling = request.sampling
    banned = {*sampling.forbidden_token_ids, *(i for i, bias in sampling.logit_bias.items() if bias == -math.inf)}
    if request.min_new_tokens:
        banned.update(request.stop_token_ids)
    allowed = sampling.allowed_token_ids
    num_possible = vocab_size - len(banned) if allowed is None else len(set(allowed) - banned)
    if num_possible == 0:
        raise ValueError(
            "every token is banned by allowed_token_ids, forbidden_token_ids, logit_bias and min_new_tokens together; "
            "at least one must stay possible. Allow one more token."
        )


def _require_integer(name: str, value: int, smallest: int, remedy: str) -> None:
    if not isinstance(value, int) or value < smallest:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {smallest}. {remedy}")


def _require_ids(name: str, token_ids: Sequence[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if not (isinstance(token_id, int) and 0 <= token_id < vocab_size):
            raise ValueError(
                f"{name} contains {token_id!r}; token ids are integers in [0, {vocab_size}). "
                "Encode with the target's tokenizer."
            )
