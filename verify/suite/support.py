"""What the chapters share: subjects per pair, prompts, requests, and the sizes that a profile asks for."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer

from verify.coverage import Coverage
from verify.greedy.noise import NoiseFloor, measure_noise_floor
from verify.judge import ContractViolation, Judge
from verify.models.pairs import TableSpec, checkpoint_pair, near, table_pair
from verify.models.reference import Reference
from verify.options import Options
from verify.protocol import ModelPair, Request, SamplingParams
from verify.subject import Observed, Subject

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
TRAINED_PROMPTS = (
    "def read_",
    "class Token",
    "    def __init__(self, ",
    "import os\n",
    "for name in ",
    "    return self.",
    "if not isinstance(",
    "try:\n    ",
    "    raise ValueError(",
    "        if self._",
)
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
TRAINED_PAIR = "trained pair"
ALL_THREADS = torch.get_num_threads()
PATIENCE = 8  # so many times the usual requests are at hand, should a path not be reached by these
SCALE = {"smoke": 0.25, "default": 1.0, "exhaustive": 8.0}


def scaled(judge: Judge, count: int) -> int:
    """`count` is the size in the default profile."""
    return max(1, round(count * SCALE[judge.profile]))


def table_models(judge: Judge, spec: TableSpec, *, dtype: torch.dtype = torch.float64) -> ModelPair:
    """A synthetic pair; built once a run.

    Torch then runs on one thread: on tiny tensors a second one only costs, ten times over on a busy machine.
    """
    torch.set_num_threads(1)
    key = f"pair {spec} {dtype}"
    if key not in judge.shared:
        judge.shared[key] = table_pair(
            spec, device=torch.device(judge.options.device), dtype=dtype, folder=judge.options.models_folder
        )
    pair: ModelPair = judge.shared[key]
    return pair


def table_subject(judge: Judge, spec: TableSpec, *, dtype: torch.dtype = torch.float64) -> Subject:
    """The decoder under test on a synthetic pair."""
    return _claiming(Subject(judge, table_models(judge, spec, dtype=dtype)))


def load_trained_pair(options: Options) -> ModelPair:
    """The pair given by --target and --draft, or the fixture pair; ValueError where it cannot serve."""
    target_dir = options.target or FIXTURES / "target"
    draft_dir = options.draft or (None if options.target else FIXTURES / "draft")
    if draft_dir is None and options.door == "engine":
        draft_dir = target_dir  # its settings name one, whether it drafts with a model or not
    pair = checkpoint_pair(
        target_dir,
        draft_dir,
        device=torch.device(options.device),
        dtype=DTYPES[options.dtype],
        folder=options.models_folder,
        name="given-pair" if options.target else "fixture-pair",
    )
    # A draft that is the target is never rejected, so that half of what is to be judged would not happen.
    return replace(pair, draft=near(pair.target)) if options.derives_draft else pair


def trained_pair(judge: Judge) -> ModelPair:
    """The trained pair; loaded once a run. Torch runs on all its threads again."""
    torch.set_num_threads(ALL_THREADS)
    if TRAINED_PAIR not in judge.shared:
        judge.shared[TRAINED_PAIR] = load_trained_pair(judge.options)
    pair: ModelPair = judge.shared[TRAINED_PAIR]
    return pair


def trained_subject(judge: Judge) -> Subject:
    """The decoder on the trained pair."""
    return _claiming(Subject(judge, trained_pair(judge)))


def _claiming(subject: Subject) -> Subject:
    """Raise `ContractViolation` for a decoder that claims nothing; a log claims what is in it, which its audit counts."""
    claims = subject.capabilities
    if not (claims.greedy or claims.sampled) and subject.judge.options.door != "generations":
        raise ContractViolation("the decoder claims neither greedy nor sampled; claim one, or nothing can be judged")
    return subject


def trained_prompts(judge: Judge, count: int) -> list[tuple[int, ...]]:
    """Code prompts where the pair has a tokenizer, else random tokens."""
    pair = trained_pair(judge)
    if pair.tokenizer_dir is None:
        return prompts(judge, count, vocab_size=pair.vocab_size)
    tokenizer = AutoTokenizer.from_pretrained(pair.tokenizer_dir)
    texts = [TRAINED_PROMPTS[index % len(TRAINED_PROMPTS)] for index in range(count)]
    return [tuple(tokenizer(text)["input_ids"]) for text in texts]


def prompts(
    judge: Judge, count: int, *, vocab_size: int, lengths: Sequence[int] = (1, 2, 3, 5, 8)
) -> list[tuple[int, ...]]:
    """Random prompts of cycling lengths, determined by the check's seed."""
    generator = torch.Generator().manual_seed(judge.seed)
    return [
        tuple(torch.randint(vocab_size, (lengths[index % len(lengths)],), generator=generator).tolist())
        for index in range(count)
    ]


