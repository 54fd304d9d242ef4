"""Hugging Face transformers' assisted generation: an assistant model in every schedule it has, or prompt lookup."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

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
    """`target.generate` with the settings that `speculation` gives for a number of draft tokens.

    `target` and `draft` are modules that the pair's models are called through, where a mode needs another shape of them.
    """

    def __init__(
        self,
        models: ModelPair,
        *,
        speculation: Callable[[int], dict[str, Any]],
        capabilities: Capabilities,
        target: PreTrainedModel | None = None,
        draft: PreTrainedModel | None = None,
    ) -> None:
        self.models = models
        self.target = target or models.target
        # `generate` falls back on the checkpoint's own end of text; only the request's stop tokens may stop.
        for model in (self.target, draft or models.draft):
            model.generation_config.eos_token_id = None
            model.generation_config.pad_token_id = None
        self.speculation = speculation
        self.capabilities = capabilities

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """One `generate` call per request; what a seed does to torch's generators ends with its request."""
        answers = []
        for request in requests:
            with torch.random.fork_rng(enabled=request.seed is not None):
                answers.append(self._generate_one(request))
        return answers

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
        drafting = self.speculation(request.num_draft_tokens) if request.num_draft_tokens else {}
        result = self.target.generate(  # type: ignore[operator]
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=config,
            prefix_allowed_tokens_fn=None if allowed is None else lambda batch, prefix: list(allowed),
            **drafting,
        )
        token_ids = result.sequences[0, prompt.shape[1] :].tolist()
        logprobs = None
        if request.logprobs:
            rows = torch.cat(result.scores).log_softmax(-1)  # [N, V]
            logprobs = rows[torch.arange(len(token_ids)), token_ids].tolist()
        stopped = token_ids[-1] in request.stop_token_ids
        return Generation(token_ids=token_ids, finish_reason="stop" if stopped else "length", logprobs=logprobs)


def constant_schedule(model: PreTrainedModel, num_draft_tokens: int) -> None:
    """Draft that many tokens in every round, however sure the assistant is."""
    model.generation_config.num_assistant_tokens = num_draft_tokens
    model.generation_config.num_assistant_tokens_schedule = "constant"
    model.generation_config.assistant_confidence_threshold = 0.0


def make_decoder(models: ModelPair) -> AssistedGeneration:
    """Assisted generation with the pair's draft as the assistant."""
    return AssistedGeneration(
        models,
        speculation=lambda count: _assistant(models, count),
        capabilities=replace(CLAIMS, draft_model=True, standard_acceptance=True),
    )


def make_prompt_lookup_decoder(models: ModelPair) -> AssistedGeneration:
    """Assisted generation with drafts looked up in the prompt."""
    return AssistedGeneration(
        models, speculation=lambda count: {"prompt_lookup_num_tokens": count}, capabilities=CLAIMS
    )


def make_heuristic_decoder(models: ModelPair) -> AssistedGeneration:
    """The assistant drafts two tokens more after a round in which all were accepted, else one less, within a call."""

    def speculation(count: int) -> dict[str, Any]:
        drafting = _assistant(models, count)
        models.draft.generation_config.num_assistant_tokens_schedule = "heuristic_transient"
        return drafting

    return AssistedGeneration(
        models, speculation=speculation, capabilities=replace(CLAIMS, draft_model=True, standard_acceptance=True)
    )


def make_threshold_decoder(models: ModelPair) -> AssistedGeneration:
    """The assistant stops drafting after a token that it gave less than 0.4, transformers' own default."""

    def speculation(count: int) -> dict[str, Any]:
        drafting = _assistant(models, count)
        models.draft.generation_config.assistant_confidence_threshold = 0.4
        return drafting

    return AssistedGeneration(
        models,
        speculation=speculation,
        capabilities=replace(CLAIMS, draft_model=True, standard_acceptance=True, scheduled=True),
    )


def make_ensemble_decoder(models: ModelPair) -> AssistedGeneration:
    """Verification against the mean of target and draft: lossy by design, so the suite has to fail it."""
    return AssistedGeneration(
        models,
        speculation=lambda count: {**_assistant(models, count), "assistant_ensemble_weight": 0.5},
        capabilities=replace(CLAIMS, draft_model=True),
    )


def _assistant(models: ModelPair, num_draft_tokens: int) -> dict[str, Any]:
    constant_schedule(models.draft, num_draft_tokens)
    return {"assistant_model": models.draft}
