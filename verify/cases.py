"""The zoo: cases chosen so that bugs become visible, and the strategy from which Hypothesis makes more.

Small vocabularies serve the exact law; their cost in paths is estimated before they run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from verify.grammar import TokenAutomaton
from verify.models.pairs import Relation, TableSpec
from verify.protocol import Capabilities, Request, SamplingParams

EXACT_PATH_LIMIT = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pair of tables and the requests answered in one call."""

    name: str
    spec: TableSpec
    requests: tuple[Request, ...]


def case(
    name: str,
    *,
    vocab_size: int = 3,
    relation: Relation = Relation.CLOSE,
    seed: int = 1,
    zeros: float = 0.0,
    recurrent: bool = False,
    prompts: Sequence[Sequence[int]] = ((1, 2),),
    max_new_tokens: int = 3,
    num_draft_tokens: int = 2,
    min_new_tokens: int = 0,
    stop_token_ids: Sequence[int] = (),
    **sampling: Any,
) -> Case:
    """One case in one line."""
    spec = TableSpec(vocab_size=vocab_size, relation=relation, seed=seed, zeros=zeros, recurrent=recurrent)
    requests = tuple(
        Request(
            prompt_token_ids=tuple(token_id % vocab_size for token_id in prompt),
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            num_draft_tokens=num_draft_tokens,
            stop_token_ids=tuple(stop_token_ids),
            sampling=SamplingParams(**sampling),
        )
        for prompt in prompts
    )
    return Case(name=name, spec=spec, requests=requests)


def unequal(name: str, *rows: dict[str, Any], **common: Any) -> Case:
    """Requests of one call that differ: the settings of each row over the common ones."""
    cases = [case(name, **common | row) for row in rows]
    return replace(cases[0], requests=tuple(request for each in cases for request in each.requests))


# Rounds: two or three of them, full acceptance and rejection at every offset reachable, token 0 in the support.
EXACT_ROUNDS = (
    case("close"),
    case("opposed", relation=Relation.OPPOSED, seed=2),
    case("disjoint", vocab_size=4, relation=Relation.DISJOINT, num_draft_tokens=1, seed=3),
    case("draft is the target", relation=Relation.SAME, seed=5),
    case("zeros under draft mass", zeros=0.4, seed=6),
    case("no draft tokens", num_draft_tokens=0, temperature=0.7, seed=34),
)
EXACT_MORE_ROUNDS = (
    case("one draft token", vocab_size=5, num_draft_tokens=1),
    case("three draft tokens", vocab_size=2, num_draft_tokens=3, max_new_tokens=4),
    case("peaked draft", relation=Relation.PEAKED, seed=4),
    case("prompt of one token", prompts=((2,),), seed=7),
    case("four new tokens", vocab_size=2, max_new_tokens=4, seed=8),
    # For decoders whose first token comes from prefill: blocks of two drafts, recovered tokens with a choice, three rounds.
    case("four new tokens, zeros", relation=Relation.UNRELATED, max_new_tokens=4, zeros=0.34, seed=81),
    case("five new tokens", vocab_size=2, num_draft_tokens=1, max_new_tokens=5, seed=65),
)

_ORDERED: dict[str, Any] = {"vocab_size": 4, "num_draft_tokens": 1}
EXACT_PROCESSORS = (
    case("temperature 0.5", temperature=0.5, seed=9),
    case("top_k 2", top_k=2, seed=11),
    case("top_p 0.7", top_p=0.7, seed=12),
    case("min_p 0.4", min_p=0.4, seed=13),
    case("repetition penalty", repetition_penalty=1.8, seed=15),
    case("presence penalty", presence_penalty=1.2, seed=16),
    case("allowed tokens", vocab_size=4, allowed_token_ids=(0, 2), seed=20),
    # Processors in the documented order: every other one shifts these laws.
    case("temperature, top_k and top_p", **_ORDERED, temperature=0.6, top_k=3, top_p=0.7, seed=57),
    case("temperature, top_p and min_p", **_ORDERED, temperature=1.6, top_p=0.7, min_p=0.5, seed=43),
    case(
        "logit bias, repetition penalty and temperature",
        num_draft_tokens=1,
        max_new_tokens=2,
        temperature=0.6,
        logit_bias={1: 1.5},
        repetition_penalty=1.8,
        seed=60,
    ),
)
EXACT_MORE_PROCESSORS = (
    case("temperature 1.7", temperature=1.7, seed=10),
    case("temperature 0.2", temperature=0.2, seed=66),
    case("top_p 0.8, a draft sure of one token", relation=Relation.PEAKED, top_p=0.8, seed=67),
    case("temperature and top_k", temperature=0.6, top_k=2, seed=14),
    case(
        "frequency penalty", vocab_size=2, max_new_tokens=4, frequency_penalty=0.9, seed=17
    ),  # a token twice in a block
    case("logit bias", logit_bias={0: 1.5, 2: -1.0}, seed=18),
    case("forbidden token", forbidden_token_ids=(1,), seed=19),
)

