"""OpenVINO GenAI in process, as a worker: one pipeline with speculation, one without, made when it is first asked.

Standard library and this engine's environment only. Options: `method` (draft_model, prompt_lookup), `ngram` (longest n-gram
that prompt lookup matches), `threads`; every other option is a property of the device, such as `KV_CACHE_PRECISION=u8`.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from verify.engines.options import choice, count

METHODS = ("draft_model", "prompt_lookup")
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
OWN_OPTIONS = ("method", "ngram", "threads")
CACHE_GIB = 1
MAX_NGRAM = 3
SEEDS = 2**31


def open_engine(
    *, target: str, draft: str | None, options: Mapping[str, str], device: str, dtype: str, folder: str
) -> "Engine":
    """Convert the checkpoints below `folder` and open OpenVINO; ValueError names an option that cannot be."""
    properties = device_properties(options, device=device, dtype=dtype)
    drafts = choice(options, "method", METHODS) == "draft_model"
    count(options, "ngram", MAX_NGRAM)
    if drafts and draft is None:
        raise ValueError(
            "--engine method=draft_model without a draft; give --draft DIR, or --engine method=prompt_lookup"
        )
    convert = import_module("verify.engines.openvino.conversion").converted
    converted = convert(Path(target), Path(folder) / "target")
    converted_draft = convert(Path(str(draft)), Path(folder) / "draft") if drafts else None
    return Engine(converted, converted_draft, options=options, properties=properties)


class Engine:
    """One request after the other: the rows of one batch would share their seed."""

    def __init__(
        self, target: Path, draft: Path | None, *, options: Mapping[str, str], properties: Mapping[str, Any]
    ) -> None:
        self._genai = import_module("openvino_genai")
        self._tensors = import_module("openvino")
        self._numpy = import_module("numpy")
        self._target, self._draft = str(target), draft
        self._options, self._properties = options, properties
        self._seeds = random.SystemRandom()
        try:
            self._pipelines = {True: self._start(speculative=True)}
        except RuntimeError as error:
            given = ", ".join(f"{name}={value!r}" for name, value in options.items() if name not in OWN_OPTIONS)
            if not given:
                raise
            said = str(error).strip().splitlines()[-1]  # before it, where OpenVINO threw it
            raise ValueError(
                f"--engine {given}: OpenVINO does not open with it ({said}); give properties of its CPU plugin"
            ) from error
        self.name = f"OpenVINO GenAI {version('openvino-genai')}, {choice(options, 'method', METHODS)}"
        self.capabilities = capabilities(options)
        self.concurrency = [1]
        self.same_seed_same_output = False

    def answer(
        self, requests: Sequence[Mapping[str, Any]], *, speculative: bool, concurrency: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (index, answer) in the order of the requests."""
        if speculative not in self._pipelines:
            self._pipelines[speculative] = self._start(speculative=speculative)
        for index, request in enumerate(requests):
            try:
                answer = self._answer_one(request, speculative=speculative)
            except RuntimeError as error:  # the pipeline goes on with the others
                answer = {"failure": f"{type(error).__name__}: {error}"}
            yield index, answer

    def _answer_one(self, request: Mapping[str, Any], *, speculative: bool) -> dict[str, Any]:
        settings = generation_settings(request, seed=self._seeds.randrange(SEEDS))
        if speculative:
            settings |= drafting_settings(request, self._options)
        config = self._genai.GenerationConfig()
        for name, value in settings.items():
            setattr(config, name, value)
        token_ids = self._numpy.array([request["prompt_token_ids"]], dtype=self._numpy.int64)  # [1, T]
        inputs = self._genai.TokenizedInputs(
            self._tensors.Tensor(token_ids), self._tensors.Tensor(self._numpy.ones_like(token_ids))
        )
        result = self._pipelines[speculative].generate(inputs, config)
        stopped = result.finish_reasons[0] == self._genai.GenerationFinishReason.STOP
        answer: dict[str, Any] = {"token_ids": list(result.tokens[0]), "finish_reason": "stop" if stopped else "length"}
        metrics = result.extended_perf_metrics
        if speculative and hasattr(metrics, "get_num_accepted_tokens"):
            answer["record"] = record_of(metrics)
        return answer

    def _start(self, *, speculative: bool) -> Any:
        scheduler = self._genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIB
        more: dict[str, Any] = {}
        if speculative and self._draft is not None:
            more["draft_model"] = self._genai.draft_model(str(self._draft), "CPU", **self._properties)
        elif speculative:
            more["prompt_lookup"] = True
        return self._genai.LLMPipeline(self._target, "CPU", scheduler_config=scheduler, **more, **self._properties)


