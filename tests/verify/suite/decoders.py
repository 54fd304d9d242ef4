"""Adapters that break the contract, each in one way."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from verify.instrument import CORRECT, InstrumentDecoder
from verify.protocol import Capabilities, Generation, ModelPair, Request

CLAIMS = Capabilities(greedy=True, sampled=True, stop_tokens=True, draft_model=True, arithmetic="float64")


class Broken(InstrumentDecoder):
    """A correct decoder whose answers are spoiled by `spoil`."""

    def __init__(self, models: ModelPair, *, capabilities: Capabilities = CLAIMS) -> None:
        super().__init__(models, CORRECT["standard"])
        self.capabilities = capabilities
        self.vocab_size = models.vocab_size

    def spoil(self, request: Request, generation: Generation) -> Any:
        return generation

    def generate(self, requests: Sequence[Request]) -> Any:
        return [self.spoil(request, each) for request, each in zip(requests, super().generate(requests), strict=True)]


class Raises(Broken):
    def spoil(self, request: Request, generation: Generation) -> Any:
        raise RuntimeError("out of coffee")


class TooFew(Broken):
    def spoil(self, request: Request, generation: Generation) -> Any:
        return replace(generation, token_ids=list(generation.token_ids)[:-1])


class TooMany(Broken):
    def spoil(self, request: Request, generation: Generation) -> Any:
        return replace(generation, token_ids=[*generation.token_ids, 0])


class Foreign(Broken):
    def spoil(self, request: Request, generation: Generation) -> Any:
        return replace(generation, token_ids=[*list(generation.token_ids)[:-1], self.vocab_size])


class OneAnswerShort(Broken):
    def generate(self, requests: Sequence[Request]) -> Any:
        return super().generate(requests)[:-1]


class NotASequence(Broken):
    def generate(self, requests: Sequence[Request]) -> Iterator[Any]:  # type: ignore[override]
        yield from super().generate(requests)


def claims_logprobs(models: ModelPair) -> Broken:
    return Broken(models, capabilities=replace(CLAIMS, logprobs="processed"))


def claims_record(models: ModelPair) -> Broken:
    return Broken(models, capabilities=replace(CLAIMS, record=True))


def claims_streaming(models: ModelPair) -> Broken:
    return Broken(models, capabilities=replace(CLAIMS, streaming=True))


def rounds_the_target(models: ModelPair) -> Broken:
    with torch.no_grad():
        for weights in (*models.target.parameters(), *models.target.buffers()):
            weights.copy_(weights.to(torch.bfloat16))
    return Broken(models)


def claims_nothing(models: ModelPair) -> Broken:
    return Broken(models, capabilities=Capabilities())


def no_claims(models: ModelPair) -> Any:
    return object()


def unknown_claim(models: ModelPair) -> Any:
    decoder = Broken(models)
    decoder.capabilities = {"greedy": True, "topk": True}  # type: ignore[assignment]
    return decoder


def cannot_be_built(models: ModelPair) -> Any:
    raise OSError("no kernel image is available")


class IgnoresTopK(Broken):
    """Does not claim top_k, and silently leaves it out instead of raising."""

    def generate(self, requests: Sequence[Request]) -> Any:
        return super().generate([replace(each, sampling=replace(each.sampling, top_k=0)) for each in requests])