# From token 0 to 1 or 2, and stop behind a 1; another that alternates for ever.
BRACKETS = TokenAutomaton({0: {0: 1, 2: 0}, 1: {1: 2, 0: 1}, 2: {}}, final=frozenset({2}))
NEVER_TWICE = TokenAutomaton({0: {0: 1, 1: 2, 2: 3}, 1: {1: 2, 2: 3}, 2: {0: 1, 2: 3}, 3: {0: 1, 1: 2}})
EXACT_GRAMMARS = (
    case("grammar without an end", grammar=NEVER_TWICE, seed=29),
    case("grammar that ends", vocab_size=4, num_draft_tokens=2, grammar=BRACKETS, stop_token_ids=(3,), seed=30),
)

EXACT_STOPS = (
    case("stop inside a block", stop_token_ids=(1,), seed=21),
    case("two stop tokens", vocab_size=4, num_draft_tokens=1, stop_token_ids=(0, 3), seed=22),
    case(
        "stop and three draft tokens", vocab_size=2, num_draft_tokens=3, max_new_tokens=4, stop_token_ids=(1,), seed=23
    ),
    case("minimum length", stop_token_ids=(0,), min_new_tokens=2, seed=24),
)

_BESIDE: dict[str, Any] = {"vocab_size": 2, "num_draft_tokens": 1, "max_new_tokens": 2}
EXACT_BATCHES = (
    case("two prompts", **_BESIDE, prompts=((1, 0), (0, 1)), seed=25),
    case("ragged prompts", **_BESIDE, prompts=((1,), (0, 1, 1)), seed=26),
    case("one stops early", **_BESIDE, prompts=((1, 1), (0,)), stop_token_ids=(0,), seed=27),
    unequal(
        "unequal temperatures",
        {"temperature": 0.5, "prompts": ((1, 0),)},
        {"temperature": 1.7, "prompts": ((0, 1),)},
        **_BESIDE,
        seed=35,
    ),
    unequal(
        "unequal truncation",
        {"top_p": 0.6, "prompts": ((1, 0),)},
        {"top_k": 1, "prompts": ((0,),)},
        {"min_p": 0.25, "prompts": ((1, 1),)},
        **_BESIDE,
        seed=63,
    ),
)

EXACT_RECURRENT = (case("recurrent state", vocab_size=2, recurrent=True, seed=28),)

# The confidence in a later draft depends on the draft before it, and for usual costs of a forward the decision hangs on it
# here (as it does in one context of sixteen): a schedule that looks ahead shifts the law.
_UNEVEN: dict[str, Any] = {"vocab_size": 2, "relation": Relation.UNEVEN}
EXACT_SCHEDULES = (
    case("uneven, dear forward", relation=Relation.UNEVEN, seed=32),
    case("uneven, dear first draft", relation=Relation.UNEVEN, seed=61),
    case("uneven, three draft tokens", **_UNEVEN, num_draft_tokens=3, max_new_tokens=4, seed=45),
)
EXACT_SCHEDULES_OF_BATCHES = (
    unequal(
        "uneven, beside another request",
        {"prompts": ((1,),)},
        {"prompts": ((0, 1),), "num_draft_tokens": 1, "max_new_tokens": 2},
        **_UNEVEN,
        seed=33,
    ),
)


def estimated_paths(one: Case) -> float:
    """An upper estimate of the paths of a decoder that draws its drafts, one coin per draft token and a last token."""
    total = 1.0
    for request in one.requests:
        total *= _paths(one.spec.vocab_size, request.max_new_tokens, request.num_draft_tokens)
    return total