def greedy(prompt: Sequence[int], **settings: Any) -> Request:
    """A greedy request; `settings` are fields of `Request` or of `SamplingParams`."""
    return request(prompt, temperature=0.0, **settings)


def request(prompt: Sequence[int], *, max_new_tokens: int = 16, **settings: Any) -> Request:
    """A request; `settings` are fields of `Request` or of `SamplingParams`."""
    own = {name: settings.pop(name) for name in list(settings) if name in Request.__slots__}
    return Request(
        prompt_token_ids=tuple(prompt), max_new_tokens=max_new_tokens, sampling=SamplingParams(**settings), **own
    )


def answered(subject: Subject, requests: Sequence[Request]) -> tuple[list[Observed], Coverage]:
    """Answers one by one, with coverage from the observed rounds or, where they cannot be seen, from the record."""
    return answered_until(subject, requests, required=(), at_least=len(requests))


def answered_until(
    subject: Subject, requests: Sequence[Request], *, required: Sequence[str], at_least: int
) -> tuple[list[Observed], Coverage]:
    """The same for the first `at_least` requests, and for further ones while a `required` path is seen not to be reached."""
    coverage = Coverage()
    answers: list[Observed] = []
    for index, each in enumerate(requests):
        if index >= at_least and (coverage.unseen or not coverage.missing(required)):
            break
        answers.append(subject.generate_one(each))
        coverage.add(answers[-1].rounds, answers[-1].generation.record)
        subject.judge.progress(index + 1, max(index + 1, at_least), "requests")
    return answers, coverage


def claimed_of(subject: Subject, settings: Iterable[dict[str, Any]], **common: Any) -> list[dict[str, Any]]:
    """The settings for which the decoder claims all that they need."""
    return [each for each in settings if not subject.capabilities.unclaimed(request((0,), **common | each))]


def measured_noise(judge: Judge, *, of: Literal["target", "draft"] = "target") -> NoiseFloor:
    """A model of the trained pair against itself, computed in every correct form; measured once a run."""
    key = f"noise floor of the {of}"
    if key not in judge.shared:
        models = trained_pair(judge)
        judge.shared[key] = measure_noise_floor(getattr(models, of), _noise_texts(judge))
    floor: NoiseFloor = judge.shared[key]
    return floor


def _noise_texts(judge: Judge) -> list[list[int]]:
    """What noise is measured on: the target's own text. Short texts show too little of it: at least 40 tokens each."""
    if "noise texts" not in judge.shared:
        reference = Reference(trained_pair(judge).target)
        chosen = trained_prompts(judge, 2 if judge.profile == "smoke" else 5)
        judge.shared["noise texts"] = [[*each, *reference.greedy(greedy(each, max_new_tokens=40))] for each in chosen]
    texts: list[list[int]] = judge.shared["noise texts"]
    return texts


def noise_floor(judge: Judge) -> float:
    """Largest difference of one logit between correct computations."""
    return measured_noise(judge).max_logit_difference


def noise_tolerance(judge: Judge, *, temperature: float = 1.0) -> float:
    """Largest difference of a log-probability between correct computations."""
    return measured_noise(judge).logprob_tolerance(temperature=temperature)


def noise_of_acceptance(judge: Judge) -> float:
    """Largest change of 1 - TV(target, draft) at temperature 1 between correct computations, by the triangle inequality."""
    return measured_noise(judge).max_total_variation + measured_noise(judge, of="draft").max_total_variation
