"""Chapter 8: a seed fixes the output, and nothing else does; different streams are independent."""

import pytest

from verify.checks.randomness import (
    judge_distinct,
    judge_distinct_decoders,
    judge_independent_streams,
    judge_no_repetition,
    judge_reproducible,
)
from verify.judge import Judge, NotApplicable, check
from verify.models.pairs import Relation, TableSpec
from verify.results import Evidence
from verify.suite.support import answered, prompts, request, scaled, table_subject

SPEC = TableSpec(vocab_size=64, relation=Relation.CLOSE, seed=801, num_rows=4096)
ONE_LAW = TableSpec(
    vocab_size=64, relation=Relation.CLOSE, seed=803, num_rows=1, history="window", window=1, max_positions=1024
)
SMALL = TableSpec(vocab_size=4, relation=Relation.CLOSE, seed=802)


@check(chapter=8, property="seeds reproduce", evidence=Evidence.CONTRACT)
def test_seed_reproduces(judge: Judge) -> None:
    """The same request with the same seed, twice."""
    subject = table_subject(judge, SPEC)
    subject.require("sampled", "seeds")
    chosen = prompts(judge, scaled(judge, 8), vocab_size=SPEC.vocab_size)
    judge.conclude(judge_reproducible(subject, [request(prompt, seed=index) for index, prompt in enumerate(chosen)]))


@check(chapter=8, property="seeds reproduce", evidence=Evidence.CONTRACT)
def test_seed_reproduces_in_a_batch(judge: Judge) -> None:
    """Batch mates do not touch a request's stream."""
    subject = table_subject(judge, SPEC)
    subject.require("sampled", "seeds_per_request", "batch")
    first, second, *chosen = prompts(judge, scaled(judge, 8) + 2, vocab_size=SPEC.vocab_size)
    company = [request(first, max_new_tokens=9), request(second, max_new_tokens=30)]
    asked = [request(prompt, seed=index) for index, prompt in enumerate(chosen)]
    judge.conclude(judge_reproducible(subject, asked, company=company))


@check(chapter=8, property="streams differ", evidence=Evidence.BETTING)
def test_unseeded_calls_differ(judge: Judge) -> None:
    """Two calls without a seed are two streams: nothing reseeds with a constant, or goes on with a seed asked before."""
    subject = table_subject(judge, SPEC)
    subject.require("sampled")
    (prompt,) = prompts(judge, 1, vocab_size=SPEC.vocab_size)
    asked = request(prompt, max_new_tokens=24)
    before = [request(prompt, max_new_tokens=8, seed=0)] if subject.capabilities.seeds else []
    judge.conclude(judge_distinct(subject, asked, asked, alpha=judge.alpha, before=before))


@check(chapter=8, property="streams differ", evidence=Evidence.BETTING)
@pytest.mark.parametrize("other", [1, 2**16, 2**30])
def test_seeds_differ(judge: Judge, other: int) -> None:
    """Two seeds are two streams, also where they differ in a high bit only."""
    subject = table_subject(judge, SPEC)
    subject.require("sampled", "seeds")
    (prompt,) = prompts(judge, 1, vocab_size=SPEC.vocab_size)
    one, two = (request(prompt, max_new_tokens=24, seed=seed) for seed in (0, other))
    judge.conclude(judge_distinct(subject, one, two, alpha=judge.alpha))


@check(chapter=8, property="streams differ", evidence=Evidence.BETTING)
def test_batch_mates_differ(judge: Judge) -> None:
    """The same prompt twice in one batch: rows do not share their coins."""
    subject = table_subject(judge, SPEC)
    subject.require("sampled", "batch")
    (prompt,) = prompts(judge, 1, vocab_size=SPEC.vocab_size)
    asked = request(prompt, max_new_tokens=24)
    judge.conclude(judge_distinct(subject, asked, asked, alpha=judge.alpha, together=True))


@check(chapter=8, property="streams differ", evidence=Evidence.BETTING)
def test_fresh_decoders_differ(judge: Judge) -> None:
    """Two decoders, made one after the other: making one sets no stream to a constant, unless that is claimed."""
    subject = table_subject(judge, SPEC)
    subject.require("sampled")
    if subject.capabilities.seeded_at_start:
        raise NotApplicable("seeded_at_start is claimed: without a seed, fresh decoders are meant to repeat each other")
    asked = request(*prompts(judge, 1, vocab_size=SPEC.vocab_size), max_new_tokens=24)
    judge.conclude(judge_distinct_decoders(lambda: table_subject(judge, SPEC), asked, alpha=judge.alpha))


@check(chapter=8, property="streams do not repeat", evidence=Evidence.BETTING, minimum_profile="default")
def test_long_streams(judge: Judge) -> None:
    """A stream does not begin again after some hundred numbers or tokens: one law everywhere, so that it would show."""
    subject = table_subject(judge, ONE_LAW)
    subject.require("sampled")
    seeds = (None, 0) if subject.capabilities.seeds else (None,)
    asked = [request((1, 2), max_new_tokens=512, num_draft_tokens=2, seed=seed) for seed in seeds]
    judge.conclude(judge_no_repetition(subject, asked, alpha=judge.alpha))


@check(chapter=8, property="streams are independent", evidence=Evidence.BETTING, minimum_profile="default")
def test_consecutive_seeds(judge: Judge) -> None:
    """Seeds 0, 1, 2, ...: what one stream emits says nothing about the next."""
    subject = table_subject(judge, SMALL)
    subject.require("sampled", "seeds")
    asked = [request((1, 2), max_new_tokens=3, seed=seed) for seed in range(scaled(judge, 400))]
    answers, _ = answered(subject, asked)
    judge.conclude(judge_independent_streams(subject, answers, alpha=judge.alpha))
