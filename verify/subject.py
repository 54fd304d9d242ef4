"""The decoder under test on one pair of models: claims, validated generations, observed rounds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb, format_exception
from typing import Any

import torch
from torch import nn

from verify.intake import Malformed, admit
from verify.judge import ContractViolation, Judge, NotApplicable
from verify.models.observer import Round, Trace, observed
from verify.models.reference import Reference
from verify.protocol import Capabilities, Generation, ModelPair, Request, SamplingParams, claims_needed

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
        weights = _fingerprint(models.target)
        try:
            self.decoder: Any = (make_decoder or judge.make_decoder)(models)
        except ContractViolation:
            raise
        except Exception as error:
            raise ContractViolation(
                f"make_decoder raised {type(error).__name__} on the pair {models.name}: {error} ({_place(error)})",
                details={"traceback": format_exception(error)},
            ) from error
        if _fingerprint(models.target) != weights:
            raise ContractViolation(
                f"make_decoder changed the weights of the target that it was given ({models.name}): the target is what the "
                "output is judged by; change a copy"
            )
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
                f"generate raised {type(error).__name__} on a request that needs only claimed features: {error} "
                f"({_place(error)})",
                details={
                    "requests": [describe(request) for request in requests],
                    "traceback": format_exception(error),
                },
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

    def generate_together(self, requests: Sequence[Request]) -> list[Observed]:
        """One call for all; rounds of a batch are not seen from the target."""
        generations = self.generate(requests)
        return [Observed(request, one, None) for request, one in zip(requests, generations, strict=True)]

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
    text = (*request.prompt_token_ids, *generation.token_ids)
    return trace.rounds(len(request.prompt_token_ids), len(generation.token_ids), text=text)


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


def _fingerprint(model: nn.Module) -> list[str]:
    """What differs where weights differ: their types, and sums over all of them and over some."""
    weights = [*model.parameters(), *model.buffers()]
    if not weights:
        return []
    sums = [each.detach().flatten()[::stride].sum(dtype=torch.float64) for each in weights for stride in (1, 7)]
    return [*(str(each.dtype) for each in weights), *map(repr, torch.stack(sums).tolist())]


def _place(error: Exception) -> str:
    """File and line where an error was raised."""
    frame = extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _plain(value: Any) -> Any:
    """A setting as JSON-ready data; a grammar as its text."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, int | float) else repr(value)
