"""vLLM in process, as a worker: two engines over one target.

Standard library and vLLM only. Options: `method` (draft_model, ngram, or any that the build knows), `drafts` (greedy,
probabilistic), `k`, `logprobs` (raw, processed), `speculative` (more of vLLM's speculative_config, as JSON); every other option
is a keyword argument of vLLM's `LLM`, as JSON.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from verify.engines.options import choice, count, from_json

KV_CACHE_GIB = 1  # of each of the two engines; vLLM would take half of the machine
MOST_REQUESTS = 16
OWN_OPTIONS = ("method", "drafts", "k", "logprobs", "speculative")
DRAFTS = ("greedy", "probabilistic")
LOGPROBS = ("raw", "processed")


def open_engine(
    *, target: str, draft: str | None, options: Mapping[str, str], device: str, dtype: str, folder: str
) -> "Engine":
    """Open vLLM; ValueError names an option that cannot be."""
    if device != "cpu":
        raise ValueError(f"device {device!r}; this environment holds vLLM's CPU build: give --device cpu")
    speculation = speculative_config(draft, options)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(KV_CACHE_GIB))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # bound threads wait for cores that others use
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # numba (ngram) resizes the pool that the operators share
    os.environ.setdefault(
        "TORCHDYNAMO_DISABLE", "1"
    )  # what is still compiled in eager mode takes longer than a campaign
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process: a failure has its traceback in the log
    above = str(Path(__file__).parents[1])  # its `vllm` is this folder
    sys.path[:] = [entry for entry in sys.path if entry != above]
    vllm = import_module("vllm")
    vocab_size = int(json.loads((Path(target) / "config.json").read_text())["vocab_size"])
    arguments = llm_arguments(options) | {"model": target, "dtype": dtype}

    def start(speculative: bool) -> Any:
        extra = (
            {"speculative_config": speculation, "per_request_spec_decode_metrics": "detailed"} if speculative else {}
        )
        return vllm.LLM(**arguments, **extra).llm_engine

    return Engine(
        start=start,
        sampling_params=vllm.SamplingParams,
        final_only=vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        vocab_size=vocab_size,
        options=options,
        version=version("vllm-cpu"),
    )


class Engine:
    """Keeps up to `concurrency` requests in the engine, and puts in the next as soon as one ends."""

    def __init__(
        self,
        *,
        start: Callable[[bool], Any],
        sampling_params: Callable[..., Any],
        final_only: Any,
        vocab_size: int,
        options: Mapping[str, str],
        version: str,
    ) -> None:
        self._sampling_params = sampling_params
        self._final_only = final_only
        self._vocab_size = vocab_size
        self._num_asked = 0
        # The plain one first: each start walks over all modules, and fails on llvmlite's, which ngram imports (0.32).
        self._engines = {speculative: start(speculative) for speculative in (False, True)}
        self.name = engine_name(options, version)
        self.capabilities = capabilities(options)
        self.concurrency = [1, 4, MOST_REQUESTS]
        self.same_seed_same_output = False

    def answer(
        self, requests: Sequence[Mapping[str, Any]], *, speculative: bool, concurrency: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (index, answer) in the order in which the requests end."""
        waiting = list(enumerate(requests))[::-1]
        running: dict[str, int] = {}
        engine = self._engines[speculative]
        while waiting or running:
            while waiting and len(running) < concurrency:
                index, request = waiting.pop()
                name = f"request-{self._num_asked}"
                self._num_asked += 1
                try:
                    engine.add_request(
                        name, {"prompt_token_ids": list(request["prompt_token_ids"])}, self._params(request)
                    )
                except Exception as error:  # the engine goes on with the others
                    yield index, _failure(error)
                else:
                    running[name] = index
            try:
                outputs = engine.step() if running else ()
            except Exception as error:  # lost is what it held; vLLM answers again once that is aborted
                traceback.print_exc()
                engine.abort_request(list(running))
                yield from ((index, _failure(error)) for index in running.values())
                running.clear()
                continue
            for output in outputs:
                if output.finished:
                    yield running.pop(output.request_id), answer_of(output.outputs[0])

    def _params(self, request: Mapping[str, Any]) -> Any:
        return self._sampling_params(**sampling_arguments(request, self._vocab_size), output_kind=self._final_only)


