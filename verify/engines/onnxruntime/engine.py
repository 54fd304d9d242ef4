"""ONNX Runtime GenAI in process, as a worker: the same target twice, once with a draft model or n-gram lookup.

Standard library and this engine's environment only. Options: `method` (draft_model, ngram), `ngram` (its size), `threads`; every
other option is one of the engine's own `speculative` options, such as `min_adaptive_k=1`.
"""

import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from verify.engines.options import choice, count, from_json

METHODS = ("draft_model", "ngram")
OWN_OPTIONS = ("method", "ngram", "threads")
NGRAM_SIZE = 2
MAX_DRAFT_TOKENS = 16
SEEDS = 2**31


def open_engine(
    *, target: str, draft: str | None, options: Mapping[str, str], device: str, dtype: str, folder: str
) -> "Engine":
    """Convert the checkpoints below `folder` and open ONNX Runtime; ValueError names an option that cannot be."""
    if device != "cpu" or dtype != "float32":
        raise ValueError(
            f"device {device!r} with dtype {dtype!r}; this environment holds the CPU build and converts to float32"
        )
    drafts = choice(options, "method", METHODS) == "draft_model"
    own_options(options)
    threads = count(options, "threads", 1)
    if drafts and draft is None:
        raise ValueError("--engine method=draft_model without a draft; give --draft DIR, or --engine method=ngram")
    conversion = import_module("verify.engines.onnxruntime.conversion")
    plain = conversion.converted(Path(target), Path(folder) / "target")
    speculative = plain
    if drafts:
        speculative = paired(plain, conversion.converted(Path(str(draft)), Path(folder) / "draft"))
    for each in {plain, speculative}:
        conversion.set_threads(each, threads)
    return Engine(plain, speculative, options=options)


