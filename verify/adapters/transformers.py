"""Hugging Face transformers' assisted generation: an assistant model, or prompt lookup."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig

from verify.protocol import Capabilities, Generation, ModelPair, Request

# presence and frequency penalties are not options of `generate`; batches are refused by assisted generation.
CLAIMS = Capabilities(
    greedy=True,
    sampled=True,
    top_k=True,
    top_p=True,
    min_p=True,
    repetition_penalty=True,
    logit_bias=True,
    forbidden_tokens=True,
    allowed_tokens=True,
    min_new_tokens=True,
    stop_tokens=True,
    seeds=True,
    zero_draft_tokens=True,
    logprobs="processed",
    arithmetic="float32",
)


class AssistedGeneration:
    """`target.generate(..., assistant_model=draft)`, or `prompt_lookup_num_tokens` where `prompt_lookup` is set."""

    def __init__(self, models: ModelPair, *, prompt_lookup: bool = False) -> None:
        self.models = models
        # `generate` falls back on the checkpoint's own end of text; only the request's stop tokens may stop.
        for model in (models.target, models.draft):
            model.generation_config.eos_token_id = None
            model.generation_config.pad_token_id = None
        self.prompt_lookup = prompt_lookup
        self.capabilities = replace(CLAIMS, draft_model=not prompt_lookup, standard_acceptance=not prompt_lookup)

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """One `generate` call per request."""
        return [self._generate_one(request) for request in requests]

    def _generate_one(self, request: Request) -> Generation:
        sampling = request.sampling
        if sampling.presence_penalty or sampling.frequency_penalty:
            raise NotImplementedError("transformers' generate has no presence or frequency penalty")
        if sampling.grammar is not None:
            raise NotImplementedError("this adapter hands no grammar to transformers")
        if request.seed is not None:
            torch.manual_seed(request.seed)
        prompt = torch.tensor([request.prompt_token_ids], device=self.models.device)  # [1, T]
        options: dict[str, Any] = {}
        if not sampling.greedy:
            options |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
            options |= {"min_p": sampling.min_p} if sampling.min_p else {}
        config = GenerationConfig(
            do_sample=not sampling.greedy,
            max_new_tokens=request.max_new_tokens,
            min_new_tokens=request.min_new_tokens or None,
            repetition_penalty=sampling.repetition_penalty,
            sequence_bias={(token_id,): float(bias) for token_id, bias in sampling.logit_bias.items()} or None,
            suppress_tokens=list(sampling.forbidden_token_ids) or None,
            eos_token_id=list(request.stop_token_ids) or None,
            return_dict_in_generate=True,
            output_scores=request.logprobs,
            **options,
        )
        allowed = sampling.allowed_token_ids
        result = self.models.target.generate(  # type: ignore[operator]
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=config,
            prefix_allowed_tokens_fn=None if allowed is None else lambda batch, prefix: list(allowed),
            **self._speculation(request.num_draft_tokens),
        )
        token_ids = result.sequences[0, prompt.shape[1] :].tolist()
        logprobs = None
        if request.logprobs:
            rows = torch.cat(result.scores).log_softmax(-1)  # [N, V]
            logprobs = rows[torch.arange(len(token_ids)), token_ids].tolist()
        stopped = token_ids[-1] in request.stop_token_ids
        return Generation(token_ids=token_ids, finish_reason="stop" if stopped else "length", logprobs=logprobs)

    def _speculation(self, num_draft_tokens: int) -> dict[str, Any]:
        if num_draft_tokens == 0:
            return {}
        if self.prompt_lookup:
            return {"prompt_lookup_num_tokens": num_draft_tokens}
        draft = self.models.draft
        draft.generation_config.num_assistant_tokens = num_draft_tokens
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
        return {"assistant_model": draft}


def make_decoder(models: ModelPair) -> AssistedGeneration:
    """Assisted generation with the pair's draft as the assistant."""
    return AssistedGeneration(models)


def make_prompt_lookup_decoder(models: ModelPair) -> AssistedGeneration:
    """Assisted generation with drafts looked up in the prompt."""
    return AssistedGeneration(models, prompt_lookup=True)