def speculative_config(draft: str | None, options: Mapping[str, str]) -> dict[str, Any]:
    """vLLM's speculative_config."""
    method = options.get("method", "draft_model")
    drafts = choice(options, "drafts", DRAFTS)
    config: dict[str, Any] = {"method": method, "num_speculative_tokens": count(options, "k", 3)}
    if method == "ngram":
        config |= {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
    elif draft is None:
        raise ValueError(f"--engine method={method} without a draft; give --draft DIR")
    else:
        config |= {"model": draft, "draft_sample_method": drafts}
    more: dict[str, Any] = from_json(options, "speculative", "{}")
    return config | more


def llm_arguments(options: Mapping[str, str]) -> dict[str, Any]:
    """Keyword arguments of vLLM's `LLM` that both engines get."""
    arguments: dict[str, Any] = {
        "enforce_eager": True,
        "max_num_seqs": MOST_REQUESTS,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # the checkpoint's would add its end token to every request's stop tokens
        "logprobs_mode": f"{choice(options, 'logprobs', LOGPROBS)}_logprobs",
    }
    for name in options:
        if name not in OWN_OPTIONS:
            arguments[name] = from_json(options, name)
    return arguments


def engine_name(options: Mapping[str, str], version: str) -> str:
    """The same in every run with these options."""
    method = options.get("method", "draft_model")
    drafts = "" if method == "ngram" else f", {options.get('drafts', DRAFTS[0])} drafts"
    return f"vLLM {version} CPU build, {method}{drafts}"


def capabilities(options: Mapping[str, str]) -> dict[str, Any]:
    """What is claimed: vLLM refuses min_p and logit_bias with speculation."""
    with_draft = options.get("method", "draft_model") == "draft_model"
    claimed = (
        "greedy", "sampled", "top_k", "top_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "forbidden_tokens", "allowed_tokens", "min_new_tokens", "stop_tokens", "batch", "mixed_sampling", "seeds",
        "seeds_per_request", "record",
    )  # fmt: skip
    return {
        **dict.fromkeys(claimed, True),
        "draft_model": with_draft,
        "standard_acceptance": with_draft and options.get("drafts") == "probabilistic",
        "logprobs": choice(options, "logprobs", LOGPROBS),
        "arithmetic": "float32",
    }


def sampling_arguments(request: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """A request as keyword arguments of vLLM's SamplingParams; forbidden tokens become the allowed rest."""
    sampling = request["sampling"]
    allowed = sampling["allowed_token_ids"]
    forbidden = set(sampling["forbidden_token_ids"])
    if forbidden:
        allowed = [token for token in (range(vocab_size) if allowed is None else allowed) if token not in forbidden]
    arguments: dict[str, Any] = {
        "max_tokens": request["max_new_tokens"],
        "min_tokens": request["min_new_tokens"],
        "stop_token_ids": list(request["stop_token_ids"]),
        "ignore_eos": True,
        "detokenize": False,
        "seed": request["seed"],
        "logprobs": 0 if request["logprobs"] else None,
        "logit_bias": {int(token): bias for token, bias in sampling["logit_bias"].items()} or None,
        "allowed_token_ids": None if allowed is None else list(allowed),
    }
    same = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    return arguments | {name: sampling[name] for name in same}


def answer_of(output: Any) -> dict[str, Any]:
    """A CompletionOutput of vLLM as the worker's answer."""
    token_ids = list(output.token_ids)
    answer: dict[str, Any] = {"token_ids": token_ids, "finish_reason": output.finish_reason}
    if output.logprobs is not None:
        answer["logprobs"] = [row[token].logprob for row, token in zip(output.logprobs, token_ids, strict=True)]
    if output.spec_decode_metrics is not None:
        metrics = output.spec_decode_metrics
        answer["record"] = record_of(
            num_tokens=len(token_ids),
            num_spec_tokens=metrics.num_spec_tokens,
            num_draft_tokens=metrics.num_draft_tokens,
            per_step_drafted=metrics.per_step_drafted,
            per_step_accepted=metrics.per_step_accepted,
        )
    return answer


def record_of(
    *,
    num_tokens: int,
    num_spec_tokens: int,
    num_draft_tokens: int,
    per_step_drafted: Sequence[int],
    per_step_accepted: Sequence[int],
) -> dict[str, Any]:
    """What vLLM's RequestSpecDecodeMetrics counts, as an acceptance record of an output of `num_tokens`.

    vLLM counts the drafts that it accepted, a record those that it emitted too: the last round's are fewer where a limit or a
    stop token cut it. Steps that found nothing to draft (ngram) are none of vLLM's, and rounds without drafts here; where they
    stood is not known.
    """
    accepted = list(per_step_accepted)
    if accepted:
        cut = 1 + sum(accepted) + len(accepted) - num_tokens  # the first token came from prefill
        accepted[-1] -= max(0, cut - 1)  # the bonus or recovered token goes first
    without_drafts = max(0, num_tokens - 1 - sum(accepted) - len(accepted))
    histogram = [accepted.count(count) for count in range(num_spec_tokens + 1)]
    histogram[0] += without_drafts
    return {
        "num_spec_steps": len(accepted) + without_drafts,
        "num_draft_tokens": num_draft_tokens,
        "num_accepted_draft_tokens": sum(accepted),
        "acceptance_histogram": histogram,
        "drafted_per_step": None if without_drafts else list(per_step_drafted),
        "accepted_per_step": None if without_drafts else accepted,
    }


def _failure(error: Exception) -> dict[str, Any]:
    return {"failure": f"{type(error).__name__}: {error}"}