class Engine:
    """One request after the other, each with a generator of its own."""

    def __init__(self, plain: Path, speculative: Path, *, options: Mapping[str, str]) -> None:
        self._genai = import_module("onnxruntime_genai")
        self._numpy = import_module("numpy")
        self._options = options
        self._vocab_size = int(json.loads((plain / "genai_config.json").read_text())["model"]["vocab_size"])
        self._seeds = random.SystemRandom()
        self._folders = {True: speculative, False: plain}
        self._models = {True: self._genai.Model(str(speculative))}
        try:
            self._genai.GeneratorParams(self._models[True]).set_speculative_options(**own_options(options))
        except RuntimeError as error:
            given = ", ".join(f"{name}={value!r}" for name, value in options.items())
            raise ValueError(
                f"--engine {given}: refused as speculative options ({str(error).strip()}); give ones of this build"
            ) from error
        self.name = f"ONNX Runtime GenAI {version('onnxruntime-genai')}, {choice(options, 'method', METHODS)}"
        self.capabilities = capabilities(options)
        self.concurrency = [1]
        self.same_seed_same_output = choice(options, "method", METHODS) == "ngram"

    def answer(
        self, requests: Sequence[Mapping[str, Any]], *, speculative: bool, concurrency: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (index, answer) in the order of the requests."""
        if speculative not in self._models:
            self._models[speculative] = self._genai.Model(str(self._folders[speculative]))
        for index, request in enumerate(requests):
            try:
                answer = self._answer_one(request, speculative=speculative)
            except RuntimeError as error:  # the model goes on with the others
                answer = {"failure": f"{type(error).__name__}: {error}"}
            yield index, answer

    def _answer_one(self, request: Mapping[str, Any], *, speculative: bool) -> dict[str, Any]:
        settings = search_settings(request, vocab_size=self._vocab_size, seed=self._seeds.randrange(SEEDS))
        params = self._genai.GeneratorParams(self._models[speculative])
        params.set_search_options(**settings)
        if speculative:
            params.set_speculative_options(**speculative_settings(request, self._options))
        generator = self._genai.Generator(self._models[speculative], params)
        prompt = self._numpy.array([request["prompt_token_ids"]], dtype=self._numpy.int32)  # [1, T]
        generator.append_tokens(prompt)
        token_ids = []  # the generator's own sequence leaves out the end of text
        while not generator.is_done():
            generator.generate_next_token()
            token_ids.append(int(generator.get_next_tokens()[0]))
        stopped = token_ids[-1] in request["stop_token_ids"]
        answer: dict[str, Any] = {"token_ids": token_ids, "finish_reason": "stop" if stopped else "length"}
        if speculative:
            answer["record"] = record_of(generator.get_speculative_stats())
        return answer


def paired(target: Path, draft: Path) -> Path:
    """A folder beside `target` with both models: the engine reads one configuration, with paths below it."""
    folder = target.with_name("pair")
    shutil.copytree(target, folder, dirs_exist_ok=True)
    shutil.copytree(draft, folder / "draft", dirs_exist_ok=True)
    config = json.loads((target / "genai_config.json").read_text(encoding="utf-8"))
    decoder = json.loads((draft / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    config["model"]["draft"] = decoder | {"filename": f"draft/{decoder['filename']}"}
    (folder / "genai_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def capabilities(options: Mapping[str, str]) -> dict[str, Any]:
    """What is claimed. Stop tokens belong to the model, not to a request; a list of biased or allowed tokens has no setting."""
    claimed = ("greedy", "sampled", "top_k", "top_p", "repetition_penalty", "seeds", "mixed_sampling", "record")
    with_draft = choice(options, "method", METHODS) == "draft_model"
    return {**dict.fromkeys(claimed, True), "draft_model": with_draft, "arithmetic": "float32"}


def search_settings(request: Mapping[str, Any], *, vocab_size: int, seed: int) -> dict[str, Any]:
    """A request as search options; `seed` is for a request without one. NotImplementedError where there is no such option."""
    sampling = request["sampling"]
    for name in (
        "logit_bias",
        "forbidden_token_ids",
        "allowed_token_ids",
        "presence_penalty",
        "frequency_penalty",
        "min_p",
    ):
        if sampling[name]:
            raise NotImplementedError(f"ONNX Runtime GenAI has no search option for {name}")
    if request["logprobs"] or request["min_new_tokens"]:
        raise NotImplementedError("this worker asks ONNX Runtime GenAI for no log-probabilities and no minimum length")
    greedy = sampling["temperature"] == 0
    settings: dict[str, Any] = {
        "do_sample": not greedy,
        "max_length": len(request["prompt_token_ids"]) + request["max_new_tokens"],
        "repetition_penalty": sampling["repetition_penalty"],
    }
    if not greedy:
        settings |= {
            "temperature": sampling["temperature"],
            "top_k": sampling["top_k"] or vocab_size,  # it samples from the whole vocabulary only when told its size
            "top_p": sampling["top_p"],
            "random_seed": seed if request["seed"] is None else request["seed"] % SEEDS,
        }
    return settings


def speculative_settings(request: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, Any]:
    """The engine's speculative options."""
    settings: dict[str, Any] = {"max_draft_tokens": min(request["num_draft_tokens"], MAX_DRAFT_TOKENS)}
    return settings | own_options(options)


def own_options(options: Mapping[str, str]) -> dict[str, Any]:
    """Those of the speculative options that belong to the command line."""
    own = {name: from_json(options, name) for name in options if name not in OWN_OPTIONS}
    size = count(options, "ngram", NGRAM_SIZE)
    return {"ngram_size": size} | own if choice(options, "method", METHODS) == "ngram" else own


def record_of(stats: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's statistics as an acceptance record; its own histogram stays empty (0.18)."""
    return {
        "num_spec_steps": int(stats["rounds"]),
        "num_draft_tokens": int(stats["draft_tokens_proposed"]),
        "num_accepted_draft_tokens": int(stats["draft_tokens_accepted"]),
        "acceptance_histogram": [],
    }
