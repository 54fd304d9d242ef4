"""What an engine is asked: groups of requests, each asked when a check first needs it, every answer kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from pydantic import ValidationError

from verify.engines.protocol import Engine, Failure, NoControl
from verify.log.line import Counts, Line, first_problem
from verify.log.reader import Entry, Log
from verify.protocol import Capabilities, Generation, Request, SamplingParams, claims_needed
from verify.subject import describe

MAX_FAILURES_IN_A_ROW = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Requests that are asked together, `concurrency` at once; `plain` asks the engine to decode without speculation."""

    name: str
    requests: Sequence[Request]
    concurrency: int = 1
    plain: bool = False


@dataclass(slots=True)
class Answers:
    """What came back from a group; `control` is why there is none where the engine cannot decode plainly."""

    group: Group
    generations: dict[int, Generation] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    no_control: str = ""


class Campaign:
    """Asks `engine` the `groups` on demand.

    `keep(request, generation)` and `progress(done, all, group)` are called as answers arrive; whoever asks may set them.

    After `MAX_FAILURES_IN_A_ROW` requests without one answer the engine counts as lost and is asked nothing more. No group brings
    more than half of them: all of its requests may need what the engine cannot do.
    """

    def __init__(self, engine: Engine, groups: Sequence[Group]) -> None:
        self.engine = engine
        self.groups: Mapping[str, Group] = {group.name: group for group in groups}
        self.answers: dict[str, Answers] = {}
        self.lost: Failure | None = None
        self.keep: Callable[[Request, Generation], object] = lambda *_: None
        self.progress: Callable[[int, int, str], object] = lambda *_: None
        self._in_a_row = 0
        self._in_group = 0

    def ask(self, name: str) -> Answers:
        """The answers to a group; asked once."""
        if name not in self.answers:
            self.answers[name] = self._ask(self.groups[name])
        return self.answers[name]

    def log(self, *names: str) -> Log:
        """Answers of groups as a log. Lines are numbered over the whole campaign; an answer that is no line is broken."""
        entries: list[Entry] = []
        broken: list[tuple[int, str]] = []
        for name in names:
            first = self._first_number(name)
            for index, generation in sorted(self.ask(name).generations.items()):
                try:
                    line = self._line(self.groups[name].requests[index], generation)
                except ValidationError as error:
                    broken.append((first + index, first_problem(error, whole="line")))
                else:
                    entries.append(Entry(number=first + index, line=line))
        return Log(engine=self.engine.name, entries=tuple(entries), broken=tuple(broken))

    def _ask(self, group: Group) -> Answers:
        answers = Answers(group)
        self._in_group = 0
        if self.lost is not None:
            answers.failures = dict.fromkeys(range(len(group.requests)), self.lost)
            return answers
        try:
            for index, answer in self.engine.answer(
                group.requests, speculative=not group.plain, concurrency=group.concurrency
            ):
                self._take(answers, index, answer)
                self.progress(len(answers.generations) + len(answers.failures), len(group.requests), group.name)
                if self.lost is not None:
                    break
        except NoControl as reason:
            answers.no_control = str(reason)
            return answers
        unanswered = Failure("malformed", "the engine gave no answer to this request")
        for index in range(len(group.requests)):
            if index not in answers.generations and index not in answers.failures:
                answers.failures[index] = self.lost or unanswered
        return answers

    def _take(self, answers: Answers, index: int, answer: Generation | Failure) -> None:
        if isinstance(answer, Failure):
            answers.failures[index] = answer
            self._in_group += 1
            self._in_a_row += self._in_group <= MAX_FAILURES_IN_A_ROW // 2
            if answer.kind == "died" or self._in_a_row >= MAX_FAILURES_IN_A_ROW:
                self.lost = answer
            return
        self._in_a_row = self._in_group = 0
        answers.generations[index] = answer
        self.keep(answers.group.requests[index], answer)

    def _first_number(self, name: str) -> int:
        number = 1
        for group in self.groups.values():
            if group.name == name:
                break
            number += len(group.requests)
        return number

    def _line(self, request: Request, generation: Generation) -> Line:
        asked = describe(request)
        return Line.model_validate(
            asked
            | {
                "prompt_token_ids": list(request.prompt_token_ids),
                "sampling": {"temperature": request.sampling.temperature} | asked.get("sampling", {}),
                "token_ids": list(generation.token_ids),
                "finish_reason": generation.finish_reason,
                "engine": self.engine.name,
                "logprobs": None if generation.logprobs is None else list(generation.logprobs),
                "logprobs_of": None if generation.logprobs is None else self.engine.capabilities.logprobs or "raw",
                "roles": generation.roles,
                "record": _counts(generation),
            }
        )


