"""A decoder in a race, and plain decoding of the target, which any other has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig

from verify.protocol import Capabilities, Decoder, Generation, ModelPair, Request

PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A decoder with its name in the report and the number of drafts a round that it is asked for."""

    name: str
    decoder: Decoder
    num_draft_tokens: int

    @property
    def claims(self) -> Capabilities:
        """What it claims."""
        return Capabilities.of(self.decoder.capabilities)

    def decode(self, requests: Sequence[Request], *, concurrency: int) -> list[Generation]:
        """Answer the requests, `concurrency` at once; one after the other where it claims no batches.

        Raises ValueError where an answer is not as long as was asked: its time would be for other work.
        """
        asked = [self.asks(request) for request in requests]
        width = concurrency if self.claims.batch else 1
        answers: list[Generation] = []
        for start in range(0, len(asked), width):
            answers.extend(self.decoder.generate(asked[start : start + width]))
        for request, answer in zip(asked, answers, strict=True):
            if len(answer.token_ids) != request.max_new_tokens:
                raise ValueError(
                    f"{self.name} emitted {len(answer.token_ids)} tokens where {request.max_new_tokens} were asked for; equal "
                    "work is needed to compare times. Judge it first: `pytest verify/`."
                )
        return answers

    def asks(self, request: Request) -> Request:
        """The request with this contestant's number of drafts."""
        return replace(request, num_draft_tokens=self.num_draft_tokens)


class PlainGeneration:
    """transformers' `generate` without an assistant, in one batch; the prompts of a batch must be equally long."""

    def __init__(self, models: ModelPair) -> None:
        self.models = models
        self.capabilities = Capabilities(greedy=True, sampled=True, batch=True, zero_draft_tokens=True)

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answer the requests as one batch under the settings of the first."""
        lengths = {len(request.prompt_token_ids) for request in requests}
        if len(lengths) > 1:
            raise ValueError(f"prompts of {sorted(lengths)} tokens; a plain batch has one length. Cut the prompts.")
        request = requests[0]
        prompts = torch.tensor([each.prompt_token_ids for each in requests], device=self.models.device)  # [B, T]
        sampled: dict[str, Any] = {"temperature": request.sampling.temperature, "top_k": 0}
        config = GenerationConfig(
            do_sample=not request.sampling.greedy,
            max_new_tokens=request.max_new_tokens,
            eos_token_id=None,
            pad_token_id=0,
            **({} if request.sampling.greedy else sampled),
        )
        target: Any = self.models.target
        target.generation_config.eos_token_id = None
        sequences = target.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config)
        outputs: list[list[int]] = sequences[:, prompts.shape[1] :].tolist()
        return [Generation(token_ids=token_ids, finish_reason="length") for token_ids in outputs]


def plain_of(contestant: Contestant) -> Contestant | None:
    """The same decoder without drafts, where it claims that."""
    if not contestant.claims.zero_draft_tokens:
        return None
    return Contestant(name=f"{PLAIN} ({contestant.name})", decoder=contestant.decoder, num_draft_tokens=0)
