"""Everything an adapter author reads: what the suite hands to a decoder and what it expects back.

An adapter is a function `make_decoder(models: ModelPair) -> Decoder`. The suite calls it once per pair of models and then
calls `generate` with one or more requests. Values travel by attribute name (structural typing): a decoder may return
its own objects as long as they carry the attributes of `Generation`.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from transformers import PreTrainedModel

Role: TypeAlias = Literal["first", "accepted", "recovered", "bonus"]
FinishReason: TypeAlias = Literal["stop", "length"]


class Grammar(Protocol):
    """Which outputs are possible: an automaton over token ids, in `initial_state` before the first token of the output.

    In a state the tokens `allowed(state)` are possible and, where `is_final(state)`, the request's stop tokens too. A stop token
    ends the output, so no state follows it. The states are hashable.
    """

    @property
    def initial_state(self) -> Hashable:
        """The state before the output."""

    def allowed(self, state: Any) -> Sequence[int]:
        """The tokens that may come next."""

    def next_state(self, state: Any, token_id: int) -> Hashable:
        """The state after one of the allowed tokens; asked for no other."""

    def is_final(self, state: Any) -> bool:
        """Whether the output may stop here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn from the model's logits.

    Processors apply in this order, each to the result of the one before: `logit_bias`, `repetition_penalty` (over prompt
    and output: positive logits divided, negative multiplied), `presence_penalty` and `frequency_penalty` (over the
    output only: subtracted once, and once per occurrence), forbidden and allowed tokens, `grammar` (bans what its state
    after the output so far does not allow), `min_new_tokens` of the request (bans its stop tokens), `temperature`, `top_k`
    (ties at the k-th place stay), `top_p` (smallest set of most probable tokens whose mass reaches it), `min_p` (relative to
    the most probable token). `temperature == 0` is greedy: the arg max of the processed logits, lowest id on a tie.
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

    @property
    def greedy(self) -> bool:
        """Whether decoding is deterministic."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt with its settings.

    The decoder stops after the first of `stop_token_ids` that it emits (that token is the last of the output) or after
    `max_new_tokens` tokens; nothing else stops it. `num_draft_tokens` is the number of tokens to draft per round; fewer may
    be drafted. `seed` None: fresh randomness, whatever seeds were asked for before.
    """

    prompt_token_ids: tuple[int, ...]
    max_new_tokens: int
    min_new_tokens: int = 0
    num_draft_tokens: int = 3
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    logprobs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceRecord:
    """What a decoder says it accepted; names as in vLLM's per-request metrics.

    `acceptance_histogram[k]` is the number of rounds (target forwards that verified a block) in which exactly k draft
    tokens were accepted *and emitted*. `drafted_per_step` and `accepted_per_step`, one entry a round, are optional. Each round
    emits its accepted tokens and one more, unless a limit or a stop token cuts it; a first token from prefill may be left out.
    """

    num_spec_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    acceptance_histogram: Sequence[int]
    drafted_per_step: Sequence[int] | None = None
    accepted_per_step: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The answer to one request; only the first two are required.

    `logprobs` are natural logarithms, one per emitted token; `roles` says how each token came about: `first` (from
    prefill), `accepted` (a draft token), `recovered` (drawn after a rejection), `bonus` (drawn after full acceptance).
    """

    token_ids: Sequence[int]
    finish_reason: str
    logprobs: Sequence[float] | None = None
    roles: Sequence[str] | None = None
    record: AcceptanceRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a decoder claims. Claimed and absent is a failure; not claimed is listed as not verified, and must raise.

    `logprobs` says of which law: "processed" (after every processor and the temperature, which counts as 1 in greedy
    decoding) or "raw" (of the model's own logits). `arithmetic` is the precision in which probabilities are computed
    from logits; it sets the bound of the exact-law checks. `standard_acceptance` claims accept = min(1, target/draft)
    with a draft of `ModelPair.draft`, which lets the suite compare acceptance with theory; designs with another rule are
    lossless too and leave it out. `draft_model` says that drafts come from `ModelPair.draft`. `scheduled` says that fewer
    drafts than were asked for may be verified, as confidence or load decide. `recurrent_targets` says that a target may have a
    state that cannot be cropped (linear attention, state space); its answers are then judged like any other's. `seeded_at_start`
    says that a new decoder begins with one documented seed, so that requests without a seed repeat from start to start.
    """

    greedy: bool = False
    sampled: bool = False
    top_k: bool = False
    top_p: bool = False
    min_p: bool = False
    repetition_penalty: bool = False
    presence_penalty: bool = False
    frequency_penalty: bool = False
    logit_bias: bool = False
    forbidden_tokens: bool = False
    allowed_tokens: bool = False
    grammar: bool = False
    min_new_tokens: bool = False
    stop_tokens: bool = False
    batch: bool = False
    mixed_sampling: bool = False
    seeds: bool = False
    seeds_per_request: bool = False
    seeded_at_start: bool = False
    zero_draft_tokens: bool = False
    draft_model: bool = False
    draft_vocab_mismatch: bool = False
    standard_acceptance: bool = False
    scheduled: bool = False
    recurrent_targets: bool = False
    roles: bool = False
    record: bool = False
    streaming: bool = False
    logprobs: Literal["", "raw", "processed"] = ""
    arithmetic: Literal["float64", "float32"] = "float32"

    def __post_init__(self) -> None:
        for name, valid in (("logprobs", ("", "raw", "processed")), ("arithmetic", ("float64", "float32"))):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(map(repr, valid))}.")

    @classmethod
    def of(cls, claimed: "Capabilities | Mapping[str, Any]") -> "Capabilities":
        """Accept a `Capabilities` or a mapping of claims; raise ValueError that names an unknown claim and the nearest."""
        if isinstance(claimed, cls):
            return claimed
        if not isinstance(claimed, Mapping):
            raise ValueError(
                f"capabilities is {type(claimed).__name__}; it must be verify.protocol.Capabilities or a mapping of claims"
            )
        known = [each.name for each in fields(cls)]
        for name in claimed:
            if name not in known:
                nearest = get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
                raise ValueError(f"unknown capability {name!r}{hint} Known: {', '.join(known)}")
        return cls(**claimed)

    def __str__(self) -> str:
        """The claims alone, without what is not claimed."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return ", ".join(name if value is True else f"{name} {value}" for name, value in values.items() if value)

    def refuse_unclaimed(self, request: Request) -> None:
        """Raise NotImplementedError where a request needs what is not claimed; an adapter calls it before it answers."""
        missing = self.unclaimed(request)
        if missing:
            raise NotImplementedError(f"not supported: {', '.join(missing)}")

    def unclaimed(self, request: Request) -> list[str]:
        """What a request needs and is not claimed."""
        return [name for name in claims_needed(request) if not getattr(self, name)]


def claims_needed(request: Request) -> list[str]:
    """The capabilities without which a decoder may refuse this request."""
    sampling, neutral = request.sampling, SamplingParams()
    claims = ["greedy" if sampling.greedy else "sampled"]
    names = ("top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")
    claims += [name for name in names if getattr(sampling, name) != getattr(neutral, name)]
    claims += ["forbidden_tokens"] if sampling.forbidden_token_ids else []
    claims += ["allowed_tokens"] if sampling.allowed_token_ids is not None else []
    claims += ["grammar"] if sampling.grammar is not None else []
    claims += ["min_new_tokens"] if request.min_new_tokens else []
    claims += ["stop_tokens"] if request.stop_token_ids else []
    claims += ["logprobs"] if request.logprobs else []
    claims += ["zero_draft_tokens"] if request.num_draft_tokens == 0 else []
    return claims


@dataclass(slots=True, kw_only=True)
class ModelPair:
    """The models a decoder is built from: modules that are ready on the device, and (on demand) checkpoint directories.

    `name` identifies the pair in the report. The directories are written on first use below `folder`, or are where the
    models came from.
    """

    name: str
    target: PreTrainedModel
    draft: PreTrainedModel
    vocab_size: int
    device: torch.device
    dtype: torch.dtype
    folder: Path
    tokenizer_dir: Path | None = None
    _target_dir: Path | None = None
    _draft_dir: Path | None = None

    @property
    def target_dir(self) -> Path:
        """Checkpoint directory of the target."""
        if self._target_dir is None:
            self._target_dir = self._write(self.target, "target")
        return self._target_dir

    @property
    def draft_dir(self) -> Path:
        """Checkpoint directory of the draft."""
        if self._draft_dir is None:
            self._draft_dir = self._write(self.draft, "draft")
        return self._draft_dir

    def _write(self, model: PreTrainedModel, name: str) -> Path:
        path = self.folder / self.name / name
        model.save_pretrained(path)
        return path


@runtime_checkable
class Decoder(Protocol):
    """What an adapter returns."""

    @property
    def capabilities(self) -> Capabilities | Mapping[str, Any]:
        """What this decoder claims to do."""

    def generate(self, requests: Sequence[Request]) -> Sequence[Generation]:
        """Answer all requests, in order; more than one only where `batch` is claimed."""


@runtime_checkable
class StreamingDecoder(Decoder, Protocol):
    """A decoder that claims `streaming`."""

    def stream(self, request: Request) -> Iterator[Sequence[int]]:
        """Yield the output in chunks of token ids; closing the iterator cancels the request."""