def plan(
    prompts: Sequence[Sequence[int]],
    engine: Engine,
    *,
    stop_token_ids: Sequence[int],
    frequent: Sequence[int],
    seed: int,
    repeats: int = 3,
) -> list[Group]:
    """The groups that an engine's claims allow.

    `stop_token_ids` end every request: an engine stops at its checkpoint's end of text. `frequent` are tokens that the target
    emits often: stops that are met, biases that are felt. `repeats`: how often each prompt is sampled.
    """
    claims = engine.capabilities
    seeds = count(seed)
    own_seeds = _every_second(seeds, claims)

    def request(prompt: Sequence[int], *, max_new_tokens: int = 32, **settings: Any) -> Request:
        own = {name: settings.pop(name) for name in list(settings) if name in Request.__slots__}
        asked = Request(
            prompt_token_ids=tuple(prompt),
            max_new_tokens=max_new_tokens,
            stop_token_ids=tuple(own.pop("stop_token_ids", ())) + tuple(stop_token_ids),
            **own,
        )
        return replace(asked, sampling=replace(asked.sampling, **settings))

    def sampled(prompt: Sequence[int], **settings: Any) -> Request:
        return request(prompt, **{"temperature": 1.0, "seed": next(own_seeds)} | settings)

    def greedy(prompt: Sequence[int], **settings: Any) -> Request:
        return request(prompt, temperature=0.0, **settings)

    many = max(engine.concurrency)
    groups = []
    for at_once in engine.concurrency:
        groups.append(
            Group(name=f"greedy, {at_once} at once", requests=[greedy(p) for p in prompts], concurrency=at_once)
        )
    for at_once in engine.concurrency:
        asked = [sampled(p) for _ in range(repeats) for p in prompts]
        groups.append(Group(name=f"sampled, {at_once} at once", requests=asked, concurrency=at_once))
    cold = [sampled(p, temperature=0.6) for _ in range(repeats) for p in prompts]
    groups.append(Group(name="sampled, temperature 0.6", requests=cold, concurrency=many))
    mixed = [(greedy if index % 2 else sampled)(p) for index, p in enumerate([*prompts, *prompts])]
    groups.append(Group(name="mixed", requests=mixed, concurrency=many))
    for name, settings in settings_of(frequent).items():
        asked = [sampled(p, max_new_tokens=24, **settings) for p in prompts]
        if not {"top_k", "top_p", "min_p"} & settings.keys():
            asked += [greedy(p, max_new_tokens=24, **settings) for p in prompts]
        groups.append(Group(name=name, requests=asked, concurrency=many))
    stopping = [
        make(p, stop_token_ids=frequent[:3] if claims.stop_tokens else (), max_new_tokens=1 + index % 24)
        for make, often in ((greedy, 1), (sampled, repeats))
        for index, p in enumerate([*prompts] * often)
    ]
    groups.append(Group(name="stopping", requests=stopping, concurrency=many))
    late = [
        make(p, stop_token_ids=frequent[:3], min_new_tokens=1 + index % 7)
        for make in (greedy, sampled)
        for index, p in enumerate(prompts)
    ]
    groups.append(Group(name="min_new_tokens", requests=late, concurrency=many))
    seeded = [request(p, seed=next(seeds), temperature=1.0) for p in prompts]
    groups.append(Group(name="seeds", requests=[*seeded, *seeded]))
    groups.append(Group(name="seeds at once", requests=seeded, concurrency=many))
    groups.append(Group(name="fresh", requests=[request(p, temperature=1.0) for p in prompts[:4] for _ in range(8)]))
    with_logprobs = [sampled(p, logprobs=True) for p in prompts]
    groups.append(Group(name="logprobs", requests=with_logprobs, concurrency=many))
    groups.append(Group(name="plain greedy", requests=[greedy(p) for p in prompts], concurrency=many, plain=True))
    plain = [sampled(p) for _ in range(repeats) for p in prompts]
    groups.append(Group(name="plain sampled", requests=plain, concurrency=many, plain=True))
    groups.append(Group(name="plain seeds", requests=seeded, plain=True))
    groups.append(Group(name="plain logprobs", requests=with_logprobs, concurrency=many, plain=True))
    return _claimed(groups, claims)


