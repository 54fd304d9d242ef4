"""What a log is to its checks: requests with answers that the target can score, and which of them are evidence."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch

from verify.adapters.log import generation_of, request_of
from verify.greedy.noise import NoiseFloor, measure_noise_floor
from verify.log.line import Counts
from verify.log.reader import Log
from verify.protocol import AcceptanceRecord, Request
from verify.subject import Observed, Subject

NOISE_TEXTS = 5
NOISE_TOKENS = 192


@dataclass(frozen=True, slots=True)
class Logged:
    """One line: its number in the file, what was asked and answered, and the engine's own (drafted, accepted) where it counts."""

    number: int
    answer: Observed
    counts: tuple[int, int] | None = None

    @property
    def request(self) -> Request:
        """What was asked."""
        return self.answer.request

    @property
    def token_ids(self) -> Sequence[int]:
        """What was emitted."""
        return self.answer.generation.token_ids

    @property
    def scorable(self) -> Observed:
        """The answer without roles that are not one a token: that is a fault of its own."""
        roles = self.answer.generation.roles
        if roles is None or len(roles) == len(self.token_ids):
            return self.answer
        return replace(self.answer, generation=replace(self.answer.generation, roles=None))


@dataclass(frozen=True, slots=True)
class Copy:
    """Two lines without a seed that hold the same output; `chance` is its probability under the target."""

    first: int
    second: int
    num_tokens: int
    chance: float