def _paths(vocab_size: int, remaining: int, num_draft_tokens: int) -> float:
    if remaining <= 0:
        return 1.0
    drafted = min(num_draft_tokens, remaining - 1)
    # `accepted` coins came up heads, one came up tails (or none was left), the tokens after them are drafted anyway.
    total: float = sum(
        vocab_size ** (drafted + 1)
        * 2 ** max(0, drafted - accepted - 1)
        * _paths(vocab_size, remaining - accepted - 1, num_draft_tokens)
        for accepted in range(drafted + 1)
    )
    return total


def processors(capabilities: Capabilities) -> SearchStrategy[dict[str, Any]]:
    """Settings of at most one processor besides the temperature, from those that the decoder claims."""
    options: list[SearchStrategy[dict[str, Any]]] = [st.just({})]
    candidates: dict[str, SearchStrategy[Any]] = {
        "top_k": st.integers(1, 3),
        "top_p": st.sampled_from([0.3, 0.6, 0.9]),
        "min_p": st.sampled_from([0.1, 0.5]),
        "repetition_penalty": st.sampled_from([0.7, 1.3, 2.0]),
        "presence_penalty": st.sampled_from([-0.5, 1.0]),
        "frequency_penalty": st.sampled_from([-0.5, 1.0]),
    }
    options += [st.fixed_dictionaries({k: v}) for k, v in candidates.items() if getattr(capabilities, k)]
    return st.one_of(options)


@st.composite
def generated_cases(draw: DrawFn, capabilities: Capabilities, *, max_paths: float, batch: bool) -> Case:
    """Any small case that the decoder claims to serve and that costs at most `max_paths` paths.

    The requests of a batch have settings of their own.
    """
    vocab_size = draw(st.integers(2, 5), label="vocab_size")
    fewest_drafts = 0 if capabilities.zero_draft_tokens else 1
    common = {
        "vocab_size": vocab_size,
        "num_draft_tokens": draw(st.integers(fewest_drafts, 3), label="num_draft_tokens"),
        "max_new_tokens": draw(st.integers(2, 4), label="max_new_tokens"),
    }
    rows = []
    for _ in range(draw(st.integers(1, 2), label="batch") if batch else 1):
        prompt = draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=4), label="prompt")
        stops = draw(st.sampled_from([(), (0,), (1,)]), label="stop") if capabilities.stop_tokens else ()
        shortest = draw(st.integers(0, 2), label="min_new_tokens") if stops and capabilities.min_new_tokens else 0
        settings = draw(processors(capabilities), label="processor")
        temperature = draw(st.sampled_from([1.0, 0.5, 2.0]), label="temperature")
        own = {"prompts": (prompt,), "stop_token_ids": stops, "min_new_tokens": shortest, "temperature": temperature}
        rows.append(own | settings)
    relation = draw(st.sampled_from(list(Relation)), label="relation")
    # Where the target has a zero a sharp draft has less mass than float32 tells from none beside 1.
    resolved = capabilities.arithmetic == "float64" or relation not in (Relation.PEAKED, Relation.UNEVEN)
    one = unequal(
        "generated",
        *rows,
        relation=relation,
        seed=draw(st.integers(0, 10_000), label="seed"),
        zeros=draw(st.sampled_from([0.0, 0.3]), label="zeros") if resolved else 0.0,
        **common,
    )
    while estimated_paths(one) > max_paths:  # shorten until affordable rather than throw the example away
        one = _smaller(one)
    return one


def shorter(one: Case) -> Case | None:
    """The case with one new token less, and no more drafts than have a place before the last; None at two new tokens."""
    first = one.requests[0]
    fewer = first.max_new_tokens - 1
    if fewer < 2:
        return None
    return _changed(one, max_new_tokens=fewer, num_draft_tokens=min(first.num_draft_tokens, fewer - 1))


def _smaller(one: Case) -> Case:
    """One step cheaper; two tokens, two new ones and one draft token are always affordable."""
    short = shorter(one)
    if short is not None:
        return short
    vocab_size = one.spec.vocab_size - 1
    narrow = tuple(
        replace(request, prompt_token_ids=tuple(token_id % vocab_size for token_id in request.prompt_token_ids))
        for request in one.requests
    )
    return replace(one, spec=replace(one.spec, vocab_size=vocab_size), requests=narrow)


def _changed(one: Case, **change: Any) -> Case:
    return replace(one, requests=tuple(replace(request, **change) for request in one.requests))