def device_properties(options: Mapping[str, str], *, device: str, dtype: str) -> dict[str, Any]:
    """OpenVINO's properties: all arithmetic and the KV cache in `dtype`, where it would choose by itself."""
    if device != "cpu":
        raise ValueError(f"device {device!r}; this worker drives OpenVINO's CPU plugin: give --device cpu")
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype {dtype!r}; OpenVINO computes in {' or '.join(PRECISIONS)}: give --dtype float32")
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "KV_CACHE_PRECISION": PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": count(options, "threads", 1),
    }
    return properties | {name: value for name, value in options.items() if name not in OWN_OPTIONS}


def capabilities(options: Mapping[str, str]) -> dict[str, Any]:
    """What is claimed. Biased, forbidden and allowed tokens are no settings of the engine; log-probabilities come as sums."""
    claimed = (
        "greedy", "sampled", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "min_new_tokens", "stop_tokens", "seeds", "mixed_sampling",
    )  # fmt: skip
    with_draft = choice(options, "method", METHODS) == "draft_model"
    return {**dict.fromkeys(claimed, True), "draft_model": with_draft, "record": with_draft, "arithmetic": "float32"}


def generation_settings(request: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """A request as attributes of GenerationConfig; `seed` is for requests without one. NotImplementedError for what it lacks."""
    sampling = request["sampling"]
    for name in ("logit_bias", "forbidden_token_ids", "allowed_token_ids"):
        if sampling[name]:
            raise NotImplementedError(f"OpenVINO GenAI has no setting for {name}")
    if request["logprobs"]:
        raise NotImplementedError("OpenVINO GenAI returns the sum of the log-probabilities only")
    greedy = sampling["temperature"] == 0
    settings: dict[str, Any] = {
        "apply_chat_template": False,
        "do_sample": not greedy,
        "max_new_tokens": request["max_new_tokens"],
        "min_new_tokens": request["min_new_tokens"],
        "stop_token_ids": set(request["stop_token_ids"]),
    }
    names = ("repetition_penalty", "presence_penalty", "frequency_penalty")
    settings |= {name: sampling[name] for name in names}
    if not greedy:
        settings |= {name: sampling[name] for name in ("temperature", "top_k", "top_p", "min_p")}
        settings["rng_seed"] = seed if request["seed"] is None else request["seed"]
    return settings


def drafting_settings(request: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, Any]:
    """The attributes that make it draft."""
    settings: dict[str, Any] = {"num_assistant_tokens": request["num_draft_tokens"]}
    if choice(options, "method", METHODS) == "prompt_lookup":
        settings["max_ngram_size"] = count(options, "ngram", MAX_NGRAM)
    return settings


def record_of(metrics: Any) -> dict[str, Any]:
    """OpenVINO's counts as an acceptance record: it counts no rounds, so they follow from what was emitted."""
    accepted = int(metrics.get_num_accepted_tokens())
    generated = int(metrics.main_model_metrics.get_num_generated_tokens())
    return {
        "num_spec_steps": max(generated - accepted, 0),
        "num_draft_tokens": int(metrics.get_num_draft_tokens()),
        "num_accepted_draft_tokens": accepted,
        "acceptance_histogram": [],
    }
