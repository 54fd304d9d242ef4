"""llama-cpp-python in this process: a `Llama` with a draft model, as its users have it, and one without as the control."""

import random
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verify.engines.llama_cpp.mapping import biases, divides, generate_arguments
from verify.engines.rounds import record_of_rounds

F32 = 0  # the type's number in ggml
CAPABILITIES = {
    "greedy": True,
    "sampled": True,
    "top_k": True,
    "top_p": True,
    "min_p": True,
    "presence_penalty": True,
    "frequency_penalty": True,
    "logit_bias": True,
    "forbidden_tokens": True,
    "allowed_tokens": True,
    "min_new_tokens": True,
    "stop_tokens": True,
    "seeds": True,
    "seeds_per_request": True,
    "zero_draft_tokens": True,
    "record": True,
    "logprobs": "raw",
}


class Bindings:
    """Methods `draft_model` (greedy drafts of a second `Llama`) and `prompt_lookup` (the library's own)."""

    concurrency = (1,)
    same_seed_same_output = True  # one draw of the target's sampler an emitted token, with drafts and without

    def __init__(
        self, *, target: Path, draft: Path | None, method: str, context: int, threads: int, ngram: int
    ) -> None:
        self._library: Any = import_module("llama_cpp")
        settings = {"context": context, "threads": threads}
        if method == "prompt_lookup":
            speculative = import_module("llama_cpp.llama_speculative")
            self._drafts = Drafts(speculative.LlamaPromptLookupDecoding(max_ngram_size=ngram, num_pred_tokens=0))
        elif draft is not None:
            self._drafts = Drafts(ModelDrafts(_opened(draft, **settings)))
        else:
            raise ValueError("method=draft_model without a draft; give --draft, or method=prompt_lookup")
        self._with_drafts = _opened(target, **settings, draft_model=self._drafts)
        self._plain = _opened(target, **settings, logits_all=True)  # as a draft model has it; log-probabilities need it
        self.name = f"llama-cpp-python {self._library.__version__}, {method.replace('_', ' ')}"
        self.capabilities: dict[str, Any] = CAPABILITIES | {"draft_model": method == "draft_model"}

    def answer(
        self, requests: Sequence[Mapping[str, Any]], *, speculative: bool, concurrency: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """One after the other; the library has no batches."""
        for index, request in enumerate(requests):
            self._drafts.start(num_draft_tokens=request["num_draft_tokens"] if speculative else 0)
            token_ids, logprobs = self._generate(self._with_drafts if speculative else self._plain, request)
            stopped = bool(token_ids) and token_ids[-1] in request["stop_token_ids"]
            answer: dict[str, Any] = {"token_ids": token_ids, "finish_reason": "stop" if stopped else "length"}
            if request["logprobs"]:
                answer["logprobs"] = logprobs
            if speculative:
                answer["record"] = self._drafts.record([*request["prompt_token_ids"], *token_ids])
            yield index, answer

    def _generate(self, llama: Any, request: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        llama.set_seed(random.randrange(2**32 - 1) if request["seed"] is None else request["seed"] % (2**32 - 1))
        processors = self._processors(request, vocab_size=llama.n_vocab())
        tokens = llama.generate(
            list(request["prompt_token_ids"]),
            **generate_arguments(request["sampling"]),
            logits_processor=self._library.LogitsProcessorList(processors) if processors else None,
        )
        emitted: list[int] = []
        logprobs: list[float] = []
        for token in tokens:
            if request["logprobs"]:  # of the row before the token, as `create_completion(logprobs=...)` has it
                row = llama.scores[len(request["prompt_token_ids"]) + len(emitted) - 1]
                logprobs.append(float(llama.logits_to_logprobs(row)[token]))
            emitted.append(int(token))
            if emitted[-1] in request["stop_token_ids"] or len(emitted) == request["max_new_tokens"]:
                break
        tokens.close()
        return emitted, logprobs

    def _processors(self, request: Mapping[str, Any], *, vocab_size: int) -> list[Any]:
        sampling = request["sampling"]
        processors: list[Any] = []
        if added := biases(sampling, vocab_size=vocab_size):
            processors.append(Bias(added, vocab_size=vocab_size))
        if request["min_new_tokens"]:
            least = self._library.llama.MinTokensLogitsProcessor  # the library's own, one a stop token
            processors += [least(request["min_new_tokens"], token) for token in request["stop_token_ids"]]
        if divides(sampling):
            processors.append(lambda _ids, scores: scores / np.float32(sampling["temperature"]))
        return processors


class Bias:
    """Adds to the logits, as the library's `create_completion(logit_bias=...)` does; a callable of its protocol."""

    def __init__(self, added: Mapping[int, float | bool], *, vocab_size: int) -> None:
        self._bias = np.zeros(vocab_size, np.float32)
        for token, value in added.items():
            self._bias[token] = -np.inf if value is False else value

    def __call__(self, _input_ids: NDArray[np.intc], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores of the next token, biased."""
        return scores + self._bias


class ModelDrafts:
    """A `LlamaDraftModel` by shape: the most probable continuation under a second model."""

    num_pred_tokens = 0

    def __init__(self, llama: Any) -> None:
        self._llama = llama

    def __call__(self, input_ids: NDArray[np.intc], /, **_: Any) -> NDArray[np.intc]:
        """The next `num_pred_tokens` tokens."""
        drafted: list[int] = []
        for token in self._llama.generate(input_ids.tolist(), temp=0.0):
            drafted.append(token)
            if len(drafted) == self.num_pred_tokens:
                break
        return np.array(drafted, np.intc)


class Drafts:
    """Passes on what a draft model drafts, at most as many tokens as the request wants, and remembers it.

    The library does not say what it accepted. It keeps the drafts that its own tokens repeat, so that the counts follow from
    drafts and output.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._limit = 0
        self._made: list[tuple[int, list[int]]] = []

    def start(self, *, num_draft_tokens: int) -> None:
        """Forget the last request."""
        self._limit = num_draft_tokens
        self._model.num_pred_tokens = num_draft_tokens
        self._made = []

    def __call__(self, input_ids: NDArray[np.intc], /, **_: Any) -> NDArray[np.intc]:
        """Drafts after the ids, the last of which is emitted and not yet in the target's cache."""
        drafted: NDArray[np.intc] = self._model(input_ids) if self._limit else np.array([], np.intc)
        self._made.append((len(input_ids), drafted.tolist()))
        return drafted

    def record(self, sequence: Sequence[int]) -> dict[str, Any]:
        """Counts of the request that ended with this prompt and output; the prefill is a round without drafts."""
        drafted, accepted = [0], [0]
        for start, tokens in self._made:
            following = sequence[start : start + len(tokens)]
            matches = [token == emitted for token, emitted in zip(tokens, following, strict=False)]
            drafted.append(len(tokens))
            accepted.append(matches.index(False) if False in matches else len(matches))
        return record_of_rounds(drafted=drafted, accepted=accepted)


def _opened(file: Path, *, context: int, threads: int, **more: Any) -> Any:
    return import_module("llama_cpp").Llama(
        str(file),
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        type_k=F32,
        type_v=F32,
        flash_attn=False,
        last_n_tokens_size=context,
        verbose=False,
        **more,
    )
