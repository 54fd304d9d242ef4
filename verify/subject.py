"""The decoder under test on one pair of models: claims, validated generations, observed rounds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verify.intake import Malformed, admit
from verify.judge import ContractViolation, Judge, NotApplicable
from verify.models.observer import Round, Trace, observed
from verify.models.reference import Reference
from verify.protocol import Capabilities, Generation, ModelPair, Request, SamplingParams

MakeDecoder = Callable[[ModelPair], Any]


@dataclass(frozen=True, slots=True)
class Observed:
    """One request's answer, with the rounds seen from the target (None where they could not be reconstructed).

    `num_tree_forwards` counts the target's forwards where drafts branch, and rounds are therefore not reconstructed.
    """

    request: Request
    generation: Generation
    rounds: list[Round] | None
    num_tree_forwards: int = 0


class Subject:
    """A decoder built for one pair; every call goes through the intake and the log."""

    def __init__(self, judge: Judge, models: ModelPair, *, make_decoder: MakeDecoder | None = None) -> None:
        self.judge = judge
        self.models = models
        try:
            self.decoder: Any = (make_decoder or judge.make_decoder)(models)
        except Exception as error:
            raise ContractViolation(
                f"make_decoder raised {type(error).__name__} on the pair {models.name}: {error}"
            ) from error
        try:
            self.capabilities = Capabilities.of(self.decoder.capabilities)
        except (AttributeError, TypeError, ValueError) as error:
            raise ContractViolation(f"the decoder's capabilities cannot be read: {error}") from error
        self.reference = Reference(models.target)
        self.draft_reference = Reference(models.draft)

    def require(self, *claims: str) -> None:
        """Raise `NotApplicable` unless all claims are made."""
        missing = [claim for claim in claims if not getattr(self.capabilities, claim)]
        if missing:
            raise NotApplicable(f"not claimed: {', '.join(missing)}")

    def require_for(self, request: Request) -> None:
        """Raise `NotApplicable` unless everything that the request needs is claimed."""
        self.require(*claims_needed(request))

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answers, validated and logged; a decoder that raises or breaks the protocol is a contract violation."""
        try:
            answers = self.decoder.generate(requests)
        except Exception as error:
            raise ContractViolation(
                f"generate raised {type(error).__name__} on a request that needs only claimed features: {error}",
                details={"requests": [describe(request) for request in requests]},
            ) from error
        try:
            generations = admit(requests, answers, vocab_size=self.models.vocab_size)
        except Malformed as error:
            raise ContractViolation(
                str(error), details={"requests": [describe(request) for request in requests]}
            ) from error
        for request, generation in zip(requests, generations, strict=True):
            self.judge.log_generation(request=request, generation=generation, models_name=self.models.name)
        return generations

    def generate_each(self, requests: Sequence[Request]) -> list[Observed]:
        """One call per request, observed from the target."""
        return [self.generate_one(request) for request in requests]

    def generate_one(self, request: Request) -> Observed:
        """One request alone, observed from the target."""
        with observed(self.models.target) as trace:
            (generation,) = self.generate([request])
        num_tree_forwards = len(trace.calls) if any(call.branches for call in trace.calls) else 0
        return Observed(request, generation, rounds_of(trace, request, generation), num_tree_forwards)


def rounds_of(trace: Trace, request: Request, generation: Generation) -> list[Round] | None:
    """Rounds as the target saw them."""
    return trace.rounds(len(request.prompt_token_ids), len(generation.token_ids))


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


def describe(request: Request) -> dict[str, Any]:
    """A request as JSON-ready data: only what differs from the defaults."""
    neutral = SamplingParams()
    described: dict[str, Any] = {
        "prompt_token_ids": list(request.prompt_token_ids[:64]),
        "max_new_tokens": request.max_new_tokens,
        "num_draft_tokens": request.num_draft_tokens,
    }
    for name in ("min_new_tokens", "stop_token_ids", "seed"):
        value = getattr(request, name)
        if value or name == "seed":
            described[name] = list(value) if isinstance(value, tuple) else value
    sampling = {
        name: _plain(value)
        for name in SamplingParams.__slots__
        if (value := getattr(request.sampling, name)) != getattr(neutral, name)
    }
    return described | ({"sampling": sampling} if sampling else {})


def _plain(value: Any) -> Any:
    """A setting as JSON-ready data; a grammar as its text."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, int | float) else repr(value)