class Audit:
    """The lines of a log that the target can score; `unscored` holds (line number, reason) of the others.

    `noise` None: measured when it is needed.
    Lines whose emitted tokens lie outside the vocabulary are in `foreign`: a fault of the engine, and no text to score.
    """

    def __init__(self, subject: Subject, log: Log, *, noise: NoiseFloor | None = None) -> None:
        self.subject = subject
        self.log = log
        self.lines: list[Logged] = []
        self.foreign: list[Logged] = []
        self.unscored: list[tuple[int, str]] = []
        self._noise = noise
        vocab_size = subject.models.vocab_size
        limit = getattr(subject.models.target.config.get_text_config(), "max_position_embeddings", None)
        for entry in log.entries:
            request, generation = request_of(entry.line), generation_of(entry.line)
            counts = drafted_and_accepted(entry.line.record)
            logged = Logged(entry.number, Observed(request, generation, None), counts)
            length = len(request.prompt_token_ids) + len(generation.token_ids)
            asked = _ids(request)
            if max(asked) >= vocab_size:
                reason = f"token id {max(asked)} in the request is not in the target's vocabulary of {vocab_size}"
                self.unscored.append((entry.number, f"{reason}; is --target the engine's model?"))
            elif limit is not None and length > limit:
                self.unscored.append((entry.number, f"{length} tokens are more than the target's {limit} positions"))
            elif not _possible(request, vocab_size):
                self.unscored.append((entry.number, "every token is banned by the settings of the request together"))
            elif max(generation.token_ids, default=0) >= vocab_size:
                self.foreign.append(logged)
            else:
                self.lines.append(logged)

    def of_kind(self, *, greedy: bool) -> list[Logged]:
        """Greedy or sampled lines with at least one token."""
        return [each for each in self.lines if each.request.sampling.greedy == greedy and each.token_ids]

    @property
    def noise(self) -> NoiseFloor:
        """The target against itself on texts of the log, measured once, unless another floor was given."""
        if self._noise is None:
            texts = sorted(
                ([*each.request.prompt_token_ids, *each.token_ids][:NOISE_TOKENS] for each in self.lines), key=len
            )
            self._noise = measure_noise_floor(self.subject.models.target, texts[-NOISE_TEXTS:])
        return self._noise

    def floor(self, lines: Sequence[Logged]) -> float:
        """Largest difference of a processed logit between correct computations."""
        return self.noise.max_logit_difference * _penalty(lines)

    def tolerance(self, lines: Sequence[Logged]) -> float:
        """Largest difference of a log-probability between correct computations, at the lowest temperature of the lines."""
        coldest = min(
            (each.request.sampling.temperature for each in lines if each.request.sampling.temperature), default=1
        )
        return self.noise.logprob_tolerance(temperature=min(coldest, 1.0)) * _penalty(lines)

    def independent(self, lines: Sequence[Logged], *, alpha: float) -> list[Logged]:
        """Lines that count as evidence of their own: the first of each seed, and no copy of a line without a seed.

        One seed may drive several requests with the same uniform numbers. `alpha`: as in `copies`.
        """
        copied = {each.second for each in self.copies(lines, alpha=alpha)}
        seeds: set[int] = set()
        kept = []
        for each in lines:
            seed = each.request.seed
            if seed in seeds or each.number in copied:
                continue
            if seed is not None:
                seeds.add(seed)
            kept.append(each)
        return kept

    def copies(self, lines: Sequence[Logged], *, alpha: float) -> list[Copy]:
        """Outputs without a seed that occur twice for one request although chance hardly repeats them.

        With probability at least 1 - `alpha` independent outputs give none: a repetition counts where its chance is below
        `alpha` over the number of pairs that could have repeated.
        """
        groups: dict[Request, list[Logged]] = defaultdict(list)
        for each in lines:
            if each.request.seed is None:
                groups[request_key(each.request)].append(each)
        num_pairs = sum(len(group) * (len(group) - 1) // 2 for group in groups.values())
        found = []
        for group in groups.values():
            outputs: dict[tuple[int, ...], list[Logged]] = defaultdict(list)
            for each in group:
                outputs[tuple(each.token_ids)].append(each)
            for token_ids, same in outputs.items():
                if len(same) < 2:
                    continue
                laws = self.subject.reference.laws(same[0].request, token_ids)
                chance = float(laws[torch.arange(len(token_ids)), list(token_ids)].log().sum().exp())
                if chance <= alpha / num_pairs:
                    pairs = combinations([each.number for each in same], 2)
                    found += [Copy(first, second, len(token_ids), chance) for first, second in pairs]
        return found


def drafted_and_accepted(record: AcceptanceRecord | Counts | None) -> tuple[int, int] | None:
    """Drafts of an output by the engine's own count; None where it has none."""
    return None if record is None else (record.num_draft_tokens, record.num_accepted_draft_tokens)


def untruncated(request: Request) -> Request:
    """The same request without top-k, top-p and min-p."""
    return replace(request, sampling=replace(request.sampling, top_k=0, top_p=1.0, min_p=0.0))


def truncates(request: Request) -> bool:
    """Whether top-k, top-p or min-p is set on a sampled request."""
    return not request.sampling.greedy and untruncated(request) != request


def _ids(request: Request) -> list[int]:
    sampling = request.sampling
    return [
        *request.prompt_token_ids,
        *request.stop_token_ids,
        *sampling.logit_bias,
        *sampling.forbidden_token_ids,
        *(sampling.allowed_token_ids or ()),
    ]


def _possible(request: Request, vocab_size: int) -> bool:
    """Whether the settings leave a first token."""
    sampling = request.sampling
    banned = {*sampling.forbidden_token_ids, *(each for each, bias in sampling.logit_bias.items() if bias == -math.inf)}
    if request.min_new_tokens:
        banned.update(request.stop_token_ids)
    allowed = range(vocab_size) if sampling.allowed_token_ids is None else sampling.allowed_token_ids
    return not banned.issuperset(allowed)


def _penalty(lines: Sequence[Logged]) -> float:
    """By how much the strongest repetition penalty widens a difference of logits."""
    strengths = np.array([each.request.sampling.repetition_penalty for each in lines] or [1.0])
    return float(np.maximum(strengths, 1 / strengths).max())


def request_key(request: Request) -> Request:
    """The request as a key: its bias as a sorted tuple."""
    bias = tuple(sorted(request.sampling.logit_bias.items()))
    return replace(request, sampling=replace(request.sampling, logit_bias=bias), num_draft_tokens=0)  # type: ignore[arg-type]