def plan_twins(
    prompts: Sequence[Sequence[int]], engine: Engine, *, seed: int, repeats: int = 12, max_new_tokens: int = 12
) -> list[Group]:
    """Where no target is at hand: the same requests with speculation and without, sampled with randomness of their own."""
    own_seeds = _every_second(count(seed), engine.capabilities)
    many = max(engine.concurrency)

    def twins(name: str, *, plain: bool) -> Group:
        asked = [
            Request(prompt_token_ids=tuple(p), max_new_tokens=max_new_tokens, seed=next(own_seeds))
            for _ in range(repeats)
            for p in prompts
        ]
        return Group(name=name, requests=asked, concurrency=many, plain=plain)

    greedy = [
        Request(prompt_token_ids=tuple(p), max_new_tokens=32, sampling=SamplingParams(temperature=0)) for p in prompts
    ]
    groups = [
        Group(name="twin greedy", requests=greedy),
        Group(name="plain twin greedy", requests=greedy, plain=True),
        Group(name="plain twin greedy again", requests=greedy, plain=True, concurrency=many),
        twins("twins", plain=False),
        twins("plain twins", plain=True),
    ]
    return _claimed(groups, engine.capabilities)


def _every_second(seeds: Iterator[int], claims: Capabilities) -> Iterator[int | None]:
    """A seed for every second request, where seeds are claimed: without one, as most users ask, another sampler may answer."""
    return (next(seeds) if claims.seeds and turn % 2 == 0 else None for turn in count())


def _claimed(groups: Sequence[Group], claims: Capabilities) -> list[Group]:
    """Groups, and requests in them, for which the engine claims what they need."""
    needed = {"seeds": "seeds", "seeds at once": "seeds_per_request", "plain seeds": "seeds", "mixed": "mixed_sampling"}
    needed["min_new_tokens"] = "stop_tokens"  # beside the claim of that name
    return [
        replace(group, requests=allowed)
        for group in groups
        if group.name not in needed or getattr(claims, needed[group.name])
        if (allowed := [each for each in group.requests if all(getattr(claims, need) for need in _needs(each))])
    ]


def settings_of(frequent: Sequence[int]) -> dict[str, dict[str, Any]]:
    """One setting a group, named like the claim that it needs.

    A temperature that comes after top-p or min-p, not before them as documented, keeps other tokens: both have one.
    """
    return {
        "top_k": {"top_k": 8, "temperature": 1.2},
        "top_p": {"top_p": 0.8, "temperature": 0.7},
        "min_p": {"min_p": 0.1, "temperature": 0.7},
        "repetition_penalty": {"repetition_penalty": 1.3},
        "presence_penalty": {"presence_penalty": 1.0},
        "frequency_penalty": {"frequency_penalty": 0.7},
        "logit_bias": {"logit_bias": dict(zip(frequent[:4], (3.0, -4.0, 2.0, -2.0), strict=False))},
        "forbidden_tokens": {"forbidden_token_ids": tuple(frequent[:4])},
        "allowed_tokens": {"allowed_token_ids": tuple(frequent)},
    }


def _needs(request: Request) -> list[str]:
    """Claims without which a request is not asked; the end of text, which stops every engine, is no claim."""
    return claims_needed(replace(request, stop_token_ids=()))


def _counts(generation: Generation) -> Counts | None:
    record = generation.record
    if record is None:
        return None
    histogram = list(record.acceptance_histogram)
    return Counts(
        num_spec_steps=record.num_spec_steps,
        num_draft_tokens=record.num_draft_tokens,
        num_accepted_draft_tokens=record.num_accepted_draft_tokens,
        acceptance_histogram=histogram or None,
        drafted_per_step=None if record.drafted_per_step is None else list(record.drafted_per_step),
        accepted_per_step=None if record.accepted_per_step is None else list(record.accepted_per_step),
    )
